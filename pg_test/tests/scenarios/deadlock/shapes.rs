//! Each shape of a cycle. All of them wait for ever with `pg_fdw_xacts.detect_deadlocks = off`.

use std::time::Instant;

use pg_test::oracle::one;

use super::{commit_all, detail, one_gives_way, session_that, start, waits_on};
use crate::support::Outcome;

/// Two rows on two shards, in opposite order.
#[test]
fn two_shards() -> Outcome {
    let fleet = start()?;
    let mut older = session_that(&fleet, "UPDATE ft1 SET v = 'a' WHERE id = 1")?;
    let mut younger = session_that(&fleet, "UPDATE ft2 SET v = 'b' WHERE id = 1")?;
    let pids: Vec<i32> = [&mut older, &mut younger]
        .into_iter()
        .map(|session| one(session, "SELECT pg_backend_pid()"))
        .collect::<Result<_, _>>()?;
    let older = waits_on(&fleet, 2, older, "UPDATE ft2 SET v = 'a' WHERE id = 1")?;
    let begin = Instant::now();
    let younger = waits_on(&fleet, 1, younger, "UPDATE ft1 SET v = 'b' WHERE id = 1")?;
    let (error, victim, sessions) = one_gives_way(begin, vec![older, younger])?;
    assert_eq!(victim, 1, "the younger gives way");
    let told = detail(&error);
    let lines: Vec<&str> = told.lines().collect();
    assert_eq!(lines.len(), 2, "{told}");
    for (line, [who, whom, server]) in lines.iter().zip([
        [pids[1].to_string(), pids[0].to_string(), "shard1".to_owned()],
        [pids[0].to_string(), pids[1].to_string(), "shard2".to_owned()],
    ]) {
        assert!(line.starts_with(&format!("Process {who} waits on server \"{server}\"")), "{told}");
        assert!(line.contains("for ShareLock on transaction "), "{told}");
        assert!(line.contains(&format!("blocked by process {whom}, process ")), "{told}");
    }
    commit_all(&fleet, sessions)
}
