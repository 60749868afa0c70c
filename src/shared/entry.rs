//! What shared memory holds of one participant that is prepared or about to be.

use pgrx::pg_sys::{self, Oid};

use crate::protocol::gid::{Gid, Identity, Nonce};
use crate::protocol::verdict::Reason;

/// Status of a participant as the view shows it.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Status {
    /// Unused entry.
    Free,
    /// PREPARE was or will be sent.
    Preparing,
    /// PREPARE was confirmed; not decided.
    Prepared,
    /// Decided: COMMIT PREPARED has to be delivered.
    Committing,
    /// ROLLBACK PREPARED has to be delivered.
    Aborting,
}

/// One participant that is prepared or about to be.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Entry {
    /// What the view shows.
    pub status: Status,
    /// The backend that settles it, 0 where the resolver does.
    pub owner: i32,
    /// The server process on the participant that ran PREPARE; 0 if it was prepared before this server's
    /// start.
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
    /// The participant's number on the list.
    pub participant: i32,
    /// The transaction's xid there; 0 where it is not known.
    pub remote_xid: u64,
    /// How many participants the transaction has; each has an entry, or had one until it was settled.
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
}

impl Status {
    /// As the view shows it.
    pub fn label(self) -> &'static str {
        match self {
            Status::Free => "free",
            Status::Preparing => "preparing",
            Status::Prepared => "prepared",
            Status::Committing => "committing",
            Status::Aborting => "aborting",
        }
    }
}
