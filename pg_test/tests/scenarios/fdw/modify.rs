//! Writing foreign tables: row by row, in batches and as one statement on the shard; triggers,
//! generated columns, RETURNING, ON CONFLICT.

use pg_test::Fleet;
use pg_test::oracle::{assert_settled, assert_usable, expect_error, one};
use postgres::Client;

use crate::support::{Outcome, start};

fn rows(session: &mut Client, query: &str) -> anyhow::Result<Vec<(i32, String)>> {
    let rows = session.query(query, &[])?;
    Ok(rows
        .iter()
        .map(|row| (row.get(0), row.get::<_, Option<String>>(1).unwrap_or_else(|| "NULL".into())))
        .collect())
}

fn texts(pairs: &[(i32, &str)]) -> Vec<(i32, String)> {
    pairs.iter().map(|(id, text)| (*id, (*text).to_owned())).collect()
}

fn on_shard(fleet: &Fleet) -> anyhow::Result<Vec<(i32, String)>> {
    rows(&mut fleet.shard(1).client()?, "SELECT id, v FROM t ORDER BY id")
}

#[test]
fn insert_update_delete_tell_how_many_rows_they_touched() -> Outcome {
    let (fleet, mut session) = start()?;
    let insert = "INSERT INTO ft1 SELECT i, 'a' FROM generate_series(1, 5) i";
    assert_eq!(session.execute(insert, &[])?, 5);
    assert_eq!(session.execute("UPDATE ft1 SET v = 'b' WHERE id <= 2", &[])?, 2);
    assert_eq!(session.execute("DELETE FROM ft1 WHERE id >= 4", &[])?, 2);
    assert_eq!(session.execute("DELETE FROM ft1 WHERE id = 99", &[])?, 0);
    assert_eq!(on_shard(&fleet)?, texts(&[(1, "b"), (2, "b"), (3, "a")]));
    Ok(())
}

#[test]
fn many_rows_are_inserted_whatever_the_batch_size_is() -> Outcome {
    let (fleet, mut session) = start()?;
    for option in ["", "ALTER FOREIGN TABLE ft1 OPTIONS (ADD batch_size '7')"] {
        session.batch_execute(option)?;
        for count in [1, 7, 8, 1000] {
            let insert =
                format!("INSERT INTO ft1 SELECT i, 'v' FROM generate_series(1, {count}) i");
            assert_eq!(session.execute(&insert, &[])?, count);
            assert_eq!(on_shard(&fleet)?.len() as u64, count);
            session.batch_execute("DELETE FROM ft1")?;
        }
    }
    Ok(())
}

#[test]
fn a_duplicate_among_many_rows_rolls_the_statement_back() -> Outcome {
    let (fleet, mut session) = start()?;
    session.batch_execute("INSERT INTO ft1 VALUES (500, 'there')")?;
    let insert = "INSERT INTO ft1 SELECT i, 'v' FROM generate_series(1, 1000) i";
    expect_error(session.batch_execute(insert), "23505");
    assert_usable(&mut session);
    assert_eq!(on_shard(&fleet)?, texts(&[(500, "there")]));
    Ok(())
}

#[test]
fn returning_gives_what_the_shard_made_of_the_rows() -> Outcome {
    let (fleet, mut session) = start()?;
    fleet.shard(1).client()?.batch_execute(
        "CREATE FUNCTION shout() RETURNS trigger LANGUAGE plpgsql AS
             $$ BEGIN NEW.v := upper(NEW.v); RETURN NEW; END $$;
         CREATE TRIGGER shout BEFORE INSERT OR UPDATE ON t FOR EACH ROW EXECUTE FUNCTION shout()",
    )?;
    let found = rows(&mut session, "INSERT INTO ft1 VALUES (1, 'a'), (2, 'b') RETURNING id, v")?;
    assert_eq!(found, texts(&[(1, "A"), (2, "B")]));
    // As one statement on the shard, then row by row: random() cannot be sent there.
    let found = rows(&mut session, "UPDATE ft1 SET v = 'c' WHERE id = 1 RETURNING id, v")?;
    assert_eq!(found, texts(&[(1, "C")]));
    let by_row = "UPDATE ft1 SET v = 'd' WHERE id = 2 AND random() >= 0 RETURNING id, v";
    assert_eq!(rows(&mut session, by_row)?, texts(&[(2, "D")]));
    let found = rows(&mut session, "DELETE FROM ft1 WHERE id = 1 RETURNING id, v")?;
    assert_eq!(found, texts(&[(1, "C")]));
    let by_row = "DELETE FROM ft1 WHERE random() >= 0 RETURNING id, v || '!'";
    assert_eq!(rows(&mut session, by_row)?, texts(&[(2, "D!")]));
    assert_eq!(on_shard(&fleet)?, []);
    Ok(())
}

#[test]
fn an_update_without_local_parts_is_one_statement_on_the_shard() -> Outcome {
    let (fleet, mut session) = start()?;
    session.batch_execute("INSERT INTO ft1 SELECT i, 'a' FROM generate_series(1, 300) i")?;
    let mark = fleet.shard(1).log().mark()?;
    assert_eq!(session.execute("UPDATE ft1 SET v = v || 'b' WHERE id % 3 = 0", &[])?, 100);
    assert_eq!(session.execute("DELETE FROM ft1 WHERE id % 3 = 1", &[])?, 100);
    let statements = fleet.shard(1).log().statements_since(mark)?;
    for word in ["UPDATE", "DELETE"] {
        let count = statements.iter().filter(|line| line.starts_with(word)).count();
        assert_eq!(count, 1, "{word}: {statements:#?}");
    }
    let query = "SELECT count(*) FROM ft1 WHERE v = 'ab'";
    assert_eq!(one::<i64>(&mut session, query)?, 100);
    assert_eq!(one::<i64>(&mut session, "SELECT count(*) FROM ft1")?, 200);
    Ok(())
}

#[test]
fn updates_and_deletes_by_joins_with_local_and_other_foreign_tables() -> Outcome {
    let (fleet, mut session) = start()?;
    session.batch_execute(
        "INSERT INTO ft1 SELECT i, 'a' FROM generate_series(1, 5) i;
         INSERT INTO ft2 SELECT i, 'from 2' FROM generate_series(4, 5) i;
         INSERT INTO lt SELECT i, 'local' FROM generate_series(1, 2) i",
    )?;
    let update = "UPDATE ft1 SET v = lt.v FROM lt WHERE lt.id = ft1.id";
    assert_eq!(session.execute(update, &[])?, 2);
    let update = "UPDATE ft1 SET v = ft2.v FROM ft2 WHERE ft2.id = ft1.id";
    assert_eq!(session.execute(update, &[])?, 2);
    let delete = "DELETE FROM ft1 USING lt WHERE lt.id = ft1.id AND lt.id = 1";
    assert_eq!(session.execute(delete, &[])?, 1);
    assert_eq!(on_shard(&fleet)?, texts(&[(2, "local"), (3, "a"), (4, "from 2"), (5, "from 2")]));
    Ok(())
}

#[test]
fn a_moved_row_is_deleted_here_and_inserted_there_atomically() -> Outcome {
    let (fleet, mut session) = start()?;
    session.batch_execute("INSERT INTO ft1 SELECT i, 'm' FROM generate_series(1, 250) i")?;
    let moving = "WITH gone AS (DELETE FROM ft1 WHERE id > 100 RETURNING *)
                  INSERT INTO ft2 SELECT * FROM gone";
    assert_eq!(session.execute(moving, &[])?, 150);
    assert_eq!(fleet.ids_on_shard(1)?, (1..=100).collect::<Vec<i32>>());
    assert_eq!(fleet.ids_on_shard(2)?, (101..=250).collect::<Vec<i32>>());
    assert_settled(&fleet);
    Ok(())
}

#[test]
fn on_conflict_do_nothing_skips_what_is_there() -> Outcome {
    let (fleet, mut session) = start()?;
    session.batch_execute("INSERT INTO ft1 VALUES (2, 'old')")?;
    let insert =
        "INSERT INTO ft1 SELECT i, 'new' FROM generate_series(1, 3) i ON CONFLICT DO NOTHING";
    assert_eq!(session.execute(insert, &[])?, 2);
    let found = rows(
        &mut session,
        "INSERT INTO ft1 VALUES (3, 'x'), (4, 'x') ON CONFLICT DO NOTHING RETURNING id, v",
    )?;
    assert_eq!(found, texts(&[(4, "x")]));
    assert_eq!(on_shard(&fleet)?, texts(&[(1, "new"), (2, "old"), (3, "new"), (4, "x")]));
    Ok(())
}

#[test]
fn on_conflict_do_update_is_refused_as_by_postgres_fdw() -> Outcome {
    let (_fleet, mut session) = start()?;
    let insert = "INSERT INTO ft1 VALUES (1, 'x') ON CONFLICT (id) DO UPDATE SET v = 'y'";
    expect_error(session.batch_execute(insert), "42P10");
    assert_usable(&mut session);
    Ok(())
}

#[test]
fn local_triggers_see_and_change_the_rows() -> Outcome {
    let (fleet, mut session) = start()?;
    session.batch_execute(
        "CREATE TABLE seen (what text, was text, now text);
         CREATE FUNCTION before() RETURNS trigger LANGUAGE plpgsql AS
             $$ BEGIN NEW.v := NEW.v || '+'; RETURN NEW; END $$;
         CREATE FUNCTION after() RETURNS trigger LANGUAGE plpgsql AS
             $$ BEGIN INSERT INTO seen VALUES (TG_OP, OLD.v, NEW.v); RETURN NULL; END $$;
         CREATE TRIGGER b BEFORE INSERT OR UPDATE ON ft1 FOR EACH ROW EXECUTE FUNCTION before();
         CREATE TRIGGER a AFTER INSERT OR UPDATE OR DELETE ON ft1
             FOR EACH ROW EXECUTE FUNCTION after()",
    )?;
    session.batch_execute("INSERT INTO ft1 VALUES (1, 'a'), (2, 'b')")?;
    session.batch_execute("UPDATE ft1 SET v = 'c' WHERE id = 1")?;
    assert_eq!(on_shard(&fleet)?, texts(&[(1, "c+"), (2, "b+")]));
    session.batch_execute("DELETE FROM ft1 WHERE id = 2")?;
    let seen: String =
        one(&mut session, "SELECT string_agg(format('%s %s %s', what, was, now), '; ') FROM seen")?;
    assert_eq!(seen, "INSERT  a+; INSERT  b+; UPDATE a+ c+; DELETE b+ ");
    Ok(())
}

#[test]
fn generated_columns_are_made_by_the_shard() -> Outcome {
    let (fleet, mut session) = start()?;
    fleet.shard(1).client()?.batch_execute(
        "CREATE TABLE g (id int PRIMARY KEY, twice int GENERATED ALWAYS AS (id * 2) STORED)",
    )?;
    session.batch_execute(
        "CREATE FOREIGN TABLE g (id int, twice int GENERATED ALWAYS AS (id * 2) STORED)
             SERVER shard1",
    )?;
    session.batch_execute("INSERT INTO g VALUES (1), (2)")?;
    session.batch_execute("UPDATE g SET id = 5 WHERE id = 2")?;
    session.batch_execute("UPDATE g SET id = 6 WHERE id = 1 AND random() >= 0")?;
    let mut shard = fleet.shard(1).client()?;
    let found = rows(&mut shard, "SELECT id, twice::text FROM g ORDER BY id")?;
    assert_eq!(found, texts(&[(5, "10"), (6, "12")]));
    Ok(())
}

#[test]
fn a_view_with_check_option_refuses_what_the_shard_made_invisible() -> Outcome {
    let (fleet, mut session) = start()?;
    session
        .batch_execute("CREATE VIEW small AS SELECT * FROM ft1 WHERE id < 10 WITH CHECK OPTION")?;
    session.batch_execute("INSERT INTO small VALUES (1, 'x')")?;
    expect_error(session.batch_execute("INSERT INTO small VALUES (10, 'x')"), "44000");
    expect_error(session.batch_execute("UPDATE small SET id = 11"), "44000");
    assert_eq!(on_shard(&fleet)?, texts(&[(1, "x")]));
    Ok(())
}

#[test]
fn column_names_and_dropped_columns_are_mapped() -> Outcome {
    let (fleet, mut session) = start()?;
    session.batch_execute(
        "CREATE FOREIGN TABLE renamed (junk int, wert text OPTIONS (column_name 'v'),
             \"Key\" int OPTIONS (column_name 'id')) SERVER shard1 OPTIONS (table_name 't');
         ALTER FOREIGN TABLE renamed DROP COLUMN junk",
    )?;
    session.batch_execute("INSERT INTO renamed (\"Key\", wert) VALUES (1, 'a'), (2, NULL)")?;
    session.batch_execute("UPDATE renamed SET wert = 'b' WHERE \"Key\" = 1 AND random() >= 0")?;
    assert_eq!(on_shard(&fleet)?, texts(&[(1, "b"), (2, "NULL")]));
    let found =
        rows(&mut session, "DELETE FROM renamed WHERE \"Key\" = 2 RETURNING \"Key\", wert")?;
    assert_eq!(found, texts(&[(2, "NULL")]));
    Ok(())
}

#[test]
fn a_table_that_is_not_updatable_refuses_writes() -> Outcome {
    let (_fleet, mut session) = start()?;
    session.batch_execute("ALTER FOREIGN TABLE ft1 OPTIONS (ADD updatable 'false')")?;
    expect_error(session.batch_execute("INSERT INTO ft1 VALUES (1, 'x')"), "55000");
    assert_usable(&mut session);
    Ok(())
}

#[test]
fn a_read_only_transaction_writes_nowhere() -> Outcome {
    let (fleet, mut session) = start()?;
    session.batch_execute("BEGIN READ ONLY; SELECT * FROM ft1")?;
    expect_error(session.batch_execute("INSERT INTO ft1 VALUES (1, 'x')"), "25006");
    session.batch_execute("ROLLBACK")?;
    assert_eq!(on_shard(&fleet)?, []);
    Ok(())
}
