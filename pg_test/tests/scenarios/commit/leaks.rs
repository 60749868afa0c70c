//! One session and many transactions of all kinds: its memory, its file descriptors and those of
//! the resolver stay as they are. `PG_TEST_LEAK_TRANSACTIONS` says how many, for a longer run.

use std::path::PathBuf;

use pg_test::oracle::{assert_settled, expect_error, one};
use pg_test::{DEADLINE, Fleet, FleetOptions, wait_until};
use postgres::Client;

use crate::support::Outcome;

/// Transactions, each with the SQLSTATE that it ends with where it is to fail.
const TRANSACTIONS: &[(&str, Option<&str>)] = &[
    // Two phases, one, none.
    ("BEGIN; UPDATE ft1 SET v = 'a'; UPDATE ft2 SET v = 'a'; UPDATE lt SET v = 'a'; COMMIT", None),
    ("UPDATE ft1 SET v = 'b'", None),
    ("BEGIN; UPDATE ft1 SET v = 'c'; SELECT count(*) FROM ft2; COMMIT", None),
    ("SELECT * FROM ft1 JOIN ft2 USING (id)", None),
    ("SELECT * FROM ft1 UNION ALL SELECT * FROM ft2", None),
    // One snapshot of both.
    ("SET pg_fdw_xacts.consistent_reads = on; SELECT * FROM ft1 JOIN ft2 USING (id)", None),
    ("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT * FROM ft1; SELECT * FROM ft2; COMMIT", None),
    (
        "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT pg_fdw_xacts_snapshot('shard1', 'shard2'); COMMIT",
        None,
    ),
    ("RESET pg_fdw_xacts.consistent_reads", None),
    // Savepoints that end either way, and errors that they contain.
    (
        "BEGIN; UPDATE ft1 SET v = 'd'; SAVEPOINT a; UPDATE ft2 SET v = 'd'; SAVEPOINT b; \
         UPDATE ft1 SET v = 'e'; ROLLBACK TO a; UPDATE ft2 SET v = 'f'; RELEASE a; COMMIT",
        None,
    ),
    (
        "DO $$ BEGIN FOR i IN 1..2 LOOP BEGIN INSERT INTO ft1 VALUES (1); EXCEPTION WHEN unique_violation \
         THEN UPDATE ft2 SET v = 'g'; END; END LOOP; END $$",
        None,
    ),
    // What ends with ROLLBACK: asked for, by an error of a shard, of the coordinator, of a commit.
    ("BEGIN; UPDATE ft1 SET v = 'h'; UPDATE ft2 SET v = 'h'; ROLLBACK", None),
    ("BEGIN; UPDATE ft2 SET v = 'i'; INSERT INTO ft1 VALUES (1); COMMIT", Some("23505")),
    ("SELECT 1 / (count(*) - 1) FROM ft1", Some("22012")),
    ("BEGIN; UPDATE ft1 SET v = 'j'; UPDATE ft2 SET v = 'j'; SELECT 1 / 0; COMMIT", Some("22012")),
    ("BEGIN; UPDATE ft1 SET v = 'k'; INSERT INTO deferred VALUES (1); COMMIT", Some("23505")),
    // Cursors: closed, left to the end, in a transaction that fails.
    ("BEGIN; DECLARE c CURSOR FOR SELECT * FROM ft1; FETCH c; CLOSE c; COMMIT", None),
    (
        "BEGIN; DECLARE c CURSOR FOR SELECT * FROM ft1; FETCH c; UPDATE ft2 SET v = 'l'; COMMIT",
        None,
    ),
    ("BEGIN; DECLARE c CURSOR FOR SELECT * FROM ft1; FETCH c; SELECT 1 / 0", Some("22012")),
    // A client that decides itself.
    ("BEGIN; UPDATE ft1 SET v = 'm'; UPDATE ft2 SET v = 'm'; PREPARE TRANSACTION 'g'", None),
    ("COMMIT PREPARED 'g'", None),
    ("BEGIN; UPDATE ft1 SET v = 'n'; UPDATE ft2 SET v = 'n'; PREPARE TRANSACTION 'h'", None),
    ("ROLLBACK PREPARED 'h'", None),
    // Commands and queries of a shard's own.
    ("SELECT pg_fdw_xacts_exec('shard1', 'UPDATE t SET v = ''o''')", None),
    ("SELECT * FROM pg_fdw_xacts_query('shard2', 'SELECT id FROM t') AS (id int)", None),
    ("SELECT pg_fdw_xacts_exec('shard1', 'SELECT 1 / 0')", Some("22012")),
];

/// Pages that the allocator may take for good without a leak.
const SLACK_KB: i64 = 512;

/// What one process holds.
#[derive(Debug, Clone, Copy)]
struct Held {
    /// Its own pages, in kB.
    anonymous: i64,
    /// Its sockets, pipes and event queues. How many files of tables it keeps open is for
    /// PostgreSQL to say.
    descriptors: usize,
}

fn held(pid: i32) -> anyhow::Result<Held> {
    let process = PathBuf::from(format!("/proc/{pid}"));
    let status = std::fs::read_to_string(process.join("status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let anonymous = line.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
    let descriptors = std::fs::read_dir(process.join("fd"))?
        .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
        .filter(|target| !target.is_absolute())
        .count();
    Ok(Held { anonymous: anonymous.unwrap_or_default(), descriptors })
}

/// What session and resolver hold, and the session's memory contexts.
#[derive(Debug, Clone, Copy)]
struct Measure {
    session: Held,
    resolver: Held,
    contexts: i64,
    bytes: i64,
}

fn resolver(session: &mut Client) -> anyhow::Result<i32> {
    one(session, "SELECT pid FROM pg_stat_activity WHERE backend_type = 'pg_fdw_xacts resolver'")
}

fn measure(session: &mut Client) -> anyhow::Result<Measure> {
    let pid = one(session, "SELECT pg_backend_pid()")?;
    let resolver = resolver(session)?;
    let row = session.query_one(
        "SELECT count(*), sum(total_bytes)::bigint FROM pg_backend_memory_contexts",
        &[],
    )?;
    Ok(Measure {
        session: held(pid)?,
        resolver: held(resolver)?,
        contexts: row.get(0),
        bytes: row.get(1),
    })
}

fn run(session: &mut Client, rounds: usize) {
    for _ in 0..rounds {
        for (sql, code) in TRANSACTIONS {
            let result = session.batch_execute(sql);
            match code {
                None => result.unwrap_or_else(|error| panic!("{sql}: {error:?}")),
                Some(code) => {
                    expect_error(result, code);
                    session.batch_execute("ROLLBACK").expect("a failed transaction ends");
                }
            }
        }
    }
}

#[test]
fn many_transactions_in_one_session_hold_no_more_than_a_few() -> Outcome {
    let transactions: usize =
        std::env::var("PG_TEST_LEAK_TRANSACTIONS").map_or(Ok(2000), |number| number.parse())?;
    let rounds = transactions / TRANSACTIONS.len();
    // The logs of a long run would fill the disk.
    let quiet = vec![("log_statement", "none"), ("log_min_messages", "panic")];
    let fleet = Fleet::start_with(&FleetOptions {
        coordinator: [&quiet[..], &[("pg_fdw_xacts.forget_delay", "1s")]].concat(),
        shard: quiet,
        ..FleetOptions::default()
    })?;
    let mut session = fleet.session()?;
    session.batch_execute(
        "SET client_min_messages = error; CREATE TABLE deferred (id int UNIQUE DEFERRABLE INITIALLY DEFERRED);
         INSERT INTO deferred VALUES (1); INSERT INTO lt VALUES (1, '');
         INSERT INTO ft1 VALUES (1, ''); INSERT INTO ft2 VALUES (1, '')",
    )?;
    // Caches fill, and the allocator finds its size.
    run(&mut session, (rounds / 5).min(200) + 10);
    let before = measure(&mut session)?;
    // The least of some looks is what it holds between two rounds.
    let mut idle = before.resolver.descriptors;
    let mut after = before;
    // A long run goes on to find pages to keep after its short warm-up.
    let mut first = before;
    for part in 1..=10 {
        run(&mut session, rounds.div_ceil(10));
        after = measure(&mut session)?;
        if part == 1 {
            first = after;
        }
        if part <= 3 {
            idle = idle.min(after.resolver.descriptors);
        }
        println!("{part}0 % of {transactions} transactions: {after:?}");
    }
    assert!(after.contexts <= before.contexts, "memory contexts: {before:?}, {after:?}");
    assert!(after.bytes <= before.bytes, "bytes in contexts: {before:?}, {after:?}");
    for (who, first, after) in
        [("session", first.session, after.session), ("resolver", first.resolver, after.resolver)]
    {
        let grown = after.anonymous - first.anonymous;
        assert!(grown <= SLACK_KB, "the {who}'s memory has grown by {grown} kB");
    }
    let [before, after] = [before.session, after.session];
    assert!(after.descriptors <= before.descriptors, "descriptors: {before:?}, {after:?}");
    // The resolver has connections while it looks at the shards, as it does every second.
    let pid = resolver(&mut session)?;
    wait_until("the resolver has closed everything", DEADLINE, || {
        Ok(held(pid)?.descriptors <= idle)
    })?;
    assert_settled(&fleet);
    Ok(())
}
