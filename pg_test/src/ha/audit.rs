//! Compares what the places say with what the customers were told.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use postgres::Client;

use super::customers::{Shared, Transfer};
use super::world::{ACCOUNTS, DEPOSIT, Side, World};
use super::{Case, Report};
use crate::bank::clients::Outcome;
use crate::oracle::one;

/// Fills in the report. Everything is at rest. It is told when the transfers began, when the fault
/// was and when it was over, and the port of the node that was the leader before.
pub(super) fn audit(
    world: &World,
    shared: &Shared,
    case: &Case,
    (began, fault, united): (Instant, Instant, Instant),
    old: u16,
    report: &mut Report,
) -> Result<()> {
    let mut ledgers: Vec<HashSet<i64>> = Vec::new();
    let mut total = 0;
    for mut session in world.places()? {
        ledgers.push(entries(&mut session)?);
        total += one::<i64>(&mut session, "SELECT sum(balance)::bigint FROM account")?;
    }
    let transfers = shared.transfers.lock().expect("nobody panics with it").clone();
    for transfer in &transfers {
        count(transfer, &ledgers, case, report)?;
    }
    if case.has_decisions_left() {
        // Those that wrote on shards only, and were delivered, are whole.
        let Report { halved, decisions_lost, .. } = *report;
        ensure!(halved <= decisions_lost, "{halved} halved, {decisions_lost} decisions found");
    }
    report.silence = silence(&transfers, case, began).as_millis() as u64;
    let sums = shared.sums.lock().expect("nobody panics with it").clone();
    report.reads = sums.right + sums.wrong.len() as u64;
    report.stale = sums.wrong.len() as u64;
    if case.is_synchronous {
        let expected = 3 * ACCOUNTS as i64 * DEPOSIT;
        ensure!(total == expected, "the total is {total} and should be {expected}");
        let heuristic = world.heuristic()?;
        ensure!(heuristic == 0, "{heuristic} outcomes are heuristic");
        // A coordinator that is none any more reads what the new one has committed on the shards,
        // and not what that has committed on itself. Sessions may be left at a shard that is none
        // any more.
        let may_be_wrong = |(at, port, _): &&(Instant, i32, i64)| {
            let is_old = case.is_of(Side::Shard) || *port == i32::from(old);
            case.halts() && is_old && *at >= fault && *at <= united
        };
        let wrong: Vec<_> = sums.wrong.iter().filter(|sum| !may_be_wrong(sum)).collect();
        ensure!(wrong.is_empty(), "wrong sums, although there was one leader: {wrong:?}");
        ensure!(report.decisions_lost == 0, "{} decisions are lost", report.decisions_lost);
    }
    Ok(())
}

fn entries(session: &mut Client) -> Result<HashSet<i64>> {
    let rows = session.query("SELECT transfer FROM ledger", &[])?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

fn count(
    transfer: &Transfer,
    ledgers: &[HashSet<i64>],
    case: &Case,
    report: &mut Report,
) -> Result<()> {
    let found: Vec<bool> =
        transfer.places().map(|place| ledgers[place].contains(&transfer.id)).collect();
    let everywhere = found.iter().all(|there| *there);
    let nowhere = !found.contains(&true);
    let is_whole = everywhere || nowhere;
    let is_kept = match &transfer.outcome {
        Outcome::Committed => everywhere,
        Outcome::Refused(_) => nowhere,
        Outcome::Unknown(_) => true,
    };
    match &transfer.outcome {
        Outcome::Committed => report.committed += 1,
        Outcome::Refused(_) => report.refused += 1,
        Outcome::Unknown(_) => report.unknown += 1,
    }
    report.halved += u64::from(!is_whole);
    report.lost += u64::from(!everywhere && transfer.outcome == Outcome::Committed);
    ensure!(is_whole && is_kept || !case.is_synchronous, "{transfer:?} is there: {found:?}");
    Ok(())
}

/// The longest time without an acknowledgement: of any, or of one that takes the shard.
fn silence(transfers: &[Transfer], case: &Case, began: Instant) -> Duration {
    let is_concerned =
        |transfer: &&Transfer| case.is_of(Side::Coordinator) || transfer.places().any(|p| p == 1);
    let mut times: Vec<Instant> = transfers
        .iter()
        .filter(|transfer| transfer.outcome == Outcome::Committed)
        .filter(is_concerned)
        .map(|transfer| transfer.ended)
        .collect();
    times.push(began);
    times.sort_unstable();
    times.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
}

/// How many decisions the killed coordinator has on its disk that the new one does not know.
pub(super) fn decisions_lost(world: &World, side: Side, old: usize) -> Result<u64> {
    if side != Side::Coordinator {
        return Ok(0);
    }
    let text =
        world.coordinator.nodes[old].ask_stopped("SELECT nonce::text FROM fdw_xacts.decision")?;
    let nonces = text.lines().filter_map(|line| line.split_once("nonce = \"")?.1.split('"').next());
    let rows = world
        .leader_of(Side::Coordinator)?
        .query("SELECT nonce::text FROM fdw_xacts.decision", &[])?;
    let known: HashSet<String> = rows.iter().map(|row| row.get(0)).collect();
    Ok(nonces.filter(|nonce| !known.contains(*nonce)).count() as u64)
}
