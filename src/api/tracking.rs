//! For a client that lost the answer to its COMMIT: label the transaction inside it, ask later what became of it.

use pgrx::datum::DatumWithOid;
use pgrx::prelude::*;

use crate::api::doubt;
use crate::log::shmem::Status;
use crate::log::{entries, label_limit, labels, replication, requests, workers};
use crate::pg::error::{Error, Result, SqlState, attempt, check_for_interrupts};
use crate::protocol::label::{Known, Outcome, is_valid, outcome};

/// Labels the current transaction. The label is written with it, so that it is there exactly if the transaction
/// commits.
#[pg_extern(sql = "
CREATE FUNCTION pg_fdw_xacts_track(label text) RETURNS void
    LANGUAGE c STRICT VOLATILE AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';
")]
fn pg_fdw_xacts_track(label: &str) {
    attempt(|| track(label)).unwrap_or_else(|error| error.raise_in_pgrx());
}

fn track(label: &str) -> Result<()> {
    crate::require_preload()?;
    check(label)?;
    // SAFETY: reads the transaction's state.
    if unsafe { pg_sys::GetCurrentTransactionNestLevel() } > 1 {
        return Err(Error::new(
            SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
            "cannot label a transaction inside a savepoint or an exception block",
        )
        .detail("The label would vanish with the savepoint, while the transaction commits.")
        .hint("Call pg_fdw_xacts_track() first, before any savepoint."));
    }
    // It is the resolver that lets labels expire.
    workers::identity_if_ready();
    label_limit::count()?;
    labels::insert(label, false)?;
    // SAFETY: sets a flag of the transaction: an outcome that was told must outlive a crash.
    unsafe { pg_sys::ForceSyncCommit() };
    replication::require_synchronous_commit();
    Ok(())
}

fn check(label: &str) -> Result<()> {
    if is_valid(label) {
        return Ok(());
    }
    Err(Error::new(SqlState::new(b"22023"), "a label must have between 1 and 200 bytes"))
}

/// What became of the transaction with a label: `committed`, `committing` (decided, a participant has still to hear),
/// `prepared`, `in progress`, `aborted`, or `unknown` (the label has expired, or this is a standby). Asking for a label
/// that nobody has used takes it: a transaction that tries to use it later fails, so that `aborted` stays true.
#[pg_extern(sql = "
CREATE FUNCTION pg_fdw_xacts_outcome(label text) RETURNS text
    LANGUAGE c STRICT VOLATILE AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';
")]
fn pg_fdw_xacts_outcome(label: &str) -> String {
    attempt(|| ask(label)).unwrap_or_else(|error| error.raise_in_pgrx()).to_string()
}

fn ask(label: &str) -> Result<Outcome> {
    crate::require_preload()?;
    check(label)?;
    // SAFETY: reads a flag in shared memory.
    let standby = unsafe { pg_sys::RecoveryInProgress() };
    loop {
        let (known, unconfirmed) = look(label)?;
        if let Some(outcome) = outcome(known, standby, unconfirmed) {
            return Ok(outcome);
        }
        label_limit::count()?;
        if requests::take_label(label)? {
            return Ok(Outcome::Aborted);
        }
        // A transaction has used it meanwhile, or is about to.
        check_for_interrupts()?;
    }
}

/// What the table says, and whether a participant has still to hear of it.
fn look(label: &str) -> Result<(Known, bool)> {
    let Some(row) = labels::find(label)? else {
        let known = if labels::has_expired(label) { Known::Expired } else { Known::Unseen };
        return Ok((known, false));
    };
    let known = match (row.taken, row.in_progress) {
        // Not committed yet, so nobody has been told so: as if it were not there.
        (true, true) => Known::Running,
        (true, false) => Known::Taken,
        (false, true) if is_prepared(row.xid)? => Known::Prepared,
        (false, true) => Known::Running,
        (false, false) => Known::Committed,
    };
    // SAFETY: a plain global of this backend.
    let dbid = unsafe { pg_sys::MyDatabaseId };
    // In this order: what is not to be asked for any more has an entry.
    let unconfirmed = (known == Known::Committed && doubt::is_unasked(row.xid))
        || entries::all()
            .iter()
            .any(|e| e.dbid == dbid && e.xid == row.xid && e.status != Status::Free);
    Ok((known, unconfirmed))
}

fn is_prepared(xid: pg_sys::TransactionId) -> Result<bool> {
    // `select` and not `get_one`: a standby cannot assign the xid that the latter asks for.
    Spi::connect(|client| {
        let query = "SELECT FROM pg_catalog.pg_prepared_xacts WHERE transaction = $1";
        client.select(query, Some(1), &[DatumWithOid::from(xid)]).map(|rows| !rows.is_empty())
    })
    .map_err(|error| Error::new(SqlState::INTERNAL_ERROR, error.to_string()))
}
