//! What cannot move is refused before anything is done, with what to do instead.

use pg_test::oracle::{assert_settled, expect_error};
use postgres::Client;

use crate::sharding::tables_on;
use crate::support::{Outcome, start};

/// The table of each case, what is added to it, and a word of the DETAIL or message that says so.
const LOST: &[(&str, &str)] = &[
    ("CREATE VIEW v AS SELECT * FROM x", "view public.v"),
    ("CREATE FUNCTION f(x) RETURNS int LANGUAGE sql AS 'SELECT 1'", "function public.f"),
    ("CREATE TABLE y (a int, n int, FOREIGN KEY (a, n) REFERENCES x)", "on table public.y"),
    ("CREATE TABLE z (t x[])", "table public.z"),
    (
        "CREATE TRIGGER tr BEFORE UPDATE ON x FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()",
        "trigger tr",
    ),
    (
        "CREATE CONSTRAINT TRIGGER ct AFTER INSERT ON x DEFERRABLE FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()",
        "ct on table",
    ),
    ("CREATE RULE r AS ON DELETE TO x DO INSTEAD NOTHING", "rule r"),
    ("CREATE POLICY p ON x USING (true)", "policy p"),
    ("ALTER TABLE x ENABLE ROW LEVEL SECURITY", "row security"),
    ("CREATE STATISTICS s ON a, n FROM x", "statistics object public.s"),
    ("CREATE PUBLICATION p FOR TABLE x", "publication"),
    ("CREATE TABLE child () INHERITS (x)", "table public.child"),
    (
        "CREATE TABLE parent (a int, n int); ALTER TABLE x INHERIT parent",
        "no ordinary, permanent table",
    ),
    ("ALTER TABLE x SET UNLOGGED", "no ordinary, permanent table"),
    ("ALTER TABLE x ADD UNIQUE (n)", "x_n_key"),
    ("ALTER TABLE x ADD EXCLUDE (a WITH =)", "x_a_excl"),
    (
        "CREATE TABLE other (id int PRIMARY KEY); ALTER TABLE x ADD FOREIGN KEY (n) REFERENCES other",
        "to public.other",
    ),
];

/// Runs `call` on a table with `addition`, which is refused with `word` in DETAIL.
#[track_caller]
fn assert_refused(session: &mut Client, addition: &str, call: &str, word: &str) {
    session.batch_execute(&format!("BEGIN; {addition}")).expect("the case is valid");
    let result = session.batch_execute(call);
    session.batch_execute("ROLLBACK").expect("ROLLBACK");
    let error = result.expect_err(addition);
    let error = error.as_db_error().expect("the server says so");
    let said = error.detail().unwrap_or_else(|| error.message());
    assert!(said.contains(word), "{addition}: {error:?}");
}

#[test]
fn what_a_distribution_would_lose_is_named() -> Outcome {
    let (fleet, mut session) = start()?;
    session.batch_execute("CREATE TABLE x (a int, n int, PRIMARY KEY (a, n))")?;
    for (addition, word) in LOST {
        let call = "SELECT FROM pg_fdw_xacts_distribute('x', 'a', '{shard1,shard2}')";
        assert_refused(&mut session, addition, call, word);
    }
    // 'a' and 'A' are the same in the index, but could be on two shards. Red before.
    assert_refused(
        &mut session,
        "CREATE COLLATION ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
         CREATE TABLE name (n text); CREATE UNIQUE INDEX by_ci ON name (n COLLATE ci)",
        "SELECT FROM pg_fdw_xacts_distribute('name', 'n', '{shard1,shard2}')",
        "by_ci",
    );
    for (arguments, sqlstate) in [
        ("'x', 'a', '{}'", "22023"),
        ("'x', 'a', '{shard1,NULL}'", "22023"),
        ("'x', 'a', '{shard1,shard2}', 1", "22023"),
        ("'x', 'a', '{shard1}', 3, '{1}'", "22023"),
        ("'x', 'a', '{shard1,nosuch}'", "42704"),
        ("'ft1', 'id', '{shard1}'", "42809"),
        ("'pg_fdw_xacts', 'dbid', '{shard1}'", "42809"),
    ] {
        let call = format!("SELECT FROM pg_fdw_xacts_distribute({arguments})");
        expect_error(session.batch_execute(&call), sqlstate);
    }
    let call = "SELECT FROM pg_fdw_xacts_distribute('x', 'a', '{shard1}')";
    for (before, sqlstate) in [
        ("SET LOCAL pg_fdw_xacts.two_phase_commit = off", "55000"),
        ("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ", "55000"),
    ] {
        expect_error(session.batch_execute(&format!("BEGIN; {before}; {call}")), sqlstate);
        session.batch_execute("ROLLBACK")?;
        // Red when NULL was neither a dry run nor its opposite.
        let call = call.replace("1}')", "1}', dry_run => NULL)");
        expect_error(session.batch_execute(&format!("BEGIN; {before}; {call}")), sqlstate);
        session.batch_execute("ROLLBACK")?;
    }
    session.batch_execute(call)?;
    expect_error(session.batch_execute(call), "42809");
    assert_eq!(tables_on(&fleet, 1)?, ["x_0", "x_1", "x_2", "x_3"]);
    assert!(tables_on(&fleet, 2)?.is_empty());
    assert_settled(&fleet);
    Ok(())
}

#[test]
fn a_type_that_the_shard_does_not_have_fails_everything() -> Outcome {
    let (fleet, mut session) = start()?;
    session.batch_execute(
        "CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE TABLE x (a int PRIMARY KEY, m mood)",
    )?;
    let call = "SELECT FROM pg_fdw_xacts_distribute('x', 'a', '{shard1}')";
    let error = expect_error(session.batch_execute(call), "42704");
    assert_eq!(error.message(), "type \"public.mood\" does not exist");
    assert!(tables_on(&fleet, 1)?.is_empty());
    Ok(())
}

#[test]
fn what_a_move_would_lose_is_named() -> Outcome {
    let (fleet, mut session) = start()?;
    session.batch_execute(
        "CREATE TABLE x (a int, n int) ;
         SELECT FROM pg_fdw_xacts_distribute('x', 'a', '{shard1}', 1)",
    )?;
    let call = "SELECT FROM pg_fdw_xacts_move_partition('x_0', 'shard2')";
    for (there, word) in [
        ("CREATE VIEW v AS SELECT * FROM x_0", "view public.v"),
        ("CREATE RULE r AS ON DELETE TO x_0 DO INSTEAD NOTHING", "rule r"),
        ("ALTER TABLE x_0 ENABLE ROW LEVEL SECURITY", "row security"),
        (
            "ALTER TABLE x_0 ALTER a SET NOT NULL, ALTER a ADD GENERATED ALWAYS AS IDENTITY",
            "identity column a",
        ),
        ("ALTER TABLE x_0 ADD extra int", "has other columns"),
        (
            "ALTER TABLE x_0 DROP n; ALTER TABLE x_0 ADD n int GENERATED ALWAYS AS (a) STORED",
            "has other columns",
        ),
        (
            "DROP TABLE x_0; CREATE VIEW x_0 AS SELECT 1 AS a, 2 AS n",
            "no ordinary, permanent table",
        ),
        ("DROP TABLE x_0", "does not exist"),
    ] {
        let addition = format!("SELECT pg_fdw_xacts_exec('shard1', '{there}')");
        assert_refused(&mut session, &addition, call, word);
    }
    assert_refused(&mut session, "CREATE VIEW v AS SELECT * FROM x_0", call, "view public.v");
    for (sql, sqlstate) in [
        ("SELECT FROM pg_fdw_xacts_move_partition('x_0', 'shard1')", "55000"),
        ("SELECT FROM pg_fdw_xacts_move_partition('x_0', NULL)", "42809"),
        ("SELECT FROM pg_fdw_xacts_move_partition('x', 'shard1')", "42809"),
        ("SELECT FROM pg_fdw_xacts_move_partition('ft1', 'shard2')", "42809"),
        ("SELECT FROM pg_fdw_xacts_move_partition('x_0', 'nosuch')", "42704"),
    ] {
        expect_error(session.batch_execute(sql), sqlstate);
    }
    // One snapshot for the whole transaction may be older than the rows.
    session.batch_execute("SET pg_fdw_xacts.remote_isolation = 'repeatable read'")?;
    expect_error(session.batch_execute(call), "55000");
    session.batch_execute("RESET pg_fdw_xacts.remote_isolation")?;
    // A unique index over all partitions is what foreign ones cannot have.
    session.batch_execute(
        "CREATE TABLE u (a int PRIMARY KEY) PARTITION BY HASH (a);
         CREATE TABLE u_0 PARTITION OF u FOR VALUES WITH (MODULUS 1, REMAINDER 0)",
    )?;
    expect_error(
        session.batch_execute("SELECT FROM pg_fdw_xacts_move_partition('u_0', 'shard1')"),
        "0A000",
    );
    assert_eq!(tables_on(&fleet, 1)?, ["x_0"]);
    assert!(tables_on(&fleet, 2)?.is_empty());
    assert_settled(&fleet);
    Ok(())
}
