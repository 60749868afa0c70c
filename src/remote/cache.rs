//! The session's connections, one per user mapping, kept from transaction to transaction.
//!
//! When its server, its mapping or a wrapper is altered or dropped, a connection is closed at once,
//! or, if the current transaction has used it, at the end of the transaction. A connection that the
//! other end has closed is replaced between transactions, never inside one.
//!
//! A connection is found by its mapping, and used only for a user who could have made it: see
//! [`credentials::check_shared`].
//!
//! A connection in use stays on the list, whatever happens to it, so that a transaction never has
//! two sessions under one mapping.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Instant;

use pgrx::pg_sys::{self, Datum, Oid};

use crate::guc::{self, RemoteIsolation};
use crate::pg::backend_local::BackendLocal;
use crate::pg::error::Result;
use crate::protocol::plan::Work;
use crate::remote::basis::Basis;
use crate::remote::connect::{Established, connect};
use crate::remote::credentials;
use crate::remote::options::{Mapping, Server};

/// A connection in the cache.
pub struct Cached {
    established: Established,
    /// Whether its server's options allow two phases.
    pub can_prepare: bool,
    /// How its server's option says that a READ COMMITTED transaction sees it.
    remote_isolation: Option<RemoteIsolation>,
    /// Its server.
    pub serverid: Oid,
    /// Its user mapping.
    #[cfg(not(pre_pg18))]
    pub mapping: Oid,
    /// The catalog rows that it was made from.
    pub basis: Basis,
    /// Whether it outlives the transaction that uses it.
    keep: bool,
    server_hash: u32,
    mapping_hash: u32,
    invalidated: Cell<bool>,
    in_use: Cell<bool>,
}

impl Cached {
    /// Whether server and mapping are unchanged since it was made.
    pub fn is_valid(&self) -> bool {
        !self.invalidated.get()
    }

    /// Whether it outlives the current transaction, unless it breaks. A pooler that was not noticed
    /// at the start may hand the session to somebody else between two.
    pub fn is_kept(&self) -> bool {
        self.keep && self.is_valid() && !self.is_tainted() && !self.is_pooled()
    }

    /// What the current transaction has done there.
    pub fn work(&self) -> Work {
        self.established.connection.work(self.can_prepare)
    }

    /// Whether it was made with credentials that only the client's session has: then the resolver
    /// could not settle what is prepared there.
    pub fn is_session_only(&self) -> bool {
        self.established.used.session_only
    }

    /// Refuses to use it for a mapping whose user could not make such a connection now.
    ///
    /// # Errors
    /// 2F003.
    pub fn check_permitted(&self, mapping: &Mapping) -> Result<()> {
        credentials::check_shared(mapping, self.established.used)
    }

    /// How a READ COMMITTED transaction sees the server.
    pub fn remote_isolation(&self) -> RemoteIsolation {
        self.remote_isolation.unwrap_or_else(guc::remote_isolation)
    }

    /// Whether the current transaction uses it.
    pub fn is_in_use(&self) -> bool {
        self.in_use.get()
    }

    /// It joins the current transaction; [`put_back`] ends that.
    pub fn use_in_transaction(&self) {
        self.in_use.set(true);
    }
}

impl std::ops::Deref for Cached {
    type Target = crate::remote::Connection;
    fn deref(&self) -> &Self::Target {
        &self.established.connection
    }
}

type Connections = HashMap<Oid, Rc<Cached>>;

static CONNECTIONS: BackendLocal<RefCell<Option<Connections>>> =
    BackendLocal::new(RefCell::new(None));

fn with<T>(f: impl FnOnce(&mut Connections) -> T) -> T {
    f(CONNECTIONS.get().borrow_mut().get_or_insert_default())
}

/// The connection of a mapping, which is made by `deadline` if there is none. One that the current
/// transaction uses is returned as it is. To use it in the transaction, the caller has it join
/// before calling anything else.
///
/// # Errors
/// Those of [`connect`], and 2F003 where the mapping's user could not make the connection that the
/// transaction uses.
pub fn connection(mapping: &Mapping, deadline: Option<Instant>) -> Result<Rc<Cached>> {
    register_invalidation();
    let found = with(|all| all.get(&mapping.oid).cloned());
    if let Some(found) = found {
        let permitted = found.check_permitted(mapping);
        if found.is_in_use() {
            return permitted.map(|()| found);
        }
        if permitted.is_ok() && found.is_valid() && found.is_still_reusable() {
            return Ok(found);
        }
        discard(&found);
    }
    // Reading a catalog may process the invalidation of one that was read just before.
    let invalidations = INVALIDATIONS.get().get();
    let server = Server::read(mapping.serverid);
    let (server_hash, mapping_hash) = (
        hash(pg_sys::SysCacheIdentifier::FOREIGNSERVEROID, mapping.serverid),
        hash(pg_sys::SysCacheIdentifier::USERMAPPINGOID, mapping.oid),
    );
    // The server may be dropped while this connects.
    let basis = Basis::of(&server, mapping)?;
    let established = connect(&server, mapping, deadline)?;
    let fresh = Rc::new(Cached {
        can_prepare: server.can_prepare(),
        remote_isolation: server.remote_isolation(),
        serverid: mapping.serverid,
        #[cfg(not(pre_pg18))]
        mapping: mapping.oid,
        basis,
        keep: server.keeps_connections(),
        server_hash,
        mapping_hash,
        invalidated: Cell::new(INVALIDATIONS.get().get() != invalidations),
        in_use: Cell::new(false),
        established,
    });
    with(|all| all.insert(mapping.oid, Rc::clone(&fresh)));
    Ok(fresh)
}

/// Begins a transaction anew on another connection of the same kind, if it had only just begun on
/// one that has ended; whether it could.
///
/// # Errors
/// Those of [`connect`].
pub fn begin_anew(connection: &Cached, userid: Oid) -> Result<bool> {
    if !connection.may_begin_anew() || !connection.is_valid() {
        return Ok(false);
    }
    let mapping = Mapping::read(userid, connection.serverid)?;
    let fresh = connect(&Server::read(connection.serverid), &mapping, None)?;
    // What is known of the old connection has to be true of the new one.
    if !connection.is_valid() || fresh.used != connection.established.used {
        return Ok(false);
    }
    connection.begin_anew(&fresh.connection);
    Ok(true)
}

/// All connections that are open.
pub fn all() -> Vec<Rc<Cached>> {
    with(|all| all.values().cloned().collect())
}

/// Removes a connection from the cache; it closes when its last user drops it.
pub fn discard(connection: &Rc<Cached>) {
    let removed = with(|all| {
        let key = all.iter().find(|(_, c)| Rc::ptr_eq(c, connection)).map(|(key, _)| *key);
        key.and_then(|key| all.remove(&key))
    });
    drop(removed);
}

/// After a transaction: keeps the connection for the next one, or removes it.
pub fn put_back(connection: &Rc<Cached>) {
    connection.reset();
    connection.in_use.set(false);
    if !connection.is_kept() || !connection.is_reusable() {
        discard(connection);
    }
}

fn hash(cache: pg_sys::SysCacheIdentifier::Type, oid: Oid) -> u32 {
    let none = Datum::from(0);
    // SAFETY: a catalog cache with one OID key.
    unsafe { pg_sys::GetSysCacheHashValue(cache as i32, oid.into(), none, none, none) }
}

/// How often servers or mappings have been invalidated.
static INVALIDATIONS: BackendLocal<Cell<u64>> = BackendLocal::new(Cell::new(0));

fn register_invalidation() {
    static REGISTERED: BackendLocal<Cell<bool>> = BackendLocal::new(Cell::new(false));
    if REGISTERED.get().replace(true) {
        return;
    }
    for cache in [
        pg_sys::SysCacheIdentifier::FOREIGNSERVEROID,
        pg_sys::SysCacheIdentifier::USERMAPPINGOID,
        pg_sys::SysCacheIdentifier::FOREIGNDATAWRAPPEROID,
    ] {
        // SAFETY: the callback lives as long as the backend and raises nothing.
        unsafe {
            pg_sys::CacheRegisterSyscacheCallback(cache as i32, Some(invalidate), Datum::from(0));
        }
    }
}

/// Called inside any catalog access. A hash of 0 stands for everything, and so does any wrapper's.
/// Closing a connection reads no catalog and raises nothing.
unsafe extern "C-unwind" fn invalidate(_: Datum, cache: i32, hash: u32) {
    INVALIDATIONS.get().set(INVALIDATIONS.get().get() + 1);
    let servers = cache == pg_sys::SysCacheIdentifier::FOREIGNSERVEROID as i32;
    let wrappers = cache == pg_sys::SysCacheIdentifier::FOREIGNDATAWRAPPEROID as i32;
    // The map is only borrowed for look-ups, which do not lead here.
    let Ok(mut connections) = CONNECTIONS.get().try_borrow_mut() else { return };
    let mut idle = Vec::new();
    for (key, connection) in connections.iter_mut().flatten() {
        let own = if servers { connection.server_hash } else { connection.mapping_hash };
        if hash == 0 || wrappers || hash == own {
            connection.invalidated.set(true);
            if !connection.is_in_use() {
                idle.push(*key);
            }
        }
    }
    let closed: Vec<_> = idle.iter().filter_map(|key| connections.as_mut()?.remove(key)).collect();
    drop(connections);
    drop(closed);
}
