//! Who else uses the bank's servers: sessions with long statements, and those who change
//! definitions.

use std::sync::atomic::Ordering;

use anyhow::Result;
use postgres::Client;

use super::Shared;
use super::places::SHARDS;
use super::plan::Plan;
use super::random::Random;

/// Under this name the sessions with long statements can be found, to be cancelled when the bank is
/// to come to rest.
pub(super) const SLEEPER: &str = "sleeper";

/// Runs statements on the shards that may last longer than anybody waits for them. Before each it
/// commits over two shards: from then on its session is one that may prepare.
pub(super) fn sleep(shared: &Shared, plan: &Plan, number: u64) -> Result<()> {
    let mut random = Random::new(plan.seed, 1000 + number);
    let coordinator = number as usize % plan.coordinators();
    work(shared, coordinator, |session| {
        let _ = session.batch_execute(&format!("SET application_name = '{SLEEPER}'"));
        let (shard, id) = (1 + random.below(SHARDS as u64), random.below(1 << 31));
        let seconds = random.choose(&["0.1", "1", "1000"]);
        let sleep =
            format!("SELECT pg_fdw_xacts_exec('shard{shard}', 'SELECT pg_sleep({seconds})')");
        let write = format!(
            "INSERT INTO ft1 VALUES ({id}, ''); INSERT INTO ft{shard} VALUES ({id} + 1, '')"
        );
        let prepare = format!(
            "BEGIN; INSERT INTO ft1 VALUES ({id} + 2, ''); INSERT INTO ft2 VALUES ({id}, ''); COMMIT"
        );
        for statement in [prepare, format!("BEGIN; {write}; {sleep}; COMMIT")] {
            if session.batch_execute(&statement).is_err() {
                let _ = session.batch_execute("ROLLBACK");
            }
        }
    })
}

/// Changes definitions that the transfers depend on, and others, in ways that harm nobody.
pub(super) fn change(shared: &Shared, plan: &Plan, number: u64) -> Result<()> {
    let mut random = Random::new(plan.seed, 2000 + number);
    let coordinator = number as usize % plan.coordinators();
    work(shared, coordinator, |session| {
        let (shard, size) = (1 + random.below(SHARDS as u64), 10 + random.below(100));
        let alter =
            random.choose(&["ADD COLUMN IF NOT EXISTS note text", "DROP COLUMN IF EXISTS note"]);
        let statement = match random.below(12) {
            0 => format!("ALTER FOREIGN TABLE account{shard} OPTIONS (ADD fetch_size '{size}')"),
            1 => format!("ALTER FOREIGN TABLE account{shard} OPTIONS (DROP fetch_size)"),
            2 => format!("ALTER SERVER shard{shard} OPTIONS (ADD batch_size '{size}')"),
            3 => format!("ALTER SERVER shard{shard} OPTIONS (DROP batch_size)"),
            4 => "CREATE SERVER other FOREIGN DATA WRAPPER pg_fdw_xacts OPTIONS (host '127.0.0.1', port '1');
                  CREATE USER MAPPING FOR PUBLIC SERVER other"
                .to_owned(),
            5 => "DROP SERVER IF EXISTS other CASCADE".to_owned(),
            6 => format!("SELECT pg_fdw_xacts_exec('shard{shard}', 'ALTER TABLE public.account {alter}')"),
            7 => format!("ALTER TABLE account {alter}"),
            8 => "VACUUM ANALYZE account".to_owned(),
            9 => format!("ALTER SERVER shard{shard} OPTIONS (ADD async_capable 'true')"),
            10 => format!("ALTER SERVER shard{shard} OPTIONS (DROP async_capable)"),
            _ => "VACUUM FULL fdw_xacts.decision".to_owned(),
        };
        let _ = session.batch_execute(&statement);
        shared.let_pass(random.below(40));
    })
}

/// Does the same again and again in a session of a coordinator, except while the bank rests.
pub(super) fn work(
    shared: &Shared,
    coordinator: usize,
    mut act: impl FnMut(&mut Client),
) -> Result<()> {
    let mut session = None;
    while !shared.stop.load(Ordering::Relaxed) {
        if shared.rest(|| ()) {
            continue;
        }
        let mut current = match session.take().filter(|session: &Client| !session.is_closed()) {
            Some(session) => session,
            None => match shared.session(coordinator)? {
                Some(session) => session,
                None => break,
            },
        };
        act(&mut current);
        session = Some(current);
    }
    Ok(())
}
