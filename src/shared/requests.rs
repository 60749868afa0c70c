//! What a backend asks its database's resolver to do, and waits for: write down a participant before its first
//! PREPARE, try now, forget. The resolver alone writes the tables of this module's neighbours.

use std::ffi::CStr;
use std::time::Duration;

use pgrx::pg_sys::Oid;

use crate::pg::error::{Error, Result, SqlState};
use crate::pg::globals::{my_database, my_pid};
use crate::pg::versions;
use crate::protocol::fingerprint::Fingerprint;
use crate::protocol::gid::Nonce;
use crate::shared::shmem::{self, LABEL_LEN, Memory, NAME_LEN, Request, RequestKind, RequestState};
use crate::shared::workers::{self, RESOLVER_DEADLINE, wait_for};

/// How long a backend waits while the resolver tries every server.
const RESOLVE_DEADLINE: Duration = Duration::from_secs(60);

fn empty(kind: RequestKind) -> Request {
    Request {
        state: RequestState::Waiting,
        kind,
        serial: 0,
        requester: my_pid(),
        dbid: my_database(),
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
    let name = fingerprint.database.to_bytes();
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
pub fn take_label(label: &CStr) -> Result<bool> {
    let mut bytes = [0; LABEL_LEN];
    bytes[..label.count_bytes()].copy_from_slice(label.to_bytes());
    let request = Request { label: bytes, ..empty(RequestKind::TakeLabel) };
    ask(request, RESOLVER_DEADLINE).map(|taken| taken != 0)
}

/// The place is this backend's own: it waits for one request at a time, and nobody for a place.
fn ask(mut request: Request, limit: Duration) -> Result<i32> {
    workers::identity()?;
    let place = versions::backend_number();
    let serial = shmem::write(|m| {
        m.shared.last_serial += 1;
        request.serial = m.shared.last_serial;
        // One that was given up may still be there.
        set(m, place, request);
        request.serial
    });
    workers::wake_resolver(request.dbid);
    let answer = wait_for("the resolver of this database does not answer", limit, || {
        let r = shmem::read(|m| m.requests[place]);
        Ok((r.serial == serial && r.state != RequestState::Waiting).then_some(r))
    });
    free(place, serial);
    match answer? {
        Request { state: RequestState::Done, answer, .. } => Ok(answer),
        _ => Err(Error::new(
            SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
            "the resolver could not do what it was asked",
        )
        .hint("See the server log.")),
    }
}

/// Writes a place, and counts those that wait.
fn set(m: &mut Memory<'_>, place: usize, request: Request) {
    let waits = |r: &Request| usize::from(r.state == RequestState::Waiting);
    m.shared.waiting -= waits(&m.requests[place]);
    m.shared.waiting += waits(&request);
    m.requests[place] = request;
}

fn free(place: usize, serial: u64) {
    shmem::write(|m| {
        let mut r = m.requests[place];
        if r.serial == serial {
            r.state = RequestState::Free;
            set(m, place, r);
        }
    });
}

/// The requests that wait for this database's resolver, with their places, in the order in which they came. Those of
/// backends that have gone are dropped.
pub fn waiting() -> Vec<(usize, Request)> {
    let dbid = my_database();
    let mut found: Vec<(usize, Request)> = shmem::read(|m| {
        if m.shared.waiting == 0 {
            return Vec::new();
        }
        let places = m.requests.iter().copied().enumerate();
        places.filter(|(_, r)| r.state == RequestState::Waiting && r.dbid == dbid).collect()
    });
    found.retain(|(place, request)| {
        let waits = shmem::is_alive(request.requester);
        if !waits {
            free(*place, request.serial);
        }
        waits
    });
    found.sort_unstable_by_key(|(_, request)| request.serial);
    found
}

/// Answers a request; `None`: it failed. One whose requester has given up meanwhile stays as it is.
pub fn answer(place: usize, request: &Request, answer: Option<i32>) {
    shmem::write(|m| {
        let mut r = m.requests[place];
        if r.state == RequestState::Waiting && r.serial == request.serial {
            r.answer = answer.unwrap_or(0);
            r.state = if answer.is_some() { RequestState::Done } else { RequestState::Failed };
            set(m, place, r);
        }
    });
    shmem::wake(request.requester);
}
