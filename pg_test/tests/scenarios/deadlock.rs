//! Deadlocks that no server sees whole: each ends by itself, and nothing else does.

mod load;
mod lock_timeout;
mod no_alarm;
mod shapes;
mod shapes_within;
mod view;

use std::time::{Duration, Instant};

use pg_test::oracle::one;
use pg_test::{DEADLINE, Fleet, FleetOptions, lengthened_by_load, wait_until};
use postgres::{Client, Error};

use crate::support::{Background, Outcome, in_background};

/// The time after which a wait counts as long, on all servers.
pub const LONG: Duration = Duration::from_secs(1);

/// Two shards on which rows 1 to 9 are, and a session with the settings of `options`.
pub fn start_with(options: &FleetOptions) -> anyhow::Result<Fleet> {
    let fleet = Fleet::start_with(options)?;
    fleet.session()?.batch_execute(
        "INSERT INTO ft1 SELECT i, 'x' FROM generate_series(1, 9) i;
         INSERT INTO ft2 SELECT i, 'x' FROM generate_series(1, 9) i;
         INSERT INTO lt SELECT i, 'x' FROM generate_series(1, 9) i",
    )?;
    // What the first distributed transaction of a coordinator has to wait for is not part of it.
    fleet.session()?.batch_execute(
        "BEGIN; UPDATE ft1 SET v = 'y' WHERE id = 9; UPDATE ft2 SET v = 'y' WHERE id = 9; COMMIT",
    )?;
    Ok(fleet)
}

pub fn start() -> anyhow::Result<Fleet> {
    start_with(&FleetOptions::default())
}

/// A session that has begun a transaction and run these statements.
pub fn session_that(fleet: &Fleet, statements: &str) -> anyhow::Result<Client> {
    let mut session = fleet.session()?;
    // What hangs fails.
    session
        .batch_execute("SET statement_timeout = '30s'; SET pg_fdw_xacts.prepare_timeout = '30s'")?;
    session.batch_execute(&format!("BEGIN; {statements}"))?;
    Ok(session)
}

/// Runs a statement in the background, and waits until the session waits for a lock on shard
/// `number`, as one more than before; 0 is the coordinator.
pub fn waits_on(
    fleet: &Fleet,
    number: usize,
    session: Client,
    sql: &str,
) -> anyhow::Result<Background> {
    let mut shard = match number {
        0 => fleet.session()?,
        _ => fleet.shard(number).client()?,
    };
    let before = waiting(&mut shard)?;
    let background = in_background(session, sql);
    wait_until(&format!("{sql} waits on shard {number}"), DEADLINE, || {
        // On a busy machine it may have waited, and ended, since the last look.
        Ok(background.is_finished() || waiting(&mut shard)? > before)
    })?;
    Ok(background)
}

/// How many processes of a server wait for locks.
pub fn waiting(server: &mut Client) -> anyhow::Result<i64> {
    one(server, "SELECT count(*) FROM pg_locks WHERE NOT granted")
}

/// Exactly one of the statements fails, with 40P01 and within the time that is allowed from `begin`
/// on; the others go on. Returns the error, the index of the victim and the sessions in order, in
/// the victim's of which nothing is open any more.
pub fn one_gives_way(
    begin: Instant,
    statements: Vec<Background>,
) -> anyhow::Result<(Error, usize, Vec<Client>)> {
    wait_until("all go on", DEADLINE, || Ok(statements.iter().all(Background::is_finished)))?;
    in_time(begin);
    let mut sessions = Vec::new();
    let mut errors = Vec::new();
    for (n, statement) in statements.into_iter().enumerate() {
        let (mut session, result) = statement.join();
        if let Err(error) = result {
            session.batch_execute("ROLLBACK")?;
            errors.push((error, n));
        }
        sessions.push(session);
    }
    assert_eq!(errors.len(), 1, "{errors:#?}");
    let (error, victim) = errors.remove(0);
    assert_eq!(error.code().map(|c| c.code()), Some("40P01"), "{error:?}");
    Ok((error, victim, sessions))
}

/// A deadlock that was complete at `begin` has ended in time, with some seconds for a busy machine.
/// Without detection it is for ever.
#[track_caller]
pub fn in_time(begin: Instant) {
    let limit = lengthened_by_load(LONG + Duration::from_secs(9));
    assert!(begin.elapsed() < limit, "it took {:?}", begin.elapsed());
}

/// DETAIL of an error.
pub fn detail(error: &Error) -> String {
    error.as_db_error().and_then(|e| e.detail()).unwrap_or_default().to_owned()
}

/// Commits what is open in each, and checks that nothing is left behind.
pub fn commit_all(fleet: &Fleet, sessions: Vec<Client>) -> Outcome {
    for mut session in sessions {
        session.batch_execute("COMMIT")?;
    }
    pg_test::oracle::assert_settled(fleet);
    pg_test::oracle::assert_no_locks(fleet)
}
