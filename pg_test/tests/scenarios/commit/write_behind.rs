//! `pg_fdw_xacts.write_behind`: an INSERT that has not waited for its answer fails where the answer
//! is taken, with the same error, and leaves the same behind.

use pg_test::Fleet;
use pg_test::oracle::{assert_settled, assert_usable, expect_error, one};
use postgres::error::DbError;
use postgres::{Client, SimpleQueryMessage};

use crate::support::{Outcome, start_with_rows};

/// An INSERT that the first shard refuses.
const DUPLICATE: &str = "INSERT INTO ft1 VALUES (1, 'again')";

fn behind(fleet: &Fleet) -> anyhow::Result<Client> {
    let mut session = fleet.session()?;
    session.batch_execute("SET pg_fdw_xacts.write_behind = on")?;
    Ok(session)
}

/// The error is that of [`DUPLICATE`], and says so.
fn assert_duplicate(error: &DbError) {
    let context = error.where_().unwrap_or_default();
    assert!(context.contains("INSERT INTO public.t(id, v)"), "{error:#?}");
    assert_eq!(error.constraint().or(Some("t_pkey")), Some("t_pkey"), "{error:#?}");
}

/// Whatever comes next of these has the answer taken, and reports it.
#[test]
fn a_failure_is_reported_by_what_next_has_an_answer() -> Outcome {
    let (fleet, _session) = start_with_rows()?;
    let mut session = behind(&fleet)?;
    for next in [
        "SELECT FROM ft1",
        "UPDATE ft1 SET v = 'y'",
        "INSERT INTO ft1 SELECT i, 'z' FROM generate_series(10, 12) i",
        "INSERT INTO ft1 VALUES (20, 'z') RETURNING id",
        "SELECT count(*) FROM ft2 JOIN ft1 USING (id)",
        "TRUNCATE ft1",
        "SELECT * FROM pg_fdw_xacts_exec('shard1', 'SELECT 1')",
        "DECLARE c CURSOR FOR SELECT FROM ft1; FETCH c",
        "DECLARE c CURSOR WITH HOLD FOR SELECT FROM ft1; COMMIT",
        "SAVEPOINT a",
        "COMMIT",
        "COMMIT AND CHAIN",
        "INSERT INTO lt VALUES (30); COMMIT",
        "INSERT INTO ft2 VALUES (30); COMMIT",
        "PREPARE TRANSACTION 'g'",
        "DO $$ BEGIN INSERT INTO ft1 VALUES (30); EXCEPTION WHEN division_by_zero THEN NULL; END $$",
    ] {
        session.batch_execute("BEGIN")?;
        session.batch_execute(DUPLICATE)?;
        assert_duplicate(&expect_error(session.batch_execute(next), "23505"));
        session.batch_execute("ROLLBACK")?;
        assert_usable(&mut session);
    }
    let rows = "SELECT (SELECT count(*) FROM ft1) + (SELECT count(*) FROM ft2)
                     + (SELECT count(*) FROM lt)";
    assert_eq!(one::<i64>(&mut session, rows)?, 6);
    assert_settled(&fleet);
    Ok(())
}

/// The count that is told is that of the statement.
#[test]
fn the_number_of_rows_is_told_at_once() -> Outcome {
    let (fleet, _session) = start_with_rows()?;
    let mut session = behind(&fleet)?;
    let mut transaction = session.transaction()?;
    assert_eq!(transaction.execute("INSERT INTO ft1 VALUES (4), (5), (6)", &[])?, 3);
    assert_eq!(transaction.execute("INSERT INTO ft1 VALUES ($1)", &[&7])?, 1);
    assert_eq!(one::<i64>(&mut fleet.session()?, "SELECT count(*) FROM ft1")?, 3);
    transaction.commit()?;
    assert_eq!(fleet.ids_on_shard(1)?, [1, 2, 3, 4, 5, 6, 7]);
    Ok(())
}

/// With RETURNING, ON CONFLICT, a trigger here that sees the row, COPY and INSERT ... SELECT
/// somebody needs the answer.
#[test]
fn where_the_answer_is_needed_it_is_waited_for() -> Outcome {
    let (fleet, mut owner) = start_with_rows()?;
    owner.batch_execute(
        "CREATE FUNCTION seen() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
         CREATE FOREIGN TABLE watched (id int, v text) SERVER shard1 OPTIONS (table_name 't');
         CREATE TRIGGER seen AFTER INSERT ON watched FOR EACH ROW EXECUTE FUNCTION seen();
         CREATE VIEW checked AS SELECT * FROM ft1 WHERE id > 0 WITH CHECK OPTION",
    )?;
    let mut session = behind(&fleet)?;
    for insert in [
        "INSERT INTO ft1 VALUES (1) RETURNING id",
        "INSERT INTO watched VALUES (1)",
        "INSERT INTO checked VALUES (1)",
        "INSERT INTO ft1 SELECT i FROM generate_series(1, 2) i",
        "EXPLAIN ANALYZE INSERT INTO ft1 VALUES (1)",
        "INSERT INTO ft1 VALUES (1)",
    ] {
        // The last one is a transaction of its own.
        let begin = if insert == "INSERT INTO ft1 VALUES (1)" { "SELECT" } else { "BEGIN" };
        session.batch_execute(begin)?;
        expect_error(session.batch_execute(insert), "23505");
        session.batch_execute("ROLLBACK")?;
    }
    session.batch_execute("BEGIN")?;
    assert_eq!(session.execute("INSERT INTO ft1 VALUES (1) ON CONFLICT DO NOTHING", &[])?, 0);
    session.batch_execute("COMMIT")?;
    Ok(())
}

/// A shard that keeps rows out, or writes others, without a failure of its own.
#[test]
fn a_shard_that_inserts_another_number_of_rows_fails_the_transaction() -> Outcome {
    let (fleet, _session) = start_with_rows()?;
    let mut shard = fleet.shard(1).client()?;
    let mut session = behind(&fleet)?;
    for keep_out in [
        "CREATE FUNCTION keep_out() RETURNS trigger LANGUAGE plpgsql AS
             'BEGIN IF new.id = 5 THEN RETURN NULL; END IF; RETURN new; END';
         CREATE TRIGGER keep_out BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION keep_out()",
        "DROP TRIGGER keep_out ON t;
         CREATE RULE keep_out AS ON INSERT TO t WHERE new.id = 5 DO INSTEAD NOTHING",
    ] {
        shard.batch_execute(keep_out)?;
        for end in ["COMMIT", "INSERT INTO ft2 VALUES (5); COMMIT", "SELECT FROM ft1"] {
            session.batch_execute("BEGIN; INSERT INTO ft1 VALUES (4)")?;
            session.batch_execute("INSERT INTO ft1 VALUES (5)")?;
            let error = expect_error(session.batch_execute(end), "HV000");
            assert!(error.message().contains("has inserted 0 rows instead of 1"), "{error:#?}");
            assert!(error.hint().is_some_and(|hint| hint.contains("write_behind")), "{error:#?}");
            session.batch_execute("ROLLBACK")?;
        }
        // On its own, as a simple query, it is told what the shard says.
        let told = session.simple_query("INSERT INTO ft1 VALUES (5)")?;
        assert!(matches!(told[..], [SimpleQueryMessage::CommandComplete(0)]));
        expect_error(session.execute("INSERT INTO ft1 VALUES (5)", &[]), "HV000");
    }
    assert_eq!(fleet.ids_on_shard(1)?, [1, 2, 3]);
    assert_eq!(fleet.ids_on_shard(2)?, [1, 2, 3]);
    assert_settled(&fleet);
    Ok(())
}

/// A block's own failure is its handler's. What was owed before the block fails the transaction all
/// the same if a handler inside has caught it.
#[test]
fn a_handler_catches_what_its_block_has_written_and_nothing_else() -> Outcome {
    let (fleet, _session) = start_with_rows()?;
    let mut session = behind(&fleet)?;
    session.batch_execute(
        "DO $$ BEGIN
             FOR i IN 1..5 LOOP
                 BEGIN
                     INSERT INTO ft1 VALUES (i);
                     INSERT INTO ft2 VALUES (i);
                 EXCEPTION WHEN unique_violation THEN
                     INSERT INTO lt VALUES (i);
                 END;
             END LOOP;
         END $$",
    )?;
    assert_eq!(fleet.ids_in_lt()?, [1, 2, 3]);
    assert_eq!(fleet.ids_on_shard(1)?, [1, 2, 3, 4, 5]);
    assert_eq!(fleet.ids_on_shard(2)?, [1, 2, 3, 4, 5]);
    for inside in ["INSERT INTO ft1 VALUES (10)", "PERFORM FROM ft1", "INSERT INTO lt VALUES (10)"]
    {
        let block = format!(
            "DO $$ BEGIN
                 {DUPLICATE};
                 BEGIN {inside}; EXCEPTION WHEN unique_violation THEN NULL; END;
                 INSERT INTO lt VALUES (11);
             END $$"
        );
        assert_duplicate(&expect_error(session.batch_execute(&block), "23505"));
    }
    assert_eq!(fleet.ids_in_lt()?, [1, 2, 3]);
    assert_eq!(fleet.ids_on_shard(1)?, [1, 2, 3, 4, 5]);
    assert_settled(&fleet);
    Ok(())
}

#[test]
fn a_savepoint_is_rolled_back_over_what_is_owed() -> Outcome {
    let (fleet, _session) = start_with_rows()?;
    let mut session = behind(&fleet)?;
    session.batch_execute("BEGIN; INSERT INTO ft1 VALUES (10)")?;
    for id in 20..60 {
        session.batch_execute("SAVEPOINT a")?;
        session.batch_execute(&format!("INSERT INTO ft1 VALUES ({id})"))?;
        if id % 3 == 0 {
            session.batch_execute(DUPLICATE)?;
        }
        session.batch_execute("ROLLBACK TO a; RELEASE a")?;
    }
    session.batch_execute("INSERT INTO ft1 VALUES (11)")?;
    session.batch_execute("COMMIT")?;
    assert_eq!(fleet.ids_on_shard(1)?, [1, 2, 3, 10, 11]);
    assert_settled(&fleet);
    Ok(())
}

#[test]
fn a_rollback_leaves_nothing_of_what_is_owed() -> Outcome {
    let (fleet, _session) = start_with_rows()?;
    let mut session = behind(&fleet)?;
    for id in 10..20 {
        session.batch_execute("BEGIN")?;
        session.batch_execute(&format!("INSERT INTO ft1 VALUES ({id})"))?;
        session.batch_execute(&format!("INSERT INTO ft2 VALUES ({id})"))?;
        session.batch_execute(if id % 2 == 0 { "ROLLBACK" } else { "ABORT AND CHAIN; COMMIT" })?;
    }
    session.batch_execute("DISCARD ALL")?;
    session.batch_execute("SET pg_fdw_xacts.write_behind = on")?;
    session.batch_execute("BEGIN; INSERT INTO ft1 VALUES (20); PREPARE TRANSACTION 'g'")?;
    session.batch_execute("ROLLBACK PREPARED 'g'")?;
    session.batch_execute("BEGIN; INSERT INTO ft1 VALUES (21); PREPARE TRANSACTION 'g'")?;
    session.batch_execute("COMMIT PREPARED 'g'")?;
    assert_eq!(fleet.ids_on_shard(1)?, [1, 2, 3, 21]);
    assert_eq!(fleet.ids_on_shard(2)?, [1, 2, 3]);
    assert_settled(&fleet);
    Ok(())
}

/// Constraints and limits of the shard that strike when it executes the statement, or later.
#[test]
fn whatever_the_shard_refuses_has_its_own_error() -> Outcome {
    let (fleet, _session) = start_with_rows()?;
    let mut shard = fleet.shard(1).client()?;
    shard.batch_execute(
        "ALTER TABLE t ADD CONSTRAINT few CHECK (id < 1000), ADD u int,
             ADD CONSTRAINT late UNIQUE (u) DEFERRABLE INITIALLY DEFERRED,
             ALTER v TYPE varchar(8);
         CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS
             'BEGIN IF new.id = 50 THEN PERFORM pg_sleep(60); END IF; RETURN new; END';
         CREATE TRIGGER slow BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION slow()",
    )?;
    let mut session = behind(&fleet)?;
    session.batch_execute("ALTER FOREIGN TABLE ft1 ADD u int")?;
    for (insert, code) in [
        ("INSERT INTO ft1 VALUES (1000)", "23514"),
        ("INSERT INTO ft1 VALUES (40, 'a longer text')", "22001"),
        ("INSERT INTO ft1 VALUES (40, '', 1), (41, '', 1)", "23505"),
        ("INSERT INTO ft1 VALUES (50)", "57014"),
    ] {
        if code == "57014" {
            // For this one only: on a busy machine others may take long, too.
            session.batch_execute(
                "ALTER SERVER shard1 OPTIONS (ADD options '-c statement_timeout=5s')",
            )?;
        }
        for before in ["", "INSERT INTO ft2 VALUES (40)"] {
            session.batch_execute("BEGIN")?;
            session.batch_execute(before)?;
            session.batch_execute(insert)?;
            expect_error(session.batch_execute("COMMIT"), code);
            assert_usable(&mut session);
        }
    }
    assert_eq!(fleet.ids_on_shard(1)?, [1, 2, 3]);
    assert_eq!(fleet.ids_on_shard(2)?, [1, 2, 3]);
    assert_settled(&fleet);
    Ok(())
}

/// Far more than sockets keep, in one transaction.
#[test]
fn what_is_owed_is_limited() -> Outcome {
    let (fleet, _session) = start_with_rows()?;
    let mut session = behind(&fleet)?;
    session.batch_execute(
        "DO $$ BEGIN FOR i IN 10..20009 LOOP INSERT INTO ft1 VALUES (i, 'x'); END LOOP; END $$",
    )?;
    session.batch_execute(
        "DO $$ DECLARE w text := repeat('x', 300000); BEGIN
             FOR i IN 10..109 LOOP INSERT INTO ft2 VALUES (i, w); END LOOP; END $$",
    )?;
    assert_eq!(fleet.ids_on_shard(1)?.len(), 20_003);
    assert_eq!(fleet.ids_on_shard(2)?.len(), 103);
    Ok(())
}

/// Numbers that a seed repeats.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 33) % limit
    }
}

/// The statements of a transaction, some of which fail.
fn script(random: &mut Random) -> Vec<String> {
    let mut script = Vec::new();
    if random.below(10) > 0 {
        script.push("BEGIN".to_owned());
    }
    for id in 10..12 + random.below(7) {
        let (table, id) = (format!("ft{}", 1 + random.below(2)), 10 * id);
        script.push(match random.below(16) {
            0..5 => format!("INSERT INTO {table} VALUES ({id}, 'x')"),
            5 => format!("INSERT INTO {table} VALUES ({id}, 'x'), ({id} + 1, 'x')"),
            6 => format!("INSERT INTO {table} VALUES (1, 'again')"),
            7 => format!("SELECT count(*) FROM {table}"),
            8 => format!("UPDATE {table} SET v = 'y' WHERE id >= 10"),
            9 | 10 => "SAVEPOINT s".to_owned(),
            11 => "ROLLBACK TO s".to_owned(),
            12 => "RELEASE s".to_owned(),
            13 => format!("INSERT INTO lt VALUES ({id})"),
            kind => format!(
                "DO $$ BEGIN
                     INSERT INTO {table} VALUES ({id});
                     BEGIN
                         INSERT INTO ft1 VALUES ({id} + 1);
                         INSERT INTO {table} VALUES ({id} + {});
                     EXCEPTION WHEN unique_violation THEN
                         INSERT INTO lt VALUES ({id});
                     END;
                 END $$",
                // Sometimes what is there already.
                if kind == 14 { 2 } else { 0 }
            ),
        });
    }
    let ends: &[&str] = match random.below(10) {
        0 | 1 => &["ROLLBACK"],
        2 => &["PREPARE TRANSACTION 'g'", "COMMIT PREPARED 'g'"],
        3 => &["PREPARE TRANSACTION 'g'", "ROLLBACK PREPARED 'g'"],
        _ => &["COMMIT"],
    };
    script.extend(ends.iter().map(|end| (*end).to_owned()));
    script
}

/// Whatever transactions do, they leave the same behind with the setting and without it, and fail
/// with the same error, unless that is rolled back before anybody has asked for it.
#[test]
fn transactions_end_as_they_do_without_it() -> Outcome {
    let (fleet, _session) = start_with_rows()?;
    let mut shards = [fleet.shard(1).client()?, fleet.shard(2).client()?];
    let mut session = fleet.session()?;
    let mut random = Random(16);
    for number in 0..80 {
        let script = script(&mut random);
        let mut ends = Vec::new();
        for setting in ["off", "on"] {
            session.batch_execute(&format!("SET pg_fdw_xacts.write_behind = {setting}"))?;
            let mut first = None;
            for statement in &script {
                if let Err(error) = session.batch_execute(statement) {
                    let code = error.code().map(|code| code.code().to_owned());
                    first = first.or(code.filter(|code| code != "25P02"));
                }
            }
            let is_asked = script.iter().all(|statement| !statement.starts_with("ROLLBACK"));
            let left = (fleet.ids_in_lt()?, fleet.ids_on_shard(1)?, fleet.ids_on_shard(2)?);
            ends.push((left, first.filter(|_| is_asked)));
            session.batch_execute("DELETE FROM lt")?;
            for shard in &mut shards {
                shard.batch_execute("DELETE FROM t WHERE id > 3")?;
            }
        }
        assert_eq!(ends[0], ends[1], "script {number}: {script:#?}");
    }
    assert_settled(&fleet);
    Ok(())
}
