//! A small table that is the same on all shards.

use pg_test::oracle::{assert_settled, expect_error, one};
use pg_test::proxy::NewConnections;
use pg_test::{DEADLINE, Fault, Fleet, Point, StopMode, wait_until};
use postgres::Client;

use crate::support::{Outcome, in_background, start};

const PRODUCT: &str = "
    CREATE TABLE product (id int PRIMARY KEY, name text, price numeric,
        tax numeric GENERATED ALWAYS AS (price * 0.2) STORED);
    INSERT INTO product SELECT n, 'product ' || n, n FROM generate_series(1, 20) n;
    SELECT FROM pg_fdw_xacts_replicate('product', '{shard1,shard2}')";

const CONTENT: &str = "SELECT coalesce(string_agg(p::text, ' ' ORDER BY id), '') FROM product p";

/// All copies have what the table has, which is returned.
#[track_caller]
fn assert_same(fleet: &Fleet) -> String {
    let content = |mut session: Client| one::<String>(&mut session, CONTENT).expect("the content");
    let here = content(fleet.session().expect("a session"));
    for number in 1..=2 {
        assert_eq!(content(fleet.shard(number).client().expect("a session")), here);
    }
    here
}

#[test]
fn whatever_is_written_is_on_all_shards() -> Outcome {
    let (fleet, mut session) = start()?;
    session.batch_execute(PRODUCT)?;
    let mut last = assert_same(&fleet);
    for write in [
        "INSERT INTO product VALUES (21, NULL, NULL), (22, 'two', 2)",
        "UPDATE product SET id = id + 100, price = price * 2 WHERE id IN (1, 2)",
        "DELETE FROM product WHERE id = 3",
        "INSERT INTO product VALUES (4, 'four', 4) ON CONFLICT (id) DO UPDATE SET name = 'changed'",
        "BEGIN; DELETE FROM product WHERE id = 5; SAVEPOINT s; DELETE FROM product; ROLLBACK TO s; COMMIT",
        "SET session_replication_role = replica; DELETE FROM product WHERE id = 6; RESET session_replication_role",
        "ALTER TABLE product ADD COLUMN since int; ALTER FOREIGN TABLE product_shard1 ADD COLUMN since int;
         ALTER FOREIGN TABLE product_shard2 ADD COLUMN since int;
         SELECT pg_fdw_xacts_exec(server, 'ALTER TABLE product ADD COLUMN since int')
             FROM pg_fdw_xacts_copies('product');
         UPDATE product SET since = 2024",
        "TRUNCATE product",
    ] {
        session.batch_execute(write)?;
        let now = assert_same(&fleet);
        assert_ne!(now, last, "{write}");
        last = now;
    }
    session.batch_execute("BEGIN; INSERT INTO product VALUES (1); ROLLBACK")?;
    assert_eq!(assert_same(&fleet), "");
    assert_settled(&fleet);
    Ok(())
}

#[test]
fn what_cannot_be_written_on_one_shard_is_written_nowhere() -> Outcome {
    let mut fleet = Fleet::start_proxied()?;
    let mut session = fleet.session()?;
    session.batch_execute(PRODUCT)?;
    let before = assert_same(&fleet);
    fleet.shard_mut(2).stop(StopMode::Immediate)?;
    fleet.proxy(2).set_new_connections(NewConnections::Refused);
    assert!(fleet.session()?.batch_execute("DELETE FROM product").is_err());
    fleet.shard_mut(2).start()?;
    fleet.reconnect(2);
    assert_eq!(assert_same(&fleet), before);

    // A copy that somebody has changed is found by the next write to the row.
    fleet.shard(2).client()?.batch_execute("DELETE FROM product WHERE id = 7")?;
    for write in ["UPDATE product SET price = 0 WHERE id = 7", "DELETE FROM product WHERE id = 7"] {
        let error = expect_error(session.batch_execute(write), "22000");
        assert!(error.message().starts_with("public.product_shard2 has 0 rows"), "{error:?}");
    }
    fleet.shard(2).client()?.batch_execute("INSERT INTO product VALUES (7, 'product 7', 7)")?;
    assert_eq!(assert_same(&fleet), before);
    Ok(())
}

#[test]
fn a_copy_more_and_what_is_refused() -> Outcome {
    let (_fleet, mut session) = start()?;
    session.batch_execute(
        "CREATE TABLE kind (id int PRIMARY KEY);
         CREATE TABLE product (id int PRIMARY KEY, kind int REFERENCES kind, like_this int REFERENCES product);
         INSERT INTO kind VALUES (1); INSERT INTO product VALUES (1, 1, NULL), (2, 1, 1)",
    )?;
    let replicate = |table: &str, servers: &str| {
        format!("SELECT FROM pg_fdw_xacts_replicate('{table}', '{{{servers}}}')")
    };
    session.batch_execute(&replicate("product", "shard1"))?;
    expect_error(session.batch_execute(&replicate("product", "shard2,shard1")), "42P07");
    session.batch_execute(&replicate("product", "shard2"))?;
    session
        .batch_execute("INSERT INTO product VALUES (3, 1, 2); DELETE FROM product WHERE id = 3")?;
    session.batch_execute(
        "CREATE TABLE keyless (id int); CREATE UNLOGGED TABLE unlogged (id int PRIMARY KEY);
         CREATE TABLE secret (id int PRIMARY KEY); ALTER TABLE secret ENABLE ROW LEVEL SECURITY;
         CREATE TABLE fine (id int PRIMARY KEY)",
    )?;
    for (table, servers, sqlstate) in [
        ("keyless", "shard1", "42809"),
        ("unlogged", "shard1", "42809"),
        ("ft1", "shard2", "42809"),
        // Its policies would not hold for the copies, where the privileges are the same.
        ("secret", "shard2", "0A000"),
        ("fine", "", "22023"),
        ("fine", "nosuch", "42704"),
    ] {
        expect_error(session.batch_execute(&replicate(table, servers)), sqlstate);
    }
    Ok(())
}

/// The copies are written row by row, so that what is true at the end of a statement is not true
/// all the time. Red with foreign keys on the copies: each of these failed.
#[test]
fn rows_that_refer_to_each_other_are_written_in_any_order() -> Outcome {
    let (fleet, mut session) = start()?;
    session.batch_execute(
        "CREATE TABLE kind (id int PRIMARY KEY, place int UNIQUE DEFERRABLE);
         CREATE TABLE product (id int PRIMARY KEY, kind int REFERENCES kind ON DELETE CASCADE,
             part_of int REFERENCES product ON DELETE CASCADE ON UPDATE CASCADE);
         INSERT INTO kind VALUES (1, 1), (2, 2);
         INSERT INTO product VALUES (1, 1, NULL), (2, 1, 1), (3, 2, 3), (4, 2, 3);
         SELECT FROM pg_fdw_xacts_replicate('product', '{shard1,shard2}');
         SELECT FROM pg_fdw_xacts_replicate('kind', '{shard1,shard2}')",
    )?;
    for (write, after) in [
        ("INSERT INTO product VALUES (6, 2, 5), (5, 2, NULL)", "(6,2,5)"),
        ("UPDATE product SET id = 7 WHERE id = 3", "(7,2,7)"),
        ("DELETE FROM product WHERE id IN (5, 6)", "(4,2,7) (7,2,7)"),
        ("UPDATE kind SET place = place + 1", "(1,1,)"),
        ("DELETE FROM kind WHERE id = 1", "(4,2,7) (7,2,7)"),
        ("TRUNCATE kind, product", ""),
    ] {
        session.batch_execute(write)?;
        let now = assert_same(&fleet);
        assert!(now.contains(after), "{write}: {now}");
        for copy in ["kind_shard1", "kind_shard2"] {
            let differ: i64 = one(
                &mut session,
                &format!("SELECT count(*) FROM (TABLE kind EXCEPT TABLE {copy}) d"),
            )?;
            assert_eq!(differ, 0, "{write}: {copy}");
        }
    }
    Ok(())
}

/// Red when the triggers that write to the copies fired after it: a copy kept the older row.
#[test]
fn a_trigger_may_write_its_row_again() -> Outcome {
    let (fleet, mut session) = start()?;
    session.batch_execute(PRODUCT)?;
    session.batch_execute(
        "CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             UPDATE product SET name = name || '!' WHERE id = NEW.id; RETURN NULL; END $$;
         CREATE TRIGGER a_touch AFTER INSERT OR UPDATE ON product FOR EACH ROW
             WHEN (pg_trigger_depth() = 0) EXECUTE FUNCTION touch();
         UPDATE product SET name = 'new' WHERE id = 1; INSERT INTO product VALUES (21, 'one')",
    )?;
    let content = assert_same(&fleet);
    assert!(content.contains("new!") && content.contains("one!"), "{content}");
    Ok(())
}

/// A row whose COMMIT PREPARED has not arrived at a copy yet is in no snapshot there. Red before:
/// the copy had "0 rows instead of one".
#[test]
fn a_row_that_is_still_to_be_delivered_is_waited_for() -> Outcome {
    let fleet = Fleet::start_proxied()?;
    let mut session = fleet.session()?;
    session.batch_execute(PRODUCT)?;
    session.batch_execute("BEGIN; INSERT INTO product VALUES (21)")?;
    fleet.commit_undelivered(session, 1)?;
    let delivery = fleet.proxy(1).inject(Fault::hold(Point::Statement, "COMMIT PREPARED"));
    fleet.reconnect(1);
    delivery.wait()?;

    let writing =
        in_background(fleet.session()?, "UPDATE product SET name = 'later' WHERE id = 21");
    let mut other = fleet.session()?;
    let waits = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event = 'PgSleep')";
    wait_until("the UPDATE waits", DEADLINE, || one(&mut other, waits))?;
    delivery.release();
    writing.join().1?;
    let content = assert_same(&fleet);
    assert!(content.contains("later"), "{content}");
    Ok(())
}
