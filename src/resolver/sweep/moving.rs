//! A server that has moved together with what is prepared on it: it is the one that was used, at another address, or its
//! standby, which was promoted. What proves it is something of ours that was prepared before it moved: another server of
//! the same image has none of that.

use std::collections::HashSet;
use std::ffi::CString;

use super::{Fenced, Subject};
use crate::pg::error::Result;
use crate::pg::syncrep;
use crate::protocol::gid::Gid;
use crate::shared::entries;
use crate::store::participant_list;

/// Where the participants are from now on, if what is listed at another address than the recorded one proves that. It is
/// written down before anything is settled there.
pub(super) fn follow(
    fenced: &Fenced,
    subject: &Subject,
    listed: &HashSet<Gid>,
) -> Result<Option<CString>> {
    let Fenced(established, address) = fenced;
    let participant = &subject.participant;
    let is_same = established.connection.fingerprint().is_some_and(|f| participant.is_at(&f));
    if !is_same || participant.is_where(address) || !is_proof(subject, listed) {
        return Ok(None);
    }
    // All were recorded at one address: what proves it of one proves it of the others.
    let ids: HashSet<i32> = subject.members.ids().collect();
    syncrep::run_here(|| participant_list::move_to(&ids, Some(address)))?;
    Ok(Some(address.clone()))
}

/// Whether something is listed that belongs to one of the participants by its number, and not to one that has the same
/// server and user elsewhere.
fn is_proof(subject: &Subject, listed: &HashSet<Gid>) -> bool {
    let is_member = |id: i32| subject.members.ids().any(|member| member == id);
    let is_listed = |gid: Option<Gid>| gid.is_some_and(|gid| listed.contains(&gid));
    entries::left().iter().any(|e| is_member(e.participant) && is_listed(e.gid()))
        || subject.committed.iter().any(|open| listed.contains(&open.gid))
}
