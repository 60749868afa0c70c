//! The session's connections, one per user mapping, kept from transaction to transaction.
//!
//! A connection whose server or mapping was altered is not used for another transaction. Between
//! transactions a connection that the other end has closed is replaced; inside one never.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Instant;

use pgrx::pg_sys::{self, Datum, Oid};

use crate::pg::backend_local::BackendLocal;
use crate::pg::error::Result;
use crate::remote::connect::{Established, connect};
use crate::remote::options::{Mapping, Server};

/// A connection in the cache.
pub struct Cached {
    established: Established,
    /// Whether its server's options allow two phases.
    pub can_prepare: bool,
    server_hash: u32,
    mapping_hash: u32,
    invalidated: Cell<bool>,
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

/// The connection of a mapping, established by `deadline` if need be. `in_use` tells whether the current
/// transaction has already used it: then it is returned as it is.
///
/// # Errors
/// Those of [`connect`].
pub fn connection(
    mapping: &Mapping,
    in_use: impl Fn(&Rc<Cached>) -> bool,
    deadline: Option<Instant>,
) -> Result<Rc<Cached>> {
    register_invalidation();
    let found = with(|all| all.get(&mapping.oid).cloned());
    if let Some(found) = found {
        if in_use(&found) || (!found.invalidated.get() && found.is_reusable() && !found.hung_up()) {
            return Ok(found);
        }
        discard(&found);
    }
    let server = Server::read(mapping.serverid);
    let fresh = Rc::new(Cached {
        can_prepare: server.can_prepare(),
        server_hash: hash(pg_sys::SysCacheIdentifier::FOREIGNSERVEROID, mapping.serverid),
        mapping_hash: hash(pg_sys::SysCacheIdentifier::USERMAPPINGOID, mapping.oid),
        invalidated: Cell::new(false),
        established: connect(&server, mapping, deadline)?,
    });
    with(|all| all.insert(mapping.oid, Rc::clone(&fresh)));
    Ok(fresh)
}

/// Forgets a connection; it closes when its last user lets go.
pub fn discard(connection: &Rc<Cached>) {
    let removed = with(|all| {
        let key = all.iter().find(|(_, c)| Rc::ptr_eq(c, connection)).map(|(key, _)| *key);
        key.and_then(|key| all.remove(&key))
    });
    drop(removed);
}

/// After a transaction: keeps the connection for the next one, or forgets it.
pub fn put_back(connection: &Rc<Cached>) {
    connection.reset();
    if connection.invalidated.get() || !connection.is_reusable() {
        discard(connection);
    }
}

fn hash(cache: pg_sys::SysCacheIdentifier::Type, oid: Oid) -> u32 {
    let none = Datum::from(0);
    // SAFETY: a catalog cache with one OID key.
    unsafe { pg_sys::GetSysCacheHashValue(cache as i32, oid.into(), none, none, none) }
}

fn register_invalidation() {
    static REGISTERED: BackendLocal<Cell<bool>> = BackendLocal::new(Cell::new(false));
    if REGISTERED.get().replace(true) {
        return;
    }
    for cache in
        [pg_sys::SysCacheIdentifier::FOREIGNSERVEROID, pg_sys::SysCacheIdentifier::USERMAPPINGOID]
    {
        // SAFETY: the callback lives as long as the backend and raises nothing.
        unsafe {
            pg_sys::CacheRegisterSyscacheCallback(cache as i32, Some(invalidate), Datum::from(0));
        }
    }
}

/// Called inside any catalog access: it only sets flags. A hash of 0 stands for everything.
unsafe extern "C-unwind" fn invalidate(_: Datum, cache: i32, hash: u32) {
    let servers = cache == pg_sys::SysCacheIdentifier::FOREIGNSERVEROID as i32;
    // A borrow is only held for a look-up in the map, which never comes here.
    if let Ok(connections) = CONNECTIONS.get().try_borrow() {
        for connection in connections.iter().flat_map(HashMap::values) {
            let own = if servers { connection.server_hash } else { connection.mapping_hash };
            if hash == 0 || hash == own {
                connection.invalidated.set(true);
            }
        }
    }
}
