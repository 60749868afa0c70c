//! What a backend asks its database's resolver to do, and waits for: write down a participant before its first
//! PREPARE, try now, forget. The resolver alone writes the tables of this module's neighbours.

use std::time::Duration;

use pgrx::pg_sys::{self, Oid};

use crate::log::shmem::{self, LABEL_LEN, NAME_LEN, Request, RequestKind, RequestState};
use crate::log::workers::{self, RESOLVER_DEADLINE, own_database, wait_for};
use crate::pg::error::{Error, Result, SqlState};
use crate::protocol::gid::Nonce;
use crate::remote::Fingerprint;

/// How long a backend waits while the resolver tries every server.
const RESOLVE_DEADLINE: Duration = Duration::from_secs(60);

fn empty(kind: RequestKind) -> Request {
    Request {
        state: RequestState::Waiting,
        kind,
        serial: 0,
        // SAFETY: a plain global of this backend.
        requester: unsafe { pg_sys::MyProcPid },
        dbid: own_database(),
        serverid: Oid::INVALID,
        userid: Oid::INVALID,
        nonce: 0,
        system_identifier: 0,
        database: [0; NAME_LEN],
        label: [0; LABEL_LEN],
        answer: 0,
    }
}

/// Has a participant written down, durably, before its first PREPARE; returns its number.
///
/// # Errors
/// 55000 when the resolver does not answer.
pub fn register(serverid: Oid, userid: Oid, fingerprint: &Fingerprint) -> Result<i32> {
    let mut database = [0; NAME_LEN];
    let name = fingerprint.database.as_bytes();
    let len = name.len().min(NAME_LEN - 1);
    database[..len].copy_from_slice(&name[..len]);
    let request = Request {
        serverid,
        userid,
        system_identifier: fingerprint.system_identifier,
        database,
        ..empty(RequestKind::Register)
    };
    ask(request, RESOLVER_DEADLINE)
}

/// Has every participant swept, and waits until each has been tried.
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
    ask(empty(RequestKind::Resolve), limit).map(|_| ())
}

/// Gives up one prepared transaction: its decision stays, and nobody asks for it any more.
///
/// # Errors
/// 55000 when the resolver does not answer.
pub fn forget_transaction(nonce: Nonce, serverid: Oid, userid: Oid) -> Result<i32> {
    let nonce = nonce.number();
    ask(
        Request { nonce, serverid, userid, ..empty(RequestKind::ForgetTransaction) },
        RESOLVER_DEADLINE,
    )
}

/// Gives up a server that will never come back, with everything that may be left there.
///
/// # Errors
/// 55000 when the resolver does not answer.
pub fn forget_server(serverid: Oid) -> Result<i32> {
    ask(Request { serverid, ..empty(RequestKind::ForgetServer) }, RESOLVER_DEADLINE)
}

/// Takes a label, so that no transaction can use it any more; `false` when one has used it meanwhile, or is
/// about to.
///
/// # Errors
/// 55000 when the resolver does not answer.
pub fn take_label(label: &str) -> Result<bool> {
    let mut bytes = [0; LABEL_LEN];
    bytes[..label.len()].copy_from_slice(label.as_bytes());
    let request = Request { label: bytes, ..empty(RequestKind::TakeLabel) };
    ask(request, RESOLVER_DEADLINE).map(|taken| taken != 0)
}

fn ask(request: Request, limit: Duration) -> Result<i32> {
    workers::identity()?;
    let (slot, serial) =
        wait_for("too many sessions wait for the resolver", RESOLVER_DEADLINE, || {
            Ok(shmem::write(|shared, _| {
                let slot = shared.requests.iter().position(|r| r.state == RequestState::Free)?;
                shared.last_serial += 1;
                let serial = shared.last_serial;
                shared.requests[slot] = request;
                shared.requests[slot].serial = serial;
                Some((slot, serial))
            }))
        })?;
    workers::wake_resolver(request.dbid);
    let answer = wait_for("the resolver of this database does not answer", limit, || {
        Ok(shmem::read(|shared, _| {
            let r = &shared.requests[slot];
            (r.serial == serial && matches!(r.state, RequestState::Done | RequestState::Failed))
                .then_some(*r)
        }))
    });
    shmem::write(|shared, _| {
        if shared.requests[slot].serial == serial {
            shared.requests[slot].state = RequestState::Free;
        }
    });
    match answer? {
        Request { state: RequestState::Done, answer, .. } => Ok(answer),
        _ => Err(Error::new(
            SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
            "the resolver could not do what it was asked",
        )
        .hint("See the server log.")),
    }
}

/// The requests that wait for this database's resolver, with their places.
pub fn waiting() -> Vec<(usize, Request)> {
    let dbid = own_database();
    shmem::read(|shared, _| {
        shared
            .requests
            .iter()
            .copied()
            .enumerate()
            .filter(|(_, r)| r.state == RequestState::Waiting && r.dbid == dbid)
            .collect()
    })
}

/// Answers a request; `None`: it failed. One whose requester has given up meanwhile stays as it is.
pub fn answer(slot: usize, request: &Request, answer: Option<i32>) {
    shmem::write(|shared, _| {
        let place = &mut shared.requests[slot];
        if place.state == RequestState::Waiting && place.serial == request.serial {
            place.answer = answer.unwrap_or(0);
            place.state = if answer.is_some() { RequestState::Done } else { RequestState::Failed };
        }
    });
    shmem::wake(request.requester);
}

/// Frees the places of backends that have gone.
pub fn reap() {
    let places: Vec<(usize, Request)> = shmem::read(|shared, _| {
        let used = shared.requests.iter().copied().enumerate();
        used.filter(|(_, r)| r.state != RequestState::Free).collect()
    });
    for (slot, request) in places {
        if !shmem::is_alive(request.requester) {
            shmem::write(|shared, _| {
                if shared.requests[slot].serial == request.serial {
                    shared.requests[slot].state = RequestState::Free;
                }
            });
        }
    }
}
