//! Cycles of several sessions. All of them wait for ever with `pg_fdw_xacts.detect_deadlocks = off`.

use std::time::{Duration, Instant};

use pg_test::oracle::one;

use pg_test::{Fleet, lengthened_by_load};

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

/// Of INSERTs that nobody has waited for until the next answer is taken.
#[test]
fn writes_behind() -> Outcome {
    let fleet = start()?;
    let older = session_that(&fleet, "INSERT INTO ft1 VALUES (50)")?;
    let younger = session_that(&fleet, "INSERT INTO ft2 VALUES (50)")?;
    let behind = |table| {
        format!(
            "SET pg_fdw_xacts.write_behind = on; INSERT INTO {table} VALUES (50); SELECT FROM {table}"
        )
    };
    let older = waits_on(&fleet, 2, older, &behind("ft2"))?;
    let begin = Instant::now();
    let younger = waits_on(&fleet, 1, younger, &behind("ft1"))?;
    let (error, victim, sessions) = one_gives_way(begin, vec![older, younger])?;
    assert_eq!((victim, detail(&error).lines().count()), (1, 2));
    commit_all(&fleet, sessions)
}

/// Each waits for the next. The youngest gives way, although it has waited longest.
#[test]
fn three_sessions_in_a_ring() -> Outcome {
    let fleet = start()?;
    let first = session_that(&fleet, "UPDATE ft1 SET v = 'a' WHERE id = 1")?;
    let second = session_that(&fleet, "UPDATE ft2 SET v = 'b' WHERE id = 2")?;
    let third = session_that(&fleet, "UPDATE ft1 SET v = 'c' WHERE id = 3")?;
    let third = waits_on(&fleet, 1, third, "UPDATE ft1 SET v = 'c' WHERE id = 1; ROLLBACK")?;
    let first = waits_on(&fleet, 2, first, "UPDATE ft2 SET v = 'a' WHERE id = 2; ROLLBACK")?;
    let begin = Instant::now();
    let second = waits_on(&fleet, 1, second, "UPDATE ft1 SET v = 'b' WHERE id = 3; ROLLBACK")?;
    let (error, victim, sessions) = one_gives_way(begin, vec![first, second, third])?;
    assert_eq!((victim, detail(&error).lines().count()), (2, 3));
    commit_all(&fleet, sessions)
}

/// One of the two waits for a row of the coordinator's own, and has nothing to say of it.
#[test]
fn a_lock_of_the_coordinator() -> Outcome {
    let fleet = start()?;
    let older = session_that(&fleet, "UPDATE lt SET v = 'a' WHERE id = 1")?;
    let younger = session_that(&fleet, "UPDATE ft1 SET v = 'b' WHERE id = 1")?;
    let younger = waits_on(&fleet, 0, younger, "UPDATE lt SET v = 'b' WHERE id = 1")?;
    let begin = Instant::now();
    let older = waits_on(&fleet, 1, older, "UPDATE ft1 SET v = 'a' WHERE id = 1")?;
    let (error, victim, sessions) = one_gives_way(begin, vec![older, younger])?;
    // The younger is in a wait that only PostgreSQL itself can end.
    assert_eq!(victim, 0);
    let told = detail(&error);
    assert!(told.contains(" waits for ShareLock on transaction "), "{told}");
    assert!(told.contains(" waits on server \"shard1\""), "{told}");
    commit_all(&fleet, sessions)
}

/// A session that belongs to nobody here is in between.
#[test]
fn another_session_of_a_shard() -> Outcome {
    let fleet = start()?;
    let mut stranger = fleet.shard(1).client()?;
    stranger.batch_execute("BEGIN; UPDATE t SET v = 's' WHERE id = 1")?;
    let older = session_that(&fleet, "UPDATE ft2 SET v = 'a' WHERE id = 1")?;
    let younger = session_that(&fleet, "UPDATE ft1 SET v = 'b' WHERE id = 2")?;
    let older = waits_on(&fleet, 1, older, "UPDATE ft1 SET v = 'a' WHERE id = 1; ROLLBACK")?;
    let stranger = waits_on(&fleet, 1, stranger, "UPDATE t SET v = 's' WHERE id = 2; ROLLBACK")?;
    let begin = Instant::now();
    let younger = waits_on(&fleet, 2, younger, "UPDATE ft2 SET v = 'b' WHERE id = 1")?;
    let (error, victim, sessions) = one_gives_way(begin, vec![older, younger])?;
    assert_eq!(victim, 1);
    assert!(detail(&error).contains("of server \"shard1\" waits for ShareLock"), "{error:?}");
    stranger.join().1?;
    commit_all(&fleet, sessions)
}

/// A deferred trigger on shard 2 locks row 2, at PREPARE, when shard 1 has prepared: whoever waits
/// there waits for a prepared transaction. Either of the two is the younger.
#[test]
fn a_transaction_that_waits_at_prepare() -> Outcome {
    for preparer_is_older in [true, false] {
        let fleet = start()?;
        commits_late(&fleet)?;
        let prepares =
            "UPDATE ft1 SET v = 'a' WHERE id = 1; UPDATE ft2 SET v = 'slow' WHERE id = 1";
        let holds = "UPDATE ft2 SET v = 'b' WHERE id = 2";
        let (preparer, other);
        if preparer_is_older {
            preparer = session_that(&fleet, prepares)?;
            other = session_that(&fleet, holds)?;
        } else {
            other = session_that(&fleet, holds)?;
            preparer = session_that(&fleet, prepares)?;
        }
        let preparer = waits_on(&fleet, 2, preparer, "COMMIT")?;
        let begin = Instant::now();
        let other = waits_on(&fleet, 1, other, "UPDATE ft1 SET v = 'b' WHERE id = 1")?;
        let (error, victim, sessions) = one_gives_way(begin, vec![preparer, other])?;
        assert_eq!(victim, usize::from(preparer_is_older));
        let told = detail(&error);
        assert!(told.contains(", which has prepared there."), "{told}");
        commit_all(&fleet, sessions)?;
    }
    Ok(())
}

/// On shard 2 the commit of a row 'slow' locks row 2.
fn commits_late(fleet: &Fleet) -> Outcome {
    fleet.shard(2).client()?.batch_execute(
        "CREATE FUNCTION late() RETURNS trigger LANGUAGE plpgsql AS
             $$ BEGIN UPDATE public.t SET v = 'late' WHERE id = 2; RETURN NULL; END $$;
         CREATE CONSTRAINT TRIGGER late AFTER UPDATE ON t DEFERRABLE INITIALLY DEFERRED
             FOR EACH ROW WHEN (new.v = 'slow') EXECUTE FUNCTION late()",
    )?;
    Ok(())
}

/// Writes on shard 2 alone, and has locked a table here without writing.
const COMMITS_IN_ONE_PHASE: &str =
    "LOCK TABLE lt IN SHARE MODE; UPDATE ft2 SET v = 'slow' WHERE id = 1";

/// Nobody here can take a COMMIT in one phase back, nor end a wait for a lock of the coordinator's
/// own: the third gives way, although it is the oldest.
#[test]
fn a_commit_in_one_phase() -> Outcome {
    let fleet = start()?;
    commits_late(&fleet)?;
    let oldest = session_that(&fleet, "UPDATE ft2 SET v = 'b' WHERE id = 2")?;
    let local = session_that(&fleet, "UPDATE ft1 SET v = 'c' WHERE id = 1")?;
    let committer = session_that(&fleet, COMMITS_IN_ONE_PHASE)?;
    let committer = waits_on(&fleet, 2, committer, "COMMIT")?;
    let local = waits_on(&fleet, 0, local, "UPDATE lt SET v = 'c' WHERE id = 1; ROLLBACK")?;
    let begin = Instant::now();
    let oldest = waits_on(&fleet, 1, oldest, "UPDATE ft1 SET v = 'b' WHERE id = 1")?;
    let (_, victim, sessions) = one_gives_way(begin, vec![committer, local, oldest])?;
    assert_eq!(victim, 2);
    commit_all(&fleet, sessions)
}

/// What nobody can end is told in the log, once, and ended by a timeout.
#[test]
fn nobody_can_give_way() -> Outcome {
    let fleet = start()?;
    commits_late(&fleet)?;
    let mark = fleet.coordinator.log().mark()?;
    let local = session_that(&fleet, "UPDATE ft2 SET v = 'b' WHERE id = 2")?;
    let mut committer = session_that(&fleet, COMMITS_IN_ONE_PHASE)?;
    let limit = lengthened_by_load(Duration::from_secs(5)).as_millis();
    committer.batch_execute(&format!("SET LOCAL pg_fdw_xacts.commit_timeout = '{limit}ms'"))?;
    let committer = waits_on(&fleet, 2, committer, "COMMIT")?;
    let local = waits_on(&fleet, 0, local, "UPDATE lt SET v = 'b' WHERE id = 1")?;
    let (committer, result) = committer.join();
    assert!(result.is_err());
    let (local, result) = local.join();
    result?;
    let log = fleet.coordinator.log().since(mark)?;
    let told = "LOG:  no session of a deadlock over several servers can be cancelled";
    assert_eq!(log.matches(told).count(), 1, "{log}");
    commit_all(&fleet, vec![committer, local])
}
