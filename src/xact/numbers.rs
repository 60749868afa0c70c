//! The numbers of participants on the durable list, which a decision row consists of.
//!
//! This crosses to another process: the list is written by the resolver alone, in a transaction of
//! its own, because a participant must be on it before the transaction that names it commits. A
//! backend asks once per participant, waits for the answer, and remembers the number.

use std::cell::RefCell;
use std::collections::HashMap;

use pgrx::pg_sys::Oid;

use crate::pg::backend_local::BackendLocal;
use crate::pg::error::{Error, Result, SqlState};
use crate::protocol::fingerprint::Fingerprint;
use crate::protocol::gid::Identity;
use crate::remote::basis::Basis;
use crate::shared::{requests, resolvers};
use crate::xact::participants::Participant;

/// A participant's number, and what it belongs to: an identity, which changes when the extension is
/// created anew; a generation of the list; and where its server is said to be, which the resolver
/// notes.
struct Known {
    id: i32,
    identity: Identity,
    generation: u64,
    fingerprint: Fingerprint,
    basis: Basis,
}

/// By foreign server and user. What belongs to an older identity or generation is of no use any
/// more, and replaced when the participant is used again.
type ByMapping = HashMap<(Oid, Oid), Known>;

static KNOWN: BackendLocal<RefCell<Option<ByMapping>>> = BackendLocal::new(RefCell::new(None));

/// A participant's number on the list. If this backend does not know it, it is asked of the
/// resolver, which adds the participant if it is not there.
///
/// # Errors
/// The resolver cannot add it, or does not answer in time; a cancel.
pub fn participant_number(identity: Identity, p: &Participant) -> Result<i32> {
    let fingerprint = &p.connection.fingerprint().ok_or_else(|| p.connection.doom_error())?;
    let (serverid, userid) = (p.serverid, p.userid);
    let generation = resolvers::generation();
    let mapping = (serverid, userid);
    let known = KNOWN.get().borrow().as_ref().and_then(|all| {
        let known = all.get(&mapping)?;
        let is_it = (known.identity, known.generation) == (identity, generation)
            && known.fingerprint == *fingerprint
            && known.basis == p.connection.basis;
        is_it.then_some(known.id)
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
    let fingerprint = fingerprint.clone();
    let known = Known { id, identity, generation, fingerprint, basis };
    KNOWN.get().borrow_mut().get_or_insert_default().insert(mapping, known);
    Ok(id)
}
