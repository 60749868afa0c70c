//! The session's connections: a list of them, and closing them. Columns, results, warnings and
//! errors are those of postgres_fdw's functions in the same version of PostgreSQL, which can be
//! redefined as calls of these.

use std::ffi::CStr;

use pgrx::pg_sys::Datum;
use pgrx::prelude::*;

use crate::pg::error::{Error, Result, SqlState, attempt};
use crate::pg::function::text_function;
use crate::remote::cache;
use crate::remote::options::Server;

/// The open connections of this session. `server_name` is NULL if the server was dropped in this
/// transaction; a connection that is not `valid` any more is closed when the transaction ends.
#[cfg(pre_pg18)]
#[pg_extern(sql = "
CREATE FUNCTION pg_fdw_xacts_get_connections(OUT server_name text, OUT valid boolean) RETURNS SETOF record
    LANGUAGE c STRICT VOLATILE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';
")]
#[allow(clippy::type_complexity)]
fn pg_fdw_xacts_get_connections()
-> TableIterator<'static, (name!(server_name, Option<Vec<u8>>), name!(valid, bool))> {
    let list = cache::all().into_iter().map(|c| (server_name(c.serverid), c.is_valid()));
    TableIterator::new(list.collect::<Vec<_>>())
}

/// The open connections of this session. Names are NULL if the server or the user mapping was
/// dropped in this transaction; a connection that is not `valid` any more is closed when the
/// transaction ends. `closed` is only known with `check_conn`.
#[cfg(not(pre_pg18))]
#[pg_extern(sql = "
CREATE FUNCTION pg_fdw_xacts_get_connections(check_conn boolean DEFAULT false, OUT server_name text,
    OUT user_name text, OUT valid boolean, OUT used_in_xact boolean, OUT closed boolean, OUT remote_backend_pid int4)
    RETURNS SETOF record
    LANGUAGE c STRICT VOLATILE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';
")]
#[allow(clippy::type_complexity)]
fn pg_fdw_xacts_get_connections(
    check_conn: bool,
) -> TableIterator<
    'static,
    (
        name!(server_name, Option<Vec<u8>>),
        name!(user_name, Option<Vec<u8>>),
        name!(valid, bool),
        name!(used_in_xact, bool),
        name!(closed, Option<bool>),
        name!(remote_backend_pid, i32),
    ),
> {
    let list = cache::all().into_iter().map(|c| {
        (
            server_name(c.serverid),
            user_name(c.mapping),
            c.is_valid(),
            c.is_in_use(),
            check_conn.then(|| c.is_closed_by_peer()),
            c.backend_pid(),
        )
    });
    TableIterator::new(list.collect::<Vec<_>>())
}

/// The server's name in the server's encoding: pgrx makes a text of the bytes, as of a bytea.
fn server_name(serverid: pg_sys::Oid) -> Option<Vec<u8>> {
    Server::find(serverid).map(|server| server.name.into_bytes())
}

/// The user of a mapping, if it exists; "public" if the mapping is for PUBLIC.
#[cfg(not(pre_pg18))]
fn user_name(mapping: pg_sys::Oid) -> Option<Vec<u8>> {
    let (user, _) = crate::pg::catalog::user_mapping(mapping)?;
    if user == pg_sys::Oid::INVALID {
        return Some(b"public".to_vec());
    }
    // SAFETY: raises if there is no such user; a C string of this memory context.
    let name = unsafe { CStr::from_ptr(pg_sys::GetUserNameFromId(user, false)) };
    Some(name.to_bytes().to_vec())
}

text_function! {
    /// `pg_fdw_xacts_disconnect(server_name text) returns boolean`: closes this session's
    /// connections to a server, whatever their user mapping; true if it has closed any. Connections
    /// that the current transaction uses stay open, with a warning.
    pg_fdw_xacts_disconnect_wrapper, pg_finfo_pg_fdw_xacts_disconnect_wrapper, |name| {
        Ok(Datum::from(disconnect(Some(Server::named(name)?))?))
    }
}

/// Closes all connections of this session as `pg_fdw_xacts_disconnect` does.
#[pg_extern(sql = false)]
fn pg_fdw_xacts_disconnect_all() -> bool {
    attempt(|| disconnect(None)).unwrap_or_else(|error| error.raise_in_pgrx())
}

/// Closes the connections that no transaction uses, of one server or of all; returns whether there
/// were any.
fn disconnect(serverid: Option<pg_sys::Oid>) -> Result<bool> {
    let mut closed = false;
    for connection in cache::all() {
        if serverid.is_some_and(|wanted| wanted != connection.serverid) {
            continue;
        }
        if connection.is_in_use() {
            still_in_use(Server::find(connection.serverid).as_ref().map(|s| s.name.as_c_str()))?;
        } else {
            cache::discard(&connection);
            closed = true;
        }
    }
    Ok(closed)
}

fn still_in_use(server: Option<&CStr>) -> Result<()> {
    let text = match server {
        Some(name) => [
            b"cannot close connection for server \"",
            name.to_bytes(),
            b"\" because it is still in use",
        ]
        .concat(),
        None => b"cannot close dropped server connection because it is still in use".to_vec(),
    };
    Error::new(SqlState::WARNING, text).log(PgLogLevel::WARNING)
}
