//! The numbers of participants on the durable list, which a decision row consists of.
//!
//! This crosses to another process: the list is written by the resolver alone, in a transaction of
//! its own, because a participant must be on it before the transaction that names it commits. A
//! backend asks once per participant, waits for the answer, and remembers the number.

use std::cell::RefCell;

use pgrx::pg_sys::Oid;

use crate::pg::backend_local::BackendLocal;
use crate::pg::error::{Error, Result, SqlState};
use crate::protocol::fingerprint::Fingerprint;
use crate::protocol::gid::Identity;
use crate::remote::basis::Basis;
use crate::shared::{requests, workers};
use crate::xact::participants::Participant;

/// What a number belongs to: an identity, which changes when the extension is created anew; a
/// generation of the list; the participant; and where its server is said to be, which the resolver
/// notes.
type Key = (Identity, u64, Oid, Oid, Fingerprint, Basis);

static KNOWN: BackendLocal<RefCell<Vec<(Key, i32)>>> = BackendLocal::new(RefCell::new(Vec::new()));

/// A participant's number on the list. If this backend does not know it, it is asked of the
/// resolver, which adds the participant if it is not there.
///
/// # Errors
/// The resolver cannot add it, or does not answer in time; a cancel.
pub fn participant_number(identity: Identity, p: &Participant) -> Result<i32> {
    let fingerprint = &p.connection.fingerprint().ok_or_else(|| p.connection.doom_error())?;
    let (serverid, userid) = (p.serverid, p.userid);
    let generation = workers::generation();
    let known = KNOWN.get().borrow().iter().find_map(|((i, g, s, u, f, basis), id)| {
        let is_it = (*i, *g, *s, *u) == (identity, generation, serverid, userid)
            && f == fingerprint
            && *basis == p.connection.basis;
        is_it.then_some(*id)
    });
    if let Some(id) = known {
        return Ok(id);
    }
    let id = requests::register(serverid, userid, fingerprint)?;
    if id < 1 {
        return Err(Error::new(
            SqlState::INTERNAL_ERROR,
            "the resolver gave a participant no number",
        ));
    }
    let basis = p.connection.basis.clone();
    // Older numbers of the same participant are of no use any more.
    let mut known = KNOWN.get().borrow_mut();
    known.retain(|((i, g, s, u, ..), _)| {
        (*i, *g) == (identity, generation) && (*s, *u) != (serverid, userid)
    });
    known.push(((identity, generation, serverid, userid, fingerprint.clone(), basis), id));
    Ok(id)
}
