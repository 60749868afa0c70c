//! A server that has moved together with what is prepared on it: it is the recorded server at
//! another address, or its standby, which was promoted. Something of ours that was prepared before
//! it moved proves that: a copy of the server does not have it.

use std::collections::HashSet;
use std::ffi::CString;

use super::{Decisions, Fenced, Subject};
use crate::pg::error::Result;
use crate::pg::syncrep;
use crate::protocol::gid::Gid;
use crate::shared::entries;
use crate::store::participant_list;

/// The new address of the participants, if the server is not at the recorded address and what is
/// listed there proves that it has moved. Records the address before anything is settled there:
/// what is settled proves nothing any more.
pub(super) fn follow(
    fenced: &Fenced,
    subject: &Subject,
    listed: &HashSet<Gid>,
    decisions: &Decisions,
) -> Result<Option<CString>> {
    let address = &fenced.address;
    let participant = &subject.participant;
    let is_same = fenced.connection().fingerprint().is_some_and(|f| participant.is_at(&f));
    if !is_same || participant.is_where(address) || !is_proof(subject, listed, decisions) {
        return Ok(None);
    }
    // All were recorded at one address: what proves it for one proves it for the others.
    let ids: HashSet<i32> = subject.members.ids().collect();
    syncrep::run_here(|| participant_list::move_to(&ids, Some(address)))?;
    Ok(Some(address.clone()))
}

/// Whether something is listed that is known, by a participant's number, to be on one of the
/// participants. The same server and user may be those of another participant, elsewhere.
fn is_proof(subject: &Subject, listed: &HashSet<Gid>, decisions: &Decisions) -> bool {
    let is_member = |id: i32| subject.members.has(id);
    let is_listed = |gid: Option<Gid>| gid.is_some_and(|gid| listed.contains(&gid));
    entries::left().iter().any(|e| is_member(e.participant) && is_listed(e.gid()))
        || decisions.iter().any(|(gid, it)| listed.contains(gid) && is_member(it.participant))
}
