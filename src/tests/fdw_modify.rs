//! Modifications: direct and row by row, what they return, and what the local table adds to them.

#[pgrx::pg_schema]
mod tests {
    use pgrx::pg_test;

    use crate::tests::{ONLY_REMOTE_JOINS, assert_contains, failure, plan, returned, rows, run};

    #[pg_test]
    fn an_update_that_the_participant_can_do_alone() {
        let update = "UPDATE f.direct SET v = v || '!' WHERE id <= 2";
        assert_contains(&plan(update), "Foreign Update on f.direct");
        run(update);
        assert_eq!(
            returned(
                "UPDATE f.direct SET v = v || '?' WHERE id < 3 RETURNING id, v, ctid IS NOT NULL, tableoid::regclass"
            ),
            "(1,v1!?,t,f.direct) (2,v2!?,t,f.direct)"
        );
        assert_eq!(returned("UPDATE f.direct SET v = 'x' WHERE id > 4 RETURNING 1"), "(1) (1)");
        assert_eq!(returned("DELETE FROM f.direct WHERE id = 3 RETURNING *"), "(3,v3)");
        assert_eq!(returned("DELETE FROM f.direct WHERE id = 77 RETURNING *"), "");
        assert_eq!(
            rows("SELECT * FROM f.direct ORDER BY id"),
            "(1,v1!?) (2,v2!?) (4,v4) (5,x) (6,x)"
        );
    }

    #[pg_test]
    fn the_command_tag_counts_the_rows() {
        run("CREATE FUNCTION pg_temp.counts() RETURNS text LANGUAGE plpgsql AS $$
             DECLARE n bigint; seen text := '';
             BEGIN
                 UPDATE f.rowwise SET v = 'a' WHERE id < 4;
                 GET DIAGNOSTICS n = ROW_COUNT; seen := seen || n;
                 UPDATE f.rowwise SET v = 'b' WHERE id < 3 AND random() >= 0;
                 GET DIAGNOSTICS n = ROW_COUNT; seen := seen || n;
                 DELETE FROM f.rowwise WHERE id = 6;
                 GET DIAGNOSTICS n = ROW_COUNT; seen := seen || n;
                 INSERT INTO f.rowwise VALUES (11, 'c'), (12, 'd');
                 GET DIAGNOSTICS n = ROW_COUNT; seen := seen || n;
                 RETURN seen;
             END $$");
        assert_eq!(rows("SELECT pg_temp.counts()"), "(3212)");
    }

    #[pg_test]
    fn row_by_row() {
        // A volatile condition is evaluated here.
        let update = "UPDATE f.rowwise SET v = v || '!' WHERE random() >= 0 AND id <> 4";
        assert_contains(&plan(update), "WHERE ctid = $1");
        assert_eq!(
            returned(&format!("{update} RETURNING id, v, ctid IS NOT NULL")),
            "(1,v1!,t) (2,v2!,t) (3,v3!,t) (5,v5!,t) (6,v6!,t)"
        );
        run("DELETE FROM f.rowwise WHERE random() >= 0 AND id > 5");
        assert_eq!(
            returned("DELETE FROM f.rowwise WHERE random() >= 0 AND id = 5 RETURNING v"),
            "(v5!)"
        );
        assert_eq!(
            returned(
                "INSERT INTO f.rowwise VALUES (8, NULL), (9, 'nine') RETURNING *, tableoid::regclass"
            ),
            "(8,,f.rowwise) (9,nine,f.rowwise)"
        );
        assert_eq!(
            rows("SELECT * FROM f.rowwise ORDER BY id"),
            "(1,v1!) (2,v2!) (3,v3!) (4,v4) (8,) (9,nine)"
        );
    }

    #[pg_test]
    fn a_direct_update_of_a_join_returns_both_sides() {
        run(ONLY_REMOTE_JOINS);
        let update =
            "UPDATE f.joined j SET v = s.v || '+' FROM f.scan s WHERE s.id = j.id AND j.id < 3
            RETURNING j.*, j.ctid IS NOT NULL, s.n, j";
        assert_contains(&plan(update), "Foreign Update");
        assert_eq!(
            returned(update),
            "(1,v1+,t,0.25000000000000000000,\"(1,v1+)\") (2,v2+,t,0.50000000000000000000,\"(2,v2+)\")"
        );
        assert_eq!(
            returned(
                "DELETE FROM f.joined j USING f.scan s WHERE s.id = j.id AND s.v = 'v3' RETURNING s.id, j.v"
            ),
            "(3,v3)"
        );
    }

    #[pg_test]
    fn on_conflict_do_nothing() {
        assert_eq!(
            returned(
                "INSERT INTO f.conflict VALUES (1, 'new'), (2, 'new') ON CONFLICT DO NOTHING RETURNING *"
            ),
            "(2,new)"
        );
        assert_eq!(rows("SELECT * FROM f.conflict ORDER BY id"), "(1,there) (2,new)");
    }

    #[pg_test]
    fn generated_columns_are_left_to_the_participant() {
        // Batches of three and one of two.
        run("INSERT INTO f.generated (a) SELECT i FROM generate_series(1, 8) i");
        run("UPDATE f.generated SET a = a + 10 WHERE a = 8");
        run("UPDATE f.generated SET a = a + 10 WHERE a = 7 AND random() >= 0");
        assert_eq!(
            rows("SELECT a, g, v FROM f.generated ORDER BY a"),
            "(1,2,ours) (2,4,ours) (3,6,ours) (4,8,ours) (5,10,ours) (6,12,ours) \
             (17,34,ours) (18,36,ours)"
        );
    }

    #[pg_test]
    fn row_triggers_of_the_foreign_table() {
        run("INSERT INTO f.triggered (id, v) VALUES (1, 'a'), (2, 'b')");
        run("UPDATE f.triggered SET v = 'c' WHERE id = 1");
        run("DELETE FROM f.triggered WHERE id = 2");
        assert_eq!(rows("SELECT * FROM f.triggered"), "(1,c,\"by UPDATE\")");
        assert_eq!(
            rows("SELECT line FROM r.trace ORDER BY at"),
            "(\"BEFORE INSERT (1,a,\"\"by INSERT\"\")\") (\"BEFORE INSERT (2,b,\"\"by INSERT\"\")\") \
             (\"AFTER INSERT (1,a,\"\"by INSERT\"\")\") (\"AFTER INSERT (2,b,\"\"by INSERT\"\")\") \
             (\"BEFORE UPDATE (1,a,\"\"by INSERT\"\") (1,c,\"\"by UPDATE\"\")\") \
             (\"AFTER UPDATE (1,a,\"\"by INSERT\"\") (1,c,\"\"by UPDATE\"\")\") \
             (\"BEFORE DELETE (2,b,\"\"by INSERT\"\")\") (\"AFTER DELETE (2,b,\"\"by INSERT\"\")\")"
        );
    }

    #[pg_test]
    fn a_view_with_check_option() {
        run("INSERT INTO f.checked_view VALUES (1, 'a')");
        assert_contains(&failure("INSERT INTO f.checked_view VALUES (10, 'b')"), "44000");
        assert_contains(&failure("UPDATE f.checked_view SET id = 11"), "44000");
        assert_eq!(rows("SELECT * FROM f.checked"), "(1,a)");
    }

    #[pg_test]
    fn rows_are_routed_and_moved_to_a_foreign_partition() {
        assert_eq!(
            returned(
                "INSERT INTO f.root VALUES ('a', 1), ('b', 2) RETURNING id, v, tableoid::regclass"
            ),
            "(1,a,f.root_local) (2,b,f.routed)"
        );
        run("UPDATE f.root SET id = 3 WHERE id = 1");
        run("UPDATE f.root SET v = v || '!'");
        assert_eq!(
            rows("SELECT tableoid::regclass, * FROM f.root ORDER BY id"),
            "(f.routed,b!,2) (f.routed,a!,3)"
        );
        run("INSERT INTO f.root VALUES ('c', 1)");
        assert_contains(
            &failure("UPDATE f.root SET id = CASE id WHEN 1 THEN 3 ELSE 1 END"),
            "0A000\ncannot route tuples into foreign table to be updated \"routed\"",
        );
    }

    #[pg_test]
    fn batches_insert_every_row_once() {
        assert_contains(&plan("INSERT INTO f.batched SELECT 1, 'x'"), "Batch Size: 3");
        run("INSERT INTO f.batched SELECT i, 'v' || i FROM generate_series(1, 7) i");
        run("INSERT INTO f.batched SELECT i FROM generate_series(8, 8) i");
        assert_eq!(
            rows("SELECT count(*), sum(id), count(v), max(v) FROM f.batched"),
            "(8,36,7,v7)"
        );
        run("INSERT INTO f.no_columns DEFAULT VALUES");
        run("INSERT INTO f.no_columns SELECT FROM generate_series(1, 4)");
        assert_eq!(rows("SELECT count(*) FROM f.no_columns"), "(5)");
    }
}
