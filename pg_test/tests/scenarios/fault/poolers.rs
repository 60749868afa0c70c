//! PgBouncer between the coordinator and its shards: in session mode it is as good as none, in the
//! others it is refused before anything is left behind.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use pg_test::oracle::{assert_settled, assert_usable, expect_error, one};
use pg_test::pooler::Pooler;
use pg_test::{DEADLINE, Fleet, lengthened_by_load, wait_until};
use postgres::NoTls;

use crate::support::{Outcome, assert_commits, assert_everywhere, begin_everywhere};

/// A fleet whose shards are reached through poolers.
fn start(mode: &str, size: usize) -> anyhow::Result<(Fleet, [Pooler; 2])> {
    let fleet = Fleet::start()?;
    let poolers =
        [Pooler::start(fleet.shard(1), mode, size)?, Pooler::start(fleet.shard(2), mode, size)?];
    for (index, pooler) in poolers.iter().enumerate() {
        fleet.session()?.batch_execute(&format!(
            "ALTER SERVER shard{} OPTIONS (SET port '{}')",
            index + 1,
            pooler.port()
        ))?;
    }
    Ok((fleet, poolers))
}

/// Red on 0.2.0: a COMMIT over both shards was refused.
#[test]
fn in_session_mode_everything_works() -> Outcome {
    let (mut fleet, _poolers) = start("session", 20)?;
    let mut session = fleet.session()?;
    for id in 1..=5 {
        assert_commits(&fleet, &mut session, id)?;
    }
    begin_everywhere(&mut session, 6)?;
    session.batch_execute("ROLLBACK; SELECT * FROM ft1")?;
    assert_everywhere(&fleet, 6, false)?;
    // The resolver takes the same way, and so does a session that settles after a crash.
    begin_everywhere(&mut session, 7)?;
    session.batch_execute("PREPARE TRANSACTION 'seven'")?;
    begin_everywhere(&mut session, 8)?;
    session.batch_execute("PREPARE TRANSACTION 'eight'")?;
    fleet.coordinator.kill9()?;
    fleet.coordinator.start()?;
    let mut session = fleet.session()?;
    session.batch_execute("COMMIT PREPARED 'seven'")?;
    session.batch_execute("ROLLBACK PREPARED 'eight'")?;
    assert_settled(&fleet);
    assert_everywhere(&fleet, 7, true)?;
    assert_everywhere(&fleet, 8, false)
}

#[test]
fn sixteen_writers_in_session_mode() -> Outcome {
    let (fleet, _poolers) = start("session", 20)?;
    write_at_once(&fleet, |fleet, id| assert_commits(fleet, &mut fleet.session()?, id))?;
    assert_settled(&fleet);
    assert_eq!(fleet.ids_on_shard(1)?.len(), 16);
    Ok(())
}

/// Runs `write` in sixteen threads, with numbers from 1.
fn write_at_once(fleet: &Fleet, write: impl Fn(&Fleet, i32) -> Outcome + Sync) -> Outcome {
    std::thread::scope(|scope| {
        let threads: Vec<_> = (1..=16)
            .map(|id| {
                scope.spawn({
                    let write = &write;
                    move || write(fleet, id)
                })
            })
            .collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("a writer panicked"))
    })
}

/// Red on 0.2.0: statements ran, and only the COMMIT over both shards was refused.
#[test]
fn other_modes_are_refused_at_the_first_statement() -> Outcome {
    let mut noticed_late = 0;
    for (mode, size) in [("transaction", 1), ("transaction", 5), ("statement", 5)] {
        while !is_refused_at_once(mode, size)? {
            noticed_late += 1;
            assert!(noticed_late <= 1, "{mode} {size}");
        }
    }
    Ok(())
}

/// False if a statement ran: one in a thousand of the process ids that the pooler draws looks real.
fn is_refused_at_once(mode: &str, size: usize) -> anyhow::Result<bool> {
    let (fleet, poolers) = start(mode, size)?;
    let mut session = fleet.session()?;
    for statement in [
        "SELECT * FROM ft1",
        "INSERT INTO ft1 VALUES (1, 'x')",
        "SELECT pg_fdw_xacts_exec('shard1', 'DELETE FROM t')",
    ] {
        let result = session.batch_execute(statement);
        if result.is_ok() {
            return Ok(false);
        }
        let refused = expect_error(result, "0A000");
        assert!(refused.message().contains("shard1"), "{refused:#?}");
        assert!(refused.hint().unwrap_or_default().contains("session mode"), "{refused:#?}");
        assert_usable(&mut session);
    }
    // The pooler's next user finds nothing of this session.
    for pooler in &poolers {
        let mut other = pg_test::Cluster::config_at(pooler.port()).connect(NoTls)?;
        let answer = other.simple_query("SHOW search_path")?;
        let left = answer.iter().find_map(|message| match message {
            postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        });
        assert_eq!(left.as_deref(), Some("\"$user\", public"), "{mode} {size}");
    }
    let locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'";
    assert_eq!(one::<i64>(&mut fleet.shard(1).client()?, locks)?, 0);
    Ok(true)
}

/// Red on 0.2.0: some hung for ever.
#[test]
fn sixteen_writers_are_all_refused_in_transaction_mode() -> Outcome {
    let (fleet, _poolers) = start("transaction", 2)?;
    let begin = Instant::now();
    let noticed_late = AtomicU32::new(0);
    write_at_once(&fleet, |fleet, id| {
        for _ in 0..3 {
            let mut session = fleet.session()?;
            session.batch_execute("BEGIN")?;
            let insert = format!("INSERT INTO ft1 VALUES ({id}, 'x')");
            match session.batch_execute(&insert) {
                // One in a thousand of the process ids that the pooler draws looks real.
                Ok(()) => {
                    noticed_late.fetch_add(1, Ordering::Relaxed);
                    let second = format!("INSERT INTO ft2 VALUES ({id}, 'x'); COMMIT");
                    expect_error(session.batch_execute(&second), "0A000");
                }
                refused => _ = expect_error(refused, "0A000"),
            }
        }
        Ok(())
    })?;
    assert!(noticed_late.into_inner() <= 3);
    assert!(begin.elapsed() < lengthened_by_load(Duration::from_secs(60)), "{:?}", begin.elapsed());
    let open = "SELECT count(*) FROM pg_stat_activity WHERE xact_start IS NOT NULL AND pid <> pg_backend_pid() AND backend_type = 'client backend'";
    let mut witness = fleet.shard(1).client()?;
    // The clients have gone, of which the pooler and the shard hear a moment later.
    wait_until("no transaction is open on shard 1", DEADLINE, || {
        Ok(one::<i64>(&mut witness, open)? == 0)
    })?;
    assert!(fleet.ids_on_shard(1)?.is_empty());
    Ok(())
}
