//! A server that has moved together with what is prepared on it: it is the one that was used, at another address, or its
//! standby, which was promoted. What proves it is something of ours that was prepared before it moved: another server of
//! the same image has none of that.

use std::ffi::CString;

use std::collections::HashSet;

use super::Fenced;
use crate::log::left::handed_over;
use crate::log::registered::{self, Registered};
use crate::log::{decisions, replication};
use crate::pg::error::Result;
use crate::pg::transaction;
use crate::protocol::gid::{Gid, Identity};

/// Where the participant is from now on, if what is listed at another address than the recorded one proves that. It is
/// written down before anything is settled there.
pub(super) fn follow(
    fenced: &Fenced,
    identity: Identity,
    participant: &Registered,
    listed: &HashSet<Gid>,
) -> Result<Option<CString>> {
    let Fenced(established, address) = fenced;
    let is_same = established.connection.fingerprint().is_some_and(|f| participant.is_at(&f));
    if !is_same || participant.is_where(address) || !is_proof(identity, participant, listed)? {
        return Ok(None);
    }
    let moved = Registered { address: Some(address.clone()), ..participant.clone() };
    replication::run_here(|| {
        registered::delete(moved.id)?;
        registered::insert(&moved)
    })?;
    Ok(moved.address)
}

/// Whether something is listed that belongs to this participant by its number, and not to one that has the same server and
/// user elsewhere.
fn is_proof(identity: Identity, participant: &Registered, listed: &HashSet<Gid>) -> Result<bool> {
    let id = participant.id;
    let left = handed_over(participant);
    if left.iter().any(|e| e.participant == id && e.gid().is_some_and(|g| listed.contains(&g))) {
        return Ok(true);
    }
    let rows = transaction::run(|| Ok(decisions::all()))?;
    let mut own = rows.iter().filter(|row| row.participants.iter().any(|(of, _)| *of == id));
    Ok(own.any(|row| listed.contains(&participant.gid(identity, row.nonce))))
}
