//! What shared memory holds of one participant that is prepared or about to be.

use std::time::Duration;

use pgrx::pg_sys::{self, Oid};

use crate::protocol::gid::{Gid, Identity, Nonce};
use crate::protocol::place::Place;
use crate::protocol::verdict::Reason;
use crate::protocol::wall_clock::has_passed;

pub use crate::protocol::shown::Status;

/// Who settles a participant.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Owner {
    /// The backend with this process id.
    Backend(i32),
    /// The resolver. Where the status is Prepared, it waits for the application's 'gxid'.
    Resolver,
}

/// One participant that is prepared or about to be.
///
/// The life of an entry:
///
/// 1. `entries::reserve` makes the entries of a transaction before its decision row is written and
///    before the first PREPARE is sent: Preparing, owned by the backend.
/// 2. From then on the entry follows each step of the owner's state machine
///    (`protocol::participant::State`): `entry_change` says what a step means for it, and
///    `entries::follow` writes it. Nobody else changes an entry that a backend owns, but for 5.
/// 3. The participant confirms PREPARE: Prepared.
/// 4. The decision: Committing or Aborting, still owned by the backend, which delivers it. Its
///    confirmation ends the entry.
/// 5. An entry comes to the resolver when its owner
///    * could not have the outcome confirmed: Committing or Aborting (`entries::follow`);
///    * has prepared the local transaction under the application's 'gxid': Prepared;
///    * has died, or has not delivered the decision in time (`entries::reap`);
///    * goes on without waiting for the answer, and a transaction that finds no free entry needs
///      the room (`entries::reserve`).
/// 6. From there a session that settles 'gxid' may take it back (`Change::Claim`): 4 again.
/// 7. The resolver ends the entry when the participant has confirmed the outcome, or is found to
///    have nothing prepared; an operator can give it up. Every end names its reason
///    (`entry_change::Why`).
///
/// The resolver makes entries too: for what was prepared before the start of this server, whether
/// it waits for 'gxid' (`entries::adopt`) or could not be settled (`left::note`). They begin at 5.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Entry {
    /// What the view shows.
    pub status: Status,
    /// Who settles it.
    pub owner: Owner,
    /// The server process on the participant that ran PREPARE; 0 if it was prepared before this
    /// server's start.
    pub remote_pid: i32,
    /// When it was made, and then when it was decided, in PostgreSQL's microseconds.
    pub since: i64,
    /// The database here.
    pub dbid: Oid,
    /// The local transaction.
    pub xid: pg_sys::TransactionId,
    /// The foreign server.
    pub serverid: Oid,
    /// The local user.
    pub userid: Oid,
    /// Identity of the database here.
    pub identity: u64,
    /// The transaction's nonce.
    pub nonce: u64,
    /// The participant's number on the list; 0 where it is not on it any more.
    pub participant: i32,
    /// The transaction's xid there; 0 where it is not known.
    pub remote_xid: u64,
    /// The local transaction in 64 bits if it has written more than the decision here, which its
    /// readers see; otherwise 0.
    pub local_xid: u64,
    /// Where it is, to compare that xid with snapshots of the same place.
    pub place: Place,
    /// The number of the decision to commit, given before anybody sends COMMIT PREPARED of the
    /// transaction; 0 before. All its entries have the same.
    pub number: u64,
    /// The client may have been told of the commit, although this participant has not confirmed it.
    pub acknowledged: bool,
    /// How many participants the transaction has; each has an entry, or had one until it was
    /// settled. 0 in an entry for what a sweep has left: whether the others have any is not known.
    pub participants: u32,
    /// COMMIT PREPARED is on its way, and the owner goes on without waiting for the answer.
    pub unawaited: bool,
    /// Why the resolver has left it, once it is the resolver's.
    pub reason: Reason,
}

impl Entry {
    /// The gid it stands for.
    pub fn gid(&self) -> Option<Gid> {
        Some(Gid {
            identity: Identity::new(self.identity)?,
            nonce: Nonce::new(self.nonce)?,
            serverid: self.serverid.to_u32(),
            userid: self.userid.to_u32(),
        })
    }

    /// Whether it is missing on its server although a client may know of the commit.
    pub fn is_acknowledged(&self) -> bool {
        self.number != 0 && self.acknowledged
    }

    /// Whether it is on that server; `place` is where that leads, if it is known.
    pub fn is_on(&self, serverid: Oid, place: Option<Place>) -> bool {
        self.serverid == serverid || place.is_some_and(|place| place.is_same(&self.place))
    }

    /// Whether what was decided has not been delivered within `limit`.
    pub fn is_overdue(&self, now: i64, limit: Duration) -> bool {
        self.status.is_decided() && has_passed(self.since, now, limit)
    }

    /// Whether no backend settles it.
    pub fn is_left(&self) -> bool {
        self.owner == Owner::Resolver
    }

    /// Whether the resolver has to deliver an outcome.
    pub fn is_for_the_resolver(&self) -> bool {
        self.is_left() && self.status.is_decided()
    }
}
