//! Labels, for a client that may lose the answer to its COMMIT: it labels the transaction from
//! within, and can ask later what became of it.

use std::ffi::CStr;
use std::time::{Duration, Instant};

use pgrx::datum::DatumWithOid;
use pgrx::pg_sys::Datum;
use pgrx::prelude::*;

use crate::api::doubt;
use crate::pg::error::{Error, Result, SqlState, c_string, check_for_interrupts};
use crate::pg::function::{not_on_standby, text_function};
use crate::pg::globals::{in_recovery, nest_level};
use crate::pg::latch;
use crate::pg::syncrep;
use crate::pg::wait_event::WaitEvent;
use crate::protocol::label::{Known, Outcome, is_valid, outcome};
use crate::shared::{entries, label_limit, requests, resolvers};
use crate::store::{labels, table};

text_function! {
    /// `pg_fdw_xacts_track(label text) returns void`: labels the current transaction. The label is
    /// written by the transaction itself, so it exists exactly if the transaction commits.
    pg_fdw_xacts_track_wrapper, pg_finfo_pg_fdw_xacts_track_wrapper, |label| {
        track(label).map(|()| Datum::from(0))
    }
}

fn track(label: &CStr) -> Result<()> {
    crate::pg::preload::require()?;
    not_on_standby(c"pg_fdw_xacts_track()")?;
    check(label)?;
    if nest_level() > 1 {
        return Err(Error::new(
            SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
            "cannot label a transaction inside a savepoint or an exception block",
        )
        .detail("The label would vanish with the savepoint, while the transaction commits.")
        .hint("Call pg_fdw_xacts_track() first, before any savepoint."));
    }
    // A resolver is needed to delete labels that have expired.
    resolvers::identity_if_ready();
    label_limit::count()?;
    labels::insert(label, false)?;
    // SAFETY: sets a flag of the transaction. An outcome that a client was told must outlive a
    // crash.
    unsafe { pg_sys::ForceSyncCommit() };
    syncrep::require_synchronous_commit();
    Ok(())
}

fn check(label: &CStr) -> Result<()> {
    if is_valid(label.to_bytes()) {
        return Ok(());
    }
    Err(Error::new(SqlState::new(b"22023"), "a label must have between 1 and 200 bytes"))
}

text_function! {
    /// `pg_fdw_xacts_outcome(label text) returns text`: what became of the transaction with a
    /// label: `committed`, `committing` (committed, but not all participants have confirmed),
    /// `prepared`, `in progress`, `aborted`, or `unknown` (the label has expired, or this is a
    /// standby). Asking for a label that nobody has used takes it: a transaction that tries to use
    /// it later fails, so that `aborted` stays true.
    pg_fdw_xacts_outcome_wrapper, pg_finfo_pg_fdw_xacts_outcome_wrapper, |label| {
        Ok(table::text(&c_string(ask(label)?.to_string())))
    }
}

fn ask(label: &CStr) -> Result<Outcome> {
    crate::pg::preload::require()?;
    check(label)?;
    let standby = in_recovery();
    loop {
        let (known, unconfirmed) = look(label)?;
        let is_decided = matches!(known, Known::Committed | Known::Taken);
        let replicated = standby || !is_decided || is_replicated()?;
        if let Some(outcome) = outcome(known, standby, unconfirmed, replicated) {
            return Ok(outcome);
        }
        label_limit::count()?;
        if requests::take_label(label)? {
            return Ok(Outcome::Aborted);
        }
        // A transaction has used it meanwhile, or is about to: look again.
        check_for_interrupts()?;
    }
}

/// How long an answer waits for the synchronous standbys. Mostly they have all that can be seen
/// here, or will in a moment.
const REPLICATION: Duration = Duration::from_secs(1);

/// Whether the synchronous standbys have what this session has seen to be committed: a fail-over
/// must not take back what a client was told. The wait of the commit itself may have been cut
/// short, or skipped by a crash.
fn is_replicated() -> Result<bool> {
    let position = syncrep::written_so_far();
    let deadline = Instant::now() + REPLICATION;
    while !syncrep::outlives_a_failover(position) {
        if Instant::now() >= deadline {
            return Ok(false);
        }
        check_for_interrupts()?;
        latch::wait(Duration::from_millis(10), WaitEvent::Resolver);
    }
    Ok(true)
}

/// What the table says of a label, and whether not all participants have confirmed its transaction.
fn look(label: &CStr) -> Result<(Known, bool)> {
    let Some(row) = labels::find(label)? else {
        let known = if labels::has_expired(label) { Known::Expired } else { Known::Unseen };
        return Ok((known, false));
    };
    let known = match (row.taken, row.in_progress) {
        // The resolver is taking it, and has not committed: nobody was told yet that it is taken.
        (true, true) => Known::Running,
        (true, false) => Known::Taken,
        (false, true) if is_prepared(row.xid)? => Known::Prepared,
        (false, true) => Known::Running,
        (false, false) => Known::Committed,
    };
    // In this order: whatever is left of a participant that counts as asked has an entry by then.
    let unconfirmed = (known == Known::Committed && doubt::is_unasked(row.xid, row.is_frozen))
        || !entries::of_transaction(row.xid).is_empty();
    Ok((known, unconfirmed))
}

fn is_prepared(xid: pg_sys::TransactionId) -> Result<bool> {
    // `select` and not `get_one`, which asks for an xid: a standby cannot assign one.
    Spi::connect(|client| {
        let query =
            "SELECT FROM pg_catalog.pg_prepared_xacts WHERE transaction OPERATOR(pg_catalog.=) $1";
        client.select(query, Some(1), &[DatumWithOid::from(xid)]).map(|rows| !rows.is_empty())
    })
    .map_err(|error| Error::new(SqlState::INTERNAL_ERROR, error.to_string()))
}
