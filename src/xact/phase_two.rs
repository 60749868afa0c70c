//! After the local decision: everybody who has prepared is told. Runs where nothing may raise.

use std::rc::Rc;

use pgrx::PgLogLevel;

use crate::guc;
use crate::pg::error::{Result, attempt};
use crate::pg::globals::clear_cancel;
use crate::pg::syncrep;
use crate::protocol::participant::{Event, Outcome, State};
use crate::remote::cache;
use crate::shared::{confirmed, window};
use crate::xact::branch::Member;
use crate::xact::participants::{self, Participant};
use crate::xact::{deliveries, inject, settle};

/// The local transaction has committed: delivers that. Whoever does not confirm it in time is left
/// to the resolver.
///
/// # Errors
/// A bug of ours, or what was raised in delivering; everything is done all the same.
pub fn phase_two() -> Result<()> {
    let all = participants::take_all();
    // Where the wait for synchronous standbys was cut short, the resolver delivers when they have
    // it.
    let is_delivered =
        all.iter().any(|p| p.state() == State::Prepared) && syncrep::own_commit_is_replicated();
    if is_delivered {
        window::pass();
    }
    let decided = settle::decide(&all, is_delivered);
    let prepared: Vec<&Rc<Participant>> =
        all.iter().filter(|p| p.state() == State::Committing).collect();
    let waits = guc::commit_wait() || !prepared.iter().all(|p| p.connection.is_kept());
    let delivered = attempt(|| deliver(&prepared, is_delivered, waits));
    for p in prepared.iter().filter(|p| p.state() == State::Committing) {
        cache::discard(&p.connection);
    }
    let left = settle::leave_unconfirmed(prepared.iter().copied(), PgLogLevel::WARNING);
    let all_settled = prepared.iter().all(|p| p.state() == State::Settled);
    if let (true, Some(first)) = (all_settled, prepared.first().and_then(|p| p.prepared())) {
        confirmed::add(first.gid.nonce);
    }
    for p in &all {
        cache::put_back(&p.connection);
    }
    clear_cancel();
    decided.and(delivered).and(left)
}

fn deliver(prepared: &[&Rc<Participant>], is_delivered: bool, waits: bool) -> Result<()> {
    if prepared.is_empty() || !is_delivered {
        return Ok(());
    }
    if waits {
        return settle::deliver(prepared, Outcome::Commit, "commit");
    }
    deliveries::send(prepared)?;
    inject::point("commit");
    Ok(())
}

/// The local transaction is prepared under the application's 'gxid': this session has nothing more
/// to do with it.
///
/// # Errors
/// A bug of ours; everything is done all the same.
pub fn detach() -> Result<()> {
    let all = participants::take_all();
    let left = settle::apply_to_all(&all, Event::DecidedLater);
    for p in &all {
        cache::put_back(&p.connection);
    }
    inject::point("prepare");
    left
}
