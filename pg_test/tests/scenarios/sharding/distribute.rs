//! An ordinary table becomes one that is spread over servers.

use pg_test::oracle::{assert_settled, expect_error, one};
use postgres::Client;

use crate::sharding::{ORDERS, orders, steps, tables_on};
use crate::support::{Outcome, start};

/// Everything that a table can have and that moves with it.
const RICH: &str = "
    CREATE TABLE product (id int PRIMARY KEY, name text NOT NULL);
    INSERT INTO product SELECT n, 'product ' || n FROM generate_series(1, 10) n;
    SELECT FROM pg_fdw_xacts_replicate('product', '{shard1,shard2}');
    CREATE ROLE reader;
    CREATE TABLE sale (
        id bigserial,
        customer int NOT NULL,
        code text COLLATE \"C\" DEFAULT 'none',
        total numeric(10,2) CHECK (total >= 0),
        tax numeric GENERATED ALWAYS AS (total * 0.2) STORED,
        product int REFERENCES product,
        PRIMARY KEY (customer, id)
    ) WITH (fillfactor = 80);
    ALTER TABLE sale ADD COLUMN gone int;
    ALTER TABLE sale DROP COLUMN gone;
    CREATE INDEX ON sale (lower(code)) WHERE total > 10;
    COMMENT ON TABLE sale IS 'what was sold';
    GRANT SELECT ON sale TO reader;
    INSERT INTO sale (customer, total, product)
        SELECT n % 50, n, 1 + n % 10 FROM generate_series(1, 1000) n";

const SALES: &str =
    "SELECT count(*)::text || ' ' || sum(total) || ' ' || sum(tax) || ' ' || max(id) FROM sale";

const CALL: &str = "pg_fdw_xacts_distribute('sale', 'customer', '{shard1,shard2}', 4";

#[test]
fn a_table_goes_with_its_rows_constraints_and_indexes() -> Outcome {
    let (fleet, mut session) = start()?;
    session.batch_execute(RICH)?;
    let before: String = one(&mut session, SALES)?;

    // What is only told is what will be done, and nothing of it is done.
    let told = steps(&mut session, &format!("{CALL}, dry_run => true)"))?;
    assert_eq!(tables_on(&fleet, 1)?, ["product"]);
    let kind: String =
        one(&mut session, "SELECT relkind::text FROM pg_class WHERE relname = 'sale'")?;
    assert_eq!(kind, "r");

    assert_eq!(steps(&mut session, &format!("{CALL})"))?, told);
    assert_settled(&fleet);
    assert_eq!(one::<String>(&mut session, SALES)?, before);
    assert_eq!(tables_on(&fleet, 1)?, ["product", "sale_0", "sale_2"]);
    assert_eq!(tables_on(&fleet, 2)?, ["product", "sale_1", "sale_3"]);
    assert_table_on_shard(&mut fleet.shard(1).client()?)?;

    // The defaults, the sequence, the comment and the privileges are the coordinator's.
    let (id, code): (i64, String) = {
        let row = session.query_one(
            "INSERT INTO sale (customer, total, product) VALUES (1, 5, 1) RETURNING id, code",
            &[],
        )?;
        (row.get(0), row.get(1))
    };
    assert_eq!((id, code.as_str()), (1001, "none"));
    let kept: bool = one(
        &mut session,
        "SELECT obj_description('sale'::regclass) = 'what was sold' AND has_table_privilege('reader', 'sale', 'SELECT')
             AND pg_get_serial_sequence('sale', 'id') = 'public.sale_id_seq'",
    )?;
    assert!(kept);
    // The constraints are the shards'.
    for (values, sqlstate) in
        [("1, 1, 1001", "23505"), ("-1, 1, 5000", "23514"), ("1, 99, 5000", "23503")]
    {
        let insert =
            format!("INSERT INTO sale (total, product, id, customer) VALUES ({values}, 1)");
        expect_error(session.batch_execute(&insert), sqlstate);
    }
    Ok(())
}

/// Columns, constraints and indexes of a partition's table, in the words of the shard.
fn assert_table_on_shard(shard: &mut Client) -> Outcome {
    let found: String = one(
        shard,
        "SELECT string_agg(line, E'\\n' ORDER BY line) FROM (
             SELECT concat_ws(' ', attname, format_type(atttypid, atttypmod), attnotnull, attcollation::regcollation,
                 pg_get_expr(adbin, adrelid))
             FROM pg_attribute LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
             WHERE attrelid = 'sale_0'::regclass AND attnum > 0
             UNION ALL SELECT conname || ' ' || pg_get_constraintdef(oid) FROM pg_constraint
             WHERE conrelid = 'sale_0'::regclass AND contype <> 'n'
             UNION ALL SELECT pg_get_indexdef(indexrelid) FROM pg_index
             WHERE indrelid = 'sale_0'::regclass AND NOT indisprimary
             UNION ALL SELECT reloptions::text FROM pg_class WHERE oid = 'sale_0'::regclass) lines (line)",
    )?;
    let expected = "CREATE INDEX sale_0_lower_idx ON public.sale_0 USING btree (lower(code)) WHERE (total > (10)::numeric)\n\
         code text f \"C\"\n\
         customer integer t -\n\
         id bigint t -\n\
         product integer f -\n\
         sale_0_pkey PRIMARY KEY (customer, id)\n\
         sale_product_fkey FOREIGN KEY (product) REFERENCES product(id)\n\
         sale_total_check CHECK ((total >= (0)::numeric))\n\
         tax numeric f - (total * 0.2)\n\
         total numeric(10,2) f -\n\
         {fillfactor=80}";
    let sorted = |text: &str| {
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(sorted(&found), sorted(expected));
    Ok(())
}

#[test]
fn a_table_goes_to_ranges_of_its_key() -> Outcome {
    let (fleet, mut session) = start()?;
    session.batch_execute(
        "CREATE TABLE event (day date, n int GENERATED ALWAYS AS IDENTITY, PRIMARY KEY (day, n));
         INSERT INTO event SELECT date '2024-01-01' + n % 366 FROM generate_series(0, 731) n",
    )?;
    session.batch_execute(
        "SELECT FROM pg_fdw_xacts_distribute('event', 'day', '{shard1,shard2,shard2}',
             bounds => '{2024-07-01,2025-01-01}')",
    )?;
    let counts: Vec<i64> = session
        .query("SELECT rows FROM (SELECT tableoid::regclass::text AS t, count(*) AS rows FROM event GROUP BY 1) x ORDER BY t", &[])?
        .iter()
        .map(|row| row.get(0))
        .collect();
    assert_eq!(counts, [364, 368]);
    assert_eq!(tables_on(&fleet, 2)?, ["event_1", "event_2"]);
    // Identity goes on where it was, and a year that nobody thought of has its partition.
    let n: i32 = one(&mut session, "INSERT INTO event VALUES ('2031-01-01') RETURNING n")?;
    assert_eq!(n, 733);
    Ok(())
}

#[test]
fn a_distribution_is_rolled_back_with_its_transaction() -> Outcome {
    let (fleet, mut session) = start()?;
    session.batch_execute(ORDERS)?;
    session.batch_execute(
        "BEGIN;
         SELECT FROM pg_fdw_xacts_distribute('orders', 'customer', '{shard1,shard2}', 2);
         INSERT INTO orders VALUES (2000, 1, 1);
         ROLLBACK",
    )?;
    assert_eq!(orders(&mut session)?, 1000);
    assert!(tables_on(&fleet, 1)?.is_empty() && tables_on(&fleet, 2)?.is_empty());
    // An index that cannot be built there fails all of it.
    fleet.shard(2).client()?.batch_execute("CREATE TABLE orders_1 ()")?;
    let call = "SELECT FROM pg_fdw_xacts_distribute('orders', 'customer', '{shard1,shard2}', 2)";
    expect_error(session.batch_execute(call), "42P07");
    assert_eq!(orders(&mut session)?, 1000);
    assert!(tables_on(&fleet, 1)?.is_empty());
    assert_settled(&fleet);
    Ok(())
}
