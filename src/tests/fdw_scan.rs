//! Scans: values, parameters, cursors, rescans, what is pushed down.

#[pgrx::pg_schema]
mod tests {
    use pgrx::pg_test;

    use crate::tests::{ONLY_REMOTE_JOINS, assert_contains, failure, plan, rows, run, text};

    #[pg_test]
    fn values_come_back_as_they_went() {
        // A server that was built without libxml has the type, and no values of it.
        let has_xml = failure("SELECT '<a/>'::xml") == "no error";
        let xml = if has_xml { "'<a/>'" } else { "NULL" };
        let values = format!("(1, true, -9223372036854775808, 1.1::real, 0.1::float8 + 0.2::float8, 12345678901234567890.0123456789,
            E'a\\nb''c', 'x'::char(5), '\\x00ff'::bytea, '2024-02-29'::date, '2024-02-29 23:59:59.999999'::timestamp,
            '2024-02-29 23:59:59+05'::timestamptz, '-1 year 2 mons -3 days 04:05:06'::interval,
            'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'::uuid, '{{\"k\": [1, null]}}'::jsonb, '{{1,NULL,3}}'::int[],
            '{{\"a,b\",\"NULL\",NULL}}'::text[], 'wild'::r.mood, '(1,\"x y\")'::r.pair, 42::r.small, 'r.scan'::regclass,
            '[1,5)'::int4range, {xml}::xml, '10.0.0.1/8'::inet)");
        run("SET LOCAL DateStyle = 'SQL, DMY'; SET LOCAL IntervalStyle = sql_standard;
             SET LOCAL extra_float_digits = 0; SET LOCAL search_path = r, public");
        run(&format!("INSERT INTO f.types VALUES {values}"));
        run("INSERT INTO f.types (id) VALUES (2)");
        let local = text(&format!("SELECT given::text FROM (VALUES {values}) given"));
        assert_eq!(text("SELECT stored::text FROM f.types stored WHERE id = 1"), local);
        assert_eq!(
            rows("SELECT f4, f8, d, ts, tz, iv, rc FROM f.types_as_text WHERE id = 1"),
            "(1.1,0.30000000000000004,2024-02-29,\"2024-02-29 23:59:59.999999\",\
             \"2024-02-29 18:59:59+00\",\"-10 mons -3 days +04:05:06\",r.scan)"
        );
        assert_eq!(
            text("SELECT (t.f8 = 0.1::float8 + 0.2::float8)::text FROM f.types t WHERE id = 1"),
            "true"
        );
        assert_eq!(rows("SELECT * FROM f.types WHERE id = 2"), format!("(2{})", ",".repeat(23)));
    }

    #[pg_test]
    fn settings_of_the_session_stay_what_they_are() {
        run("SET LOCAL DateStyle = 'SQL, DMY'; SET LOCAL search_path = r, public");
        run("INSERT INTO f.types (id, d, rc) VALUES (3, '29/02/2024', 'scan')");
        assert_eq!(
            text("SELECT current_setting('DateStyle') || '; ' || current_setting('search_path')"),
            "SQL, DMY; r, public"
        );
    }

    #[pg_test]
    fn parameters_are_text_in_a_form_that_the_participant_reads() {
        run("SET LOCAL DateStyle = 'SQL, DMY'");
        run("INSERT INTO f.types (id, d) VALUES (4, '2024-03-04')");
        run("PREPARE by_date(date) AS SELECT id FROM f.types WHERE d = $1;
             SET LOCAL plan_cache_mode = force_generic_plan");
        run("CREATE TEMP TABLE found AS EXECUTE by_date('2024-03-04')");
        assert_eq!(rows("SELECT * FROM found"), "(4)");
    }

    #[pg_test]
    fn a_parameter_that_changes_runs_the_query_again() {
        let query =
            "SELECT x, (SELECT v FROM f.scan WHERE id = x) FROM (VALUES (3), (1), (77), (2)) l(x)";
        assert_contains(&plan(query), "WHERE ((id = $1::integer))");
        assert_eq!(rows(query), "(3,v3) (1,v1) (77,) (2,v2)");
        // The same where each execution takes more than one FETCH.
        let query = "SELECT x, (SELECT string_agg(v, '') FROM f.scan_by_two WHERE number <= x)
            FROM (VALUES (5), (1), (NULL), (4)) l(x)";
        assert_eq!(rows(query), "(5,v1v2v3v4v5) (1,v1) (,) (4,v1v2v3v4)");
    }

    #[pg_test]
    fn a_scan_takes_as_many_fetches_as_it_needs() {
        assert_eq!(
            rows("SELECT number FROM f.scan_by_two"),
            "(1) (2) (3) (4) (5) (6) (7) (8) (9) (10)"
        );
        assert_eq!(rows("SELECT number FROM f.scan_by_two LIMIT 3"), "(1) (2) (3)");
        assert_eq!(rows("SELECT 1 FROM f.scan_by_two WHERE v = 'none'"), "");
        assert_eq!(text("SELECT count(*)::text FROM f.scan_by_two WHERE random() >= 0"), "10");
    }

    #[pg_test]
    fn a_rescan_starts_again() {
        run("SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off;
             SET LOCAL enable_material = off");
        for table in ["f.scan", "f.scan_by_two"] {
            let query = format!(
                "SELECT x, count(s.v) FROM generate_series(1, 3) x, {table} s
                 WHERE length(s.v) > x - 100 + (random() * 0)::int GROUP BY x ORDER BY x"
            );
            assert_eq!(rows(&query), "(1,9) (2,9) (3,9)", "{}", plan(&query));
        }
    }

    #[pg_test]
    fn joins_and_aggregates_are_pushed_down() {
        run(ONLY_REMOTE_JOINS);
        let query = "SELECT a.id, b.v FROM f.scan a JOIN f.scan b ON a.id = b.id + 1
            WHERE a.id < 4 ORDER BY a.id";
        assert_contains(&plan(query), "Relations: (f.scan a) INNER JOIN (f.scan b)");
        assert_eq!(rows(query), "(2,v1) (3,v2)");
        let query = "SELECT count(*), max(id), max(v) FROM f.scan";
        assert_contains(&plan(query), "Relations: Aggregate on (f.scan)");
        assert_eq!(rows(query), "(10,10,v9)");
    }

    #[pg_test]
    fn whole_rows_and_rows_of_the_nullable_side() {
        run(ONLY_REMOTE_JOINS);
        let query = "SELECT a, b, b IS NULL FROM f.scan a LEFT JOIN f.scan b ON a.id = b.id - 9
            WHERE a.id IN (1, 2) ORDER BY a.id";
        assert_contains(&plan(query), "LEFT JOIN");
        assert_eq!(
            rows(query),
            "(\"(1,v1,0.25000000000000000000)\",\"(10,,)\",f) (\"(2,v2,0.50000000000000000000)\",,t)"
        );
    }

    #[pg_test]
    fn system_columns() {
        assert_eq!(
            rows("SELECT ctid, tableoid::regclass, id FROM f.scan WHERE id < 3"),
            "(\"(0,1)\",f.scan,1) (\"(0,2)\",f.scan,2)"
        );
        assert_eq!(rows("SELECT xmin, xmax, cmin FROM f.scan WHERE id = 1"), "(0,0,0)");
    }

    #[pg_test]
    fn a_query_that_needs_no_column() {
        assert_eq!(rows("SELECT 'x' FROM f.scan LIMIT 2"), "(x) (x)");
        assert_eq!(rows("SELECT count(*) FROM f.no_columns"), "(0)");
    }

    #[pg_test]
    fn a_cursor_goes_on_behind_a_block_that_failed() {
        run("CREATE FUNCTION pg_temp.walk() RETURNS text LANGUAGE plpgsql AS $$
             DECLARE c CURSOR FOR SELECT number FROM f.scan_by_two; n int; seen text := '';
             BEGIN
                 OPEN c;
                 FOR i IN 1..5 LOOP
                     FETCH c INTO n;
                     seen := seen || n;
                     BEGIN
                         PERFORM 1 / (SELECT count(*) - 10 FROM f.scan);
                     EXCEPTION WHEN division_by_zero THEN
                         seen := seen || '!';
                     END;
                 END LOOP;
                 RETURN seen;
             END $$");
        assert_eq!(text("SELECT pg_temp.walk()"), "1!2!3!4!5!");
    }

    #[pg_test]
    fn two_scans_share_a_connection() {
        run("SET LOCAL enable_hashjoin = off; SET LOCAL enable_nestloop = off");
        let query = "SELECT count(*) FROM f.scan_by_two a JOIN f.scan_by_two b
            ON a.number = b.number WHERE random() >= 0 AND length(a.v || b.v) < random() + 100";
        assert_eq!(rows(query), "(9)");
    }
}
