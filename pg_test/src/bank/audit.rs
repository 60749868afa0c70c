//! Compares what the places say with what the customers were told.

use std::collections::{HashMap, HashSet};

use anyhow::{Result, bail, ensure};
use postgres::Client;

use super::Report;
use super::clients::{Outcome, Transfer};
use super::places::{Bank, DEPOSIT, Place};
use super::plan::Plan;
use super::slips;
use crate::Cluster;
use crate::oracle::one;

/// The bank must be at rest, at the end of `phase`.
pub(super) fn audit(
    bank: &Bank,
    plan: &Plan,
    phase: u64,
    transfers: &[Transfer],
) -> Result<Report> {
    let mut ledgers: HashMap<Place, HashSet<i64>> = HashMap::new();
    let mut slips = HashMap::new();
    let mut total = 0;
    for (place, mut session) in bank.books()? {
        let (account, ledger) = (place.real_table("account"), place.real_table("ledger"));
        let wrong: i64 = one(
            &mut session,
            &format!(
                "SELECT count(*) FROM {account} a WHERE balance <> {DEPOSIT} +
                     (SELECT coalesce(sum(amount), 0) FROM {ledger} l WHERE l.account = a.id)"
            ),
        )?;
        ensure!(wrong == 0, "{wrong} balances at {place:?} are not what the ledger says");
        total += one::<i64>(&mut session, &format!("SELECT sum(balance)::bigint FROM {account}"))?;
        let rows = session.query(&format!("SELECT transfer FROM {ledger}"), &[])?;
        ledgers.insert(place, rows.iter().map(|row| row.get(0)).collect());
        slips.insert(place, slips::count(&mut session, &place.real_table("slip"))?);
    }
    let expected = ledgers.len() as i64 * plan.accounts as i64 * DEPOSIT;
    ensure!(total == expected, "the total is {total} and should be {expected}");
    let mut report = Report::default();
    let mut known = 0;
    let mut witnesses: Vec<Client> =
        bank.coordinators().map(Cluster::client).collect::<Result<_>>()?;
    for transfer in transfers {
        let found: Vec<bool> =
            transfer.places().map(|place| ledgers[&place].contains(&transfer.id)).collect();
        let there = found[0];
        known += if there { found.len() } else { 0 };
        if found.iter().any(|f| *f != there) {
            bail!("half a transfer: {transfer:?} is there: {found:?}");
        }
        if let Outcome::Refused(reason) | Outcome::Unknown(reason) = &transfer.outcome {
            *report.reasons.entry(reason.clone()).or_default() += 1;
        }
        if plan.labels && (transfer.explicit || matches!(transfer.outcome, Outcome::Unknown(_))) {
            let question = format!("SELECT pg_fdw_xacts_outcome('{}')", transfer.name());
            let told: String = one(&mut witnesses[transfer.coordinator], &question)?;
            let expected = if there { "committed" } else { "aborted" };
            ensure!(
                told == expected,
                "pg_fdw_xacts_outcome() says {told}, not {expected}: {transfer:?}"
            );
        }
        match (&transfer.outcome, there) {
            (Outcome::Committed, true) => report.committed += 1,
            (Outcome::Refused(_), false) => report.refused += 1,
            (Outcome::Unknown(_), _) => {
                report.unknown += 1;
                report.found += u64::from(there);
            }
            (Outcome::Committed, false) => bail!("acknowledged and not there: {transfer:?}"),
            (Outcome::Refused(_), true) => bail!("refused and there: {transfer:?}"),
        }
    }
    let noted: usize = ledgers.values().map(HashSet::len).sum();
    ensure!(noted == known, "{noted} ledger entries, {known} of known transfers");
    report.with_slips = slips::audit(slips, transfers, phase, |transfer| {
        transfer.places().all(|place| ledgers[&place].contains(&transfer.id))
    })?;
    Ok(report)
}
