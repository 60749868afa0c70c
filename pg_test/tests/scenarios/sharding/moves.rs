//! A partition moves to another server.

use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};

use pg_test::oracle::{assert_settled, expect_error, one};
use pg_test::{DEADLINE, Fault, Fleet, Point, wait_until};

use crate::sharding::{ORDERS, orders, tables_on};
use crate::support::{Busy, Outcome, in_background, run_until, start, wait_for_lock};

/// A row whose COMMIT PREPARED has not arrived yet is in no snapshot, and its table must not be
/// dropped before it is. Red with the statements that the book gave for a move (INSERT … SELECT,
/// then TRUNCATE): they have lost it.
#[test]
fn a_row_that_is_still_to_be_delivered_moves_too() -> Outcome {
    let fleet = Fleet::start_proxied()?;
    let mut session = fleet.session()?;
    session.batch_execute(ORDERS)?;
    session.batch_execute(
        "SELECT FROM pg_fdw_xacts_distribute('orders', 'customer', '{shard1,shard2}', 2)",
    )?;
    let customer: i32 = one(&mut session, "SELECT min(customer) FROM orders_0")?;
    session.batch_execute(&format!(
        "BEGIN; INSERT INTO orders VALUES (5000, {customer}, 1); INSERT INTO ft2 VALUES (1, 'x')"
    ))?;
    fleet.commit_undelivered(session, 1)?;
    let delivery = fleet.proxy(1).inject(Fault::hold(Point::Statement, "COMMIT PREPARED"));
    fleet.reconnect(1);
    delivery.wait()?;

    let call = "SELECT FROM pg_fdw_xacts_move_partition('orders_0', 'shard2')";
    let moving = in_background(fleet.session()?, call);
    wait_for_lock(&fleet, 1)?;
    delivery.release();
    let (mut session, result) = moving.join();
    result?;
    assert_eq!(orders(&mut session)?, 1001);
    assert_eq!(tables_on(&fleet, 1)?, [""; 0]);
    assert_settled(&fleet);
    Ok(())
}

#[test]
fn a_partition_moves_to_and_fro_while_others_write() -> Outcome {
    let (fleet, mut session) = start()?;
    session.batch_execute(ORDERS)?;
    session.batch_execute(
        "SELECT FROM pg_fdw_xacts_distribute('orders', 'customer', '{shard1,shard2}', 2)",
    )?;
    let (next, written, moves) = (AtomicI32::new(1001), AtomicUsize::new(0), AtomicUsize::new(0));
    let writer = || -> Busy<'_> {
        let mut session = fleet.session().expect("a session");
        let (next, written) = (&next, &written);
        Box::new(move |stop| {
            while !stop.load(Ordering::Relaxed) {
                let id = next.fetch_add(1, Ordering::Relaxed);
                session.execute("INSERT INTO orders VALUES ($1, $1 % 100, 0)", &[&id])?;
                written.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        })
    };
    let mover: Busy<'_> = {
        let (mut session, moves) = (fleet.session()?, &moves);
        Box::new(move |stop| {
            for server in ["shard2", "shard1"].into_iter().cycle() {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                session.batch_execute(&format!(
                    "SELECT FROM pg_fdw_xacts_move_partition('orders_0', '{server}')"
                ))?;
                moves.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        })
    };
    let is_enough = || moves.load(Ordering::Relaxed) >= 2 && written.load(Ordering::Relaxed) >= 5;
    run_until(is_enough, vec![writer(), writer(), mover])?;
    assert_settled(&fleet);
    assert_eq!(orders(&mut session)?, 1000 + written.into_inner() as i64);
    Ok(())
}

#[test]
fn options_privileges_and_what_the_shard_has_added_are_kept() -> Outcome {
    let (fleet, mut session) = start()?;
    for number in 1..=2 {
        fleet.shard(number).client()?.batch_execute("CREATE ROLE auditor")?;
    }
    fleet.shard(1).client()?.batch_execute(
        "CREATE TABLE stored (\"Id\" int PRIMARY KEY, total int DEFAULT 7, twice int GENERATED ALWAYS AS (total * 2) STORED);
         CREATE INDEX by_total ON stored (total DESC);
         GRANT SELECT ON stored TO auditor",
    )?;
    session.batch_execute(
        "CREATE ROLE reader; CREATE ROLE owner;
         CREATE TABLE sale (id int, total int, twice int GENERATED ALWAYS AS (total * 2) STORED) PARTITION BY RANGE (id);
         CREATE FOREIGN TABLE sale_1 PARTITION OF sale FOR VALUES FROM (0) TO (1000)
             SERVER shard1 OPTIONS (table_name 'stored', fetch_size '50');
         ALTER FOREIGN TABLE sale_1 ALTER id OPTIONS (column_name 'Id')",
    )?;
    session.batch_execute(
        "GRANT SELECT (id) ON sale_1 TO reader;
         ALTER FOREIGN TABLE sale_1 OWNER TO owner;
         INSERT INTO sale (id, total) SELECT n, n FROM generate_series(1, 500) n;
         SELECT FROM pg_fdw_xacts_move_partition('sale_1', 'shard2')",
    )?;
    let sum: i64 = one(&mut session, "SELECT sum(twice) + sum(id) FROM sale")?;
    assert_eq!(sum, 3 * 500 * 501 / 2);
    let here: String = one(
        &mut session,
        "SELECT concat_ws(' ', relowner::regrole, has_column_privilege('reader', oid, 'id', 'SELECT'),
             (SELECT string_agg(o, ' ' ORDER BY o) FROM pg_foreign_table, unnest(ftoptions) o WHERE ftrelid = c.oid),
             (SELECT attfdwoptions FROM pg_attribute WHERE attrelid = c.oid AND attname = 'id'))
         FROM pg_class c WHERE relname = 'sale_1'",
    )?;
    assert_eq!(here, "owner t fetch_size=50 schema_name=public table_name=stored {column_name=Id}");
    let there: String = one(
        &mut fleet.shard(2).client()?,
        "SELECT concat_ws(' ', has_table_privilege('auditor', 'stored', 'SELECT'), pg_get_indexdef('by_total'::regclass),
             (SELECT pg_get_expr(adbin, adrelid) FROM pg_attrdef WHERE adrelid = 'stored'::regclass AND adnum = 2))",
    )?;
    assert_eq!(there, "t CREATE INDEX by_total ON public.stored USING btree (total DESC) 7");
    assert_eq!(tables_on(&fleet, 1)?, [""; 0]);
    Ok(())
}

#[test]
fn a_local_partition_goes_out_and_its_triggers_do_not_fire() -> Outcome {
    let (fleet, mut session) = start()?;
    session.batch_execute(
        "CREATE TABLE event (day date NOT NULL, n serial) PARTITION BY RANGE (day);
         CREATE TABLE event_old PARTITION OF event FOR VALUES FROM (MINVALUE) TO ('2024-01-01');
         CREATE TABLE event_new PARTITION OF event DEFAULT;
         ALTER TABLE event_old ADD PRIMARY KEY (n);
         CREATE INDEX ON event (day);
         CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''fired''; END';
         INSERT INTO event SELECT date '2020-01-01' + n FROM generate_series(1, 2000) n;
         CREATE TRIGGER refuse AFTER INSERT ON event FOR EACH ROW EXECUTE FUNCTION refuse();
         SELECT FROM pg_fdw_xacts_move_partition('event_old', 'shard1');
         SELECT FROM pg_fdw_xacts_move_partition('event_new', 'shard2')",
    )?;
    assert_eq!(one::<i64>(&mut session, "SELECT sum(n) FROM event")?, 2_001_000);
    assert!(session.batch_execute("INSERT INTO event VALUES ('2020-01-01')").is_err());
    assert_eq!(tables_on(&fleet, 1)?, ["event_old"]);
    assert_eq!(tables_on(&fleet, 2)?, ["event_new"]);
    Ok(())
}

/// The one that comes second finds another table than it was called for.
#[test]
fn two_who_do_the_same_at_once_do_it_once() -> Outcome {
    let (fleet, mut session) = start()?;
    session.batch_execute(ORDERS)?;
    for call in [
        "SELECT FROM pg_fdw_xacts_distribute('orders', 'customer', '{shard1}', 1)",
        "SELECT FROM pg_fdw_xacts_move_partition('orders_0', 'shard2')",
    ] {
        session.batch_execute("BEGIN")?;
        session.batch_execute(call)?;
        let second = in_background(fleet.session()?, call);
        let mut observer = fleet.session()?;
        wait_until("the second waits", DEADLINE, || {
            one(&mut observer, "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)")
        })?;
        session.batch_execute("COMMIT")?;
        expect_error(second.join().1, "55000");
        assert_eq!(orders(&mut session)?, 1000);
    }
    assert_eq!(tables_on(&fleet, 2)?, ["orders_0"]);
    assert_settled(&fleet);
    Ok(())
}

/// Red: a moved partition had the defaults and constraints of its parent only.
#[test]
fn what_only_the_partition_has_here_is_kept() -> Outcome {
    let fleet = Fleet::start()?;
    let mut session = fleet.session()?;
    fleet.shard(1).client()?.batch_execute("CREATE TABLE p1 (id int, v text, w text, n int)")?;
    session.batch_execute(
        "CREATE TABLE p (id int, v text, w text DEFAULT 'w', n int NOT NULL CHECK (n > 0))
             PARTITION BY LIST (id);
         CREATE FOREIGN TABLE p1 PARTITION OF p FOR VALUES IN (1) SERVER shard1;
         ALTER FOREIGN TABLE p1 ALTER v SET DEFAULT 'own', ALTER w DROP DEFAULT, ALTER v SET NOT NULL,
             ADD CONSTRAINT own CHECK (n < 10);
         COMMENT ON FOREIGN TABLE p1 IS 'a table'; COMMENT ON COLUMN p1.v IS 'a column'",
    )?;
    let facts = "SELECT concat(string_agg(concat_ws(' ', attname, attnotnull, pg_get_expr(adbin, adrelid),
                 col_description(attrelid, attnum)), ', ' ORDER BY attnum), obj_description('p1'::regclass),
             (SELECT string_agg(conname || coninhcount || pg_get_constraintdef(oid), ', ' ORDER BY conname)
                 FROM pg_constraint WHERE conrelid = 'p1'::regclass AND contype = 'c'))
         FROM pg_attribute LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
         WHERE attrelid = 'p1'::regclass AND attnum > 0";
    let before: String = one(&mut session, facts)?;
    session.batch_execute("SELECT pg_fdw_xacts_move_partition('p1', 'shard2')")?;
    assert_eq!(one::<String>(&mut session, facts)?, before);
    Ok(())
}
