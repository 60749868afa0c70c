//! What a backend asks the resolver of its database to do, and waits for. Some things only the
//! resolver may do, such as to write a participant down.
//!
//! Each backend has a place of its own for one request at a time. [`Ask`] is written into it as a
//! record of fixed size and read back in this file only.

use std::ffi::{CStr, CString};
use std::time::Duration;

use pgrx::pg_sys::Oid;

use crate::guc::answer_timeout;
use crate::pg::error::{Error, Result, SqlState, c_string};
use crate::pg::globals::{my_database, my_pid};
use crate::pg::versions;
use crate::protocol::fingerprint::Fingerprint;
use crate::protocol::gid::Nonce;
use crate::protocol::label;
use crate::shared::resolvers::{self, wait_for};
use crate::shared::shmem::{self, Memory};

/// How long a backend waits while the resolver tries every participant.
const RESOLVE_DEADLINE: Duration = Duration::from_secs(60);

/// What can be asked. The resolver answers with a number.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Ask {
    /// Write a participant down before its first PREPARE; the answer is its number on the list.
    Register {
        /// The foreign server.
        serverid: Oid,
        /// The local user whose mapping is used.
        userid: Oid,
        /// Of the [`Fingerprint`].
        system_identifier: u64,
        /// Of the [`Fingerprint`].
        database: CString,
    },
    /// Try every participant now; answered when each has been tried.
    Resolve,
    /// Give up one prepared transaction; the answer is 0 if it was not in doubt.
    ForgetTransaction {
        /// The transaction.
        nonce: Nonce,
        /// The foreign server.
        serverid: Oid,
        /// The local user whose mapping was used.
        userid: Oid,
    },
    /// Give up a foreign server, with everything that may be left there.
    ForgetServer(Oid),
    /// Take a label, so that no transaction can use it any more; the answer is 0 if one has used
    /// it, or is about to.
    TakeLabel(CString),
}

/// The longest text in a record, with the NUL that ends it.
const TEXT_LEN: usize = 256;
const _: () = assert!(label::MAX_LEN < TEXT_LEN);

#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Register,
    Resolve,
    ForgetTransaction,
    ForgetServer,
    TakeLabel,
}

/// An [`Ask`] in shared memory. What its kind does not use is 0.
#[repr(C)]
#[derive(Clone, Copy)]
struct Record {
    kind: Kind,
    serverid: Oid,
    userid: Oid,
    /// A system identifier or a nonce.
    number: u64,
    /// A database's name or a label, ended by a NUL.
    text: [u8; TEXT_LEN],
}

impl Record {
    fn of(ask: &Ask) -> Self {
        let empty = |kind| Self {
            kind,
            serverid: Oid::INVALID,
            userid: Oid::INVALID,
            number: 0,
            text: [0; TEXT_LEN],
        };
        match *ask {
            Ask::Register { serverid, userid, system_identifier, ref database } => Self {
                serverid,
                userid,
                number: system_identifier,
                text: text(database),
                ..empty(Kind::Register)
            },
            Ask::Resolve => empty(Kind::Resolve),
            Ask::ForgetTransaction { nonce, serverid, userid } => {
                Self { serverid, userid, number: nonce.number(), ..empty(Kind::ForgetTransaction) }
            }
            Ask::ForgetServer(serverid) => Self { serverid, ..empty(Kind::ForgetServer) },
            Ask::TakeLabel(ref label) => Self { text: text(label), ..empty(Kind::TakeLabel) },
        }
    }

    /// What was asked; `None` if that is not what [`of`](Self::of) writes.
    fn ask(&self) -> Option<Ask> {
        let Self { kind, serverid, userid, number, .. } = *self;
        let text = || c_string(&self.text[..]);
        Some(match kind {
            Kind::Register => {
                Ask::Register { serverid, userid, system_identifier: number, database: text() }
            }
            Kind::Resolve => Ask::Resolve,
            Kind::ForgetTransaction => {
                Ask::ForgetTransaction { nonce: Nonce::new(number)?, serverid, userid }
            }
            Kind::ForgetServer => Ask::ForgetServer(serverid),
            Kind::TakeLabel => Ask::TakeLabel(text()),
        })
    }
}

/// A text with the NUL that ends it; clipped if it is too long.
fn text(text: &CStr) -> [u8; TEXT_LEN] {
    let mut bytes = [0; TEXT_LEN];
    let len = text.count_bytes().min(TEXT_LEN - 1);
    bytes[..len].copy_from_slice(&text.to_bytes()[..len]);
    bytes
}

#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// Unused; 0, as shared memory is at the start.
    Free,
    /// The resolver has to answer it.
    Waiting,
    /// Answered: done, and committed.
    Done,
    /// Answered: the resolver failed to do it.
    Failed,
}

/// A backend's place.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Place {
    state: State,
    /// The number of the request: the same backend uses its place again.
    serial: u64,
    /// The backend that waits.
    requester: i32,
    /// Its database.
    dbid: Oid,
    answer: i32,
    record: Record,
}

impl Place {
    fn is_waiting(&self) -> bool {
        self.state == State::Waiting
    }
}

/// Asks to have a participant written down, durably, before its first PREPARE; returns its number.
///
/// # Errors
/// 55000 when the resolver does not answer.
pub fn register(serverid: Oid, userid: Oid, fingerprint: &Fingerprint) -> Result<i32> {
    let Fingerprint { system_identifier, ref database, .. } = *fingerprint;
    let database = database.clone();
    ask(&Ask::Register { serverid, userid, system_identifier, database }, answer_timeout())
}

/// Asks to have every participant swept, and waits until each has been tried.
///
/// # Errors
/// 55000 when the resolver does not answer.
pub fn resolve() -> Result<()> {
    resolve_within(RESOLVE_DEADLINE)
}

/// [`resolve`], with another deadline.
///
/// # Errors
/// 55000 when the resolver does not answer.
pub fn resolve_within(limit: Duration) -> Result<()> {
    ask(&Ask::Resolve, limit).map(|_| ())
}

/// Gives up one prepared transaction: its decision stays, and no participant is asked for it any
/// more. Returns 0 if it was not in doubt.
///
/// # Errors
/// 55000 when the resolver does not answer.
pub fn forget_transaction(nonce: Nonce, serverid: Oid, userid: Oid) -> Result<i32> {
    ask(&Ask::ForgetTransaction { nonce, serverid, userid }, answer_timeout())
}

/// Gives up a server that will never come back, with everything that may be left there.
///
/// # Errors
/// 55000 when the resolver does not answer.
pub fn forget_server(serverid: Oid) -> Result<i32> {
    ask(&Ask::ForgetServer(serverid), answer_timeout())
}

/// Takes a label, so that no transaction can use it any more; `false` if one has used it meanwhile,
/// or is about to.
///
/// # Errors
/// 55000 when the resolver does not answer.
pub fn take_label(label: &CStr) -> Result<bool> {
    ask(&Ask::TakeLabel(label.to_owned()), answer_timeout()).map(|taken| taken != 0)
}

fn ask(ask: &Ask, limit: Duration) -> Result<i32> {
    resolvers::identity()?;
    let n = versions::backend_number();
    let dbid = my_database();
    let mut place = Place {
        state: State::Waiting,
        serial: 0,
        requester: my_pid(),
        dbid,
        answer: 0,
        record: Record::of(ask),
    };
    let serial = shmem::write(|m| {
        m.shared.last_serial += 1;
        place.serial = m.shared.last_serial;
        // It may still hold a request that this backend has given up.
        set(m, n, place);
        place.serial
    });
    resolvers::wake(dbid);
    let answered = wait_for("the resolver of this database does not answer", limit, || {
        let place = shmem::read(|m| m.requests[n]);
        Ok((place.serial == serial && !place.is_waiting()).then_some(place))
    });
    free(n, serial);
    match answered? {
        Place { state: State::Done, answer, .. } => Ok(answer),
        _ => Err(Error::new(
            SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
            "could not complete the request to the resolver",
        )
        .hint("See the server log.")),
    }
}

/// Writes a place, and keeps count of those that wait.
fn set(m: &mut Memory<'_>, n: usize, place: Place) {
    m.shared.waiting -= usize::from(m.requests[n].is_waiting());
    m.shared.waiting += usize::from(place.is_waiting());
    m.requests[n] = place;
}

fn free(n: usize, serial: u64) {
    shmem::write(|m| {
        let mut place = m.requests[n];
        if place.serial == serial {
            place.state = State::Free;
            set(m, n, place);
        }
    });
}

/// A request that waits for an answer, as the resolver knows it.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    place: usize,
    serial: u64,
    requester: i32,
}

impl Request {
    /// Whether it is the same request.
    pub fn is(&self, other: &Self) -> bool {
        self.serial == other.serial
    }

    /// Whether its backend still waits for the answer.
    pub fn is_waiting(&self) -> bool {
        let place = shmem::read(|m| m.requests[self.place]);
        place.serial == self.serial && place.is_waiting() && shmem::is_alive(self.requester)
    }

    /// Answers it; `None`: it failed. Does nothing if its backend has given up.
    pub fn answer(&self, answer: Option<i32>) {
        shmem::write(|m| {
            let mut place = m.requests[self.place];
            if place.serial == self.serial && place.is_waiting() {
                place.answer = answer.unwrap_or(0);
                place.state = if answer.is_some() { State::Done } else { State::Failed };
                set(m, self.place, place);
            }
        });
        shmem::wake(self.requester);
    }
}

/// The requests that wait for this database's resolver, oldest first, each with what it asks. Drops
/// those whose backend has ended.
pub fn waiting() -> Vec<(Request, Ask)> {
    let dbid = my_database();
    let mut found: Vec<(usize, Place)> = shmem::read(|m| {
        if m.shared.waiting == 0 {
            return Vec::new();
        }
        let places = m.requests.iter().copied().enumerate();
        places.filter(|(_, place)| place.is_waiting() && place.dbid == dbid).collect()
    });
    found.sort_unstable_by_key(|(_, place)| place.serial);
    let mut requests = Vec::new();
    for (n, place) in found {
        let Place { serial, requester, .. } = place;
        let request = Request { place: n, serial, requester };
        match place.record.ask() {
            _ if !shmem::is_alive(requester) => free(n, serial),
            Some(ask) => requests.push((request, ask)),
            None => request.answer(None),
        }
    }
    requests
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_asked_is_read_back() {
        let (serverid, userid) = (Oid::from_u32(16385), Oid::from_u32(10));
        let nonce = Nonce::new(999_999_999_999_999_999).unwrap();
        let longest = c_string(vec![b'x'; TEXT_LEN - 1]);
        for ask in [
            Ask::Register {
                serverid,
                userid,
                system_identifier: u64::MAX,
                database: c"d\\303\\251".to_owned(),
            },
            Ask::Register { serverid, userid, system_identifier: 0, database: longest },
            Ask::Resolve,
            Ask::ForgetTransaction { nonce, serverid, userid },
            Ask::ForgetServer(serverid),
            Ask::TakeLabel(c_string(vec![b'l'; label::MAX_LEN])),
            Ask::TakeLabel(c"".to_owned()),
        ] {
            assert_eq!(Record::of(&ask).ask(), Some(ask));
        }
    }

    #[test]
    fn a_nonce_that_cannot_be_is_not_read() {
        let ask = Ask::ForgetTransaction {
            nonce: Nonce::new(1).unwrap(),
            serverid: Oid::INVALID,
            userid: Oid::INVALID,
        };
        assert_eq!(Record { number: u64::MAX, ..Record::of(&ask) }.ask(), None);
    }
}
