//! What happens on the servers while they are watched.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, anyhow, ensure};
use pg_test::oracle::{assert_settled, one, prepared_gids};
use pg_test::proxy::NewConnections;
use pg_test::{Fleet, StopMode};
use postgres::{Client, Config, NoTls};

/// Something that happens.
pub struct Moment {
    /// How many seconds after the beginning.
    pub at: f64,
    /// What it is.
    pub text: &'static str,
}

/// Sessions that write on two shards each.
const SESSIONS: i32 = 3;

/// The row of every shard that is locked on purpose.
const ROW: &str = "SET v = NULL WHERE id = 0";

/// Plays everything, and returns what happened when.
pub fn play(fleet: &mut Fleet, start: SystemTime) -> Result<Vec<Moment>> {
    for shard in fleet.shards() {
        // What a transaction inserts twice is refused at its PREPARE.
        shard.client()?.batch_execute(
            "ALTER TABLE t ADD UNIQUE (v) DEFERRABLE INITIALLY DEFERRED;
             INSERT INTO t VALUES (-1, 'taken'), (0, NULL)",
        )?;
    }
    let (config, has_ended) = (fleet.coordinator.config(), AtomicBool::new(false));
    let moments = std::thread::scope(|scope| {
        for session in 1..=SESSIONS {
            let (config, has_ended) = (&config, &has_ended);
            scope.spawn(move || transfers(config, session, has_ended));
        }
        let moments = faults(fleet, start);
        has_ended.store(true, Ordering::Relaxed);
        moments
    })?;
    assert_settled(fleet);
    Ok(moments)
}

/// Transactions over two shards each, one after the other. Of ten, one is refused by the second
/// shard. What fails because a shard is away is tried no more.
fn transfers(config: &Config, number: i32, has_ended: &AtomicBool) {
    let mut session: Option<Client> = None;
    for n in 0..1_000_000 {
        if has_ended.load(Ordering::Relaxed) {
            return;
        }
        let (first, second) = [(1, 2), (2, 3), (1, 3)][(n % 3) as usize];
        let id = number * 1_000_000 + n;
        let value = if n % 10 == 9 { "'taken'" } else { "NULL" };
        if let Some(client) = &mut session {
            let sql = format!(
                "BEGIN; INSERT INTO ft{first} VALUES ({id}, NULL);
                 INSERT INTO ft{second} VALUES ({id}, {value}); COMMIT"
            );
            if client.batch_execute(&sql).is_err() && client.batch_execute("ROLLBACK").is_err() {
                session = None;
            }
        } else {
            session = config.connect(NoTls).ok();
        }
        sleep(Duration::from_millis(80));
    }
}

fn faults(fleet: &mut Fleet, start: SystemTime) -> Result<Vec<Moment>> {
    let mut moments = Vec::new();
    let mut happens = |text| -> Result<()> {
        moments.push(Moment { at: start.elapsed()?.as_secs_f64(), text });
        Ok(())
    };
    pause(25);

    happens("shard 2 crashes, and does not hear of a transaction that is decided")?;
    let mut session = pending(fleet, [1, 2], 100)?;
    fleet.shard_mut(2).stop(StopMode::Immediate)?;
    session.batch_execute("COMMIT PREPARED 'pending'")?;
    pause(40);
    happens("it is back, and what was in doubt is settled")?;
    fleet.shard_mut(2).start()?;
    pause(25);

    happens("an application has prepared a transaction, and does not commit it for 20 s")?;
    let mut session = pending(fleet, [1, 3], 101)?;
    pause(20);
    session.batch_execute("COMMIT PREPARED 'pending'")?;
    pause(15);

    happens("a session locks a row on shard 1 for 15 s, and two wait for it")?;
    let mut holder = locking(fleet, 1)?;
    let update = format!("UPDATE ft1 {ROW}");
    let waiting: Vec<_> = (0..2)
        .map(|_| {
            let (session, update) = (fleet.session(), update.clone());
            std::thread::spawn(move || Ok::<_, anyhow::Error>(session?.batch_execute(&update)?))
        })
        .collect();
    pause(15);
    holder.batch_execute("COMMIT")?;
    for thread in waiting {
        thread.join().map_err(|_| anyhow!("a session that waits panicked"))??;
    }
    pause(15);

    happens("deadlocks over shards 1 and 2")?;
    for _ in 0..5 {
        deadlock(fleet)?;
        pause(1);
    }
    pause(15);

    happens("shard 3 cannot be reached, and its administrator rolls back what is decided")?;
    let mut session = pending(fleet, [1, 3], 102)?;
    let gid = gid_on(fleet, 3)?;
    fleet.proxy(3).set_new_connections(NewConnections::Refused);
    fleet.proxy(3).cut_all();
    session.batch_execute("COMMIT PREPARED 'pending'")?;
    let rollback = format!("ROLLBACK PREPARED '{gid}'");
    fleet.shard(3).client()?.batch_execute(&rollback)?;
    pause(15);
    happens("shard 3 can be reached, and the heuristic outcome is found")?;
    fleet.reconnect(3);
    pause(20);
    Ok(moments)
}

fn pause(seconds: u64) {
    sleep(Duration::from_secs(seconds));
}

/// A transaction on two shards that is prepared as 'pending', and its session.
fn pending(fleet: &Fleet, shards: [usize; 2], id: i32) -> Result<Client> {
    let mut session = fleet.session()?;
    session.batch_execute("BEGIN")?;
    for shard in shards {
        session.batch_execute(&format!("INSERT INTO ft{shard} VALUES ({id}, NULL)"))?;
    }
    session.batch_execute("PREPARE TRANSACTION 'pending'")?;
    Ok(session)
}

/// What the pending transaction is called on shard `number`.
fn gid_on(fleet: &Fleet, number: usize) -> Result<String> {
    let query = format!(
        "SELECT identifier FROM pg_fdw_xacts WHERE status = 'prepared' AND serverid =
             (SELECT oid FROM pg_foreign_server WHERE srvname = 'shard{number}')"
    );
    let gid: String = one(&mut fleet.session()?, &query)?;
    let there = prepared_gids(fleet.shard(number))?;
    there.into_iter().find(|found| *found == gid).context("it is not prepared there")
}

/// A session with a transaction that has locked the row on shard `number`.
fn locking(fleet: &Fleet, number: usize) -> Result<Client> {
    let mut session = fleet.session()?;
    session.batch_execute(&format!("BEGIN; UPDATE ft{number} {ROW}"))?;
    Ok(session)
}

/// Two sessions, each of which waits for the other; one of them gives way.
fn deadlock(fleet: &Fleet) -> Result<()> {
    let (mut one, mut other) = (locking(fleet, 1)?, locking(fleet, 2)?);
    let waits =
        std::thread::spawn(move || one.batch_execute(&format!("UPDATE ft2 {ROW}; COMMIT")).is_ok());
    let has_committed = other.batch_execute(&format!("UPDATE ft1 {ROW}; COMMIT")).is_ok();
    // Its locks are free.
    drop(other);
    let other_has = waits.join().map_err(|_| anyhow!("a session panicked"))?;
    ensure!(has_committed != other_has, "not one of two sessions has given way");
    Ok(())
}
