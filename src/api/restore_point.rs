//! One restore point on this server and on the foreign servers of this database.

use std::ffi::CStr;

use pgrx::pg_sys::{self, Oid};
use pgrx::prelude::*;

use crate::fdw::is_ours;
use crate::pg::error::{Error, Result, SqlState, attempt};
use crate::pg::function::not_on_standby;
use crate::pg::globals::{current_user, has_written};
use crate::pg::{text, versions, wal};
use crate::protocol::restore_point::is_valid_name;
use crate::remote::options::{Mapping, Server};
use crate::shared::{hold, resolvers};
use crate::xact::{participants, restore_point};

/// The foreign server, the position, the WAL file. Texts are bytes in the server's encoding, of
/// which pgrx makes a text as of a bytea; a position is a bigint in memory.
type Row = (Option<Vec<u8>>, i64, Vec<u8>);

/// Makes a restore point of that name on this server and on every foreign server of this database;
/// returns where each of them is. The row without a server is this one's.
#[pg_extern(sql = false)]
#[allow(clippy::type_complexity)]
fn pg_fdw_xacts_restore_point(
    name: &[u8],
) -> TableIterator<
    'static,
    (name!(server, Option<Vec<u8>>), name!(lsn, i64), name!(wal_file, Vec<u8>)),
> {
    TableIterator::new(attempt(|| make(name)).unwrap_or_else(|error| error.raise_in_pgrx()))
}

fn make(name: &[u8]) -> Result<Vec<Row>> {
    crate::pg::preload::require()?;
    not_on_standby(c"pg_fdw_xacts_restore_point()")?;
    let name = std::str::from_utf8(name).ok().filter(|name| is_valid_name(name.as_bytes()));
    let Some(name) = name else {
        return Err(Error::new(
            SqlState::new(b"22023"),
            "a restore point needs a name of between 1 and 63 characters of ASCII, without quotes and backslashes",
        ));
    };
    let writes = |p: &participants::Participant| p.connection.work().wrote();
    if has_written() || participants::all().iter().any(|p| writes(p)) {
        return Err(Error::new(
            SqlState::ACTIVE_SQL_TRANSACTION,
            "pg_fdw_xacts_restore_point() cannot run in a transaction that has written",
        )
        .detail("What it has written would not be in the restore point."));
    }
    let participants = hold::participants();
    let servers = servers()?;
    warn_of_other_databases()?;
    let made = restore_point::make(name, &servers, participants)?;
    let names = servers.iter().map(|server| Some(Server::read(*server).name.into_bytes()));
    let names = std::iter::once(None).chain(names);
    Ok(names.zip(made).map(|(name, m)| (name, m.lsn as i64, m.wal_file.into_bytes())).collect())
}

/// The foreign servers that transactions of this database may write on: all with a user mapping.
///
/// # Errors
/// One of them cannot be used by the current user.
fn servers() -> Result<Vec<Oid>> {
    let userid = current_user();
    let [oids] = wal::ask::<1>(
        "SELECT pg_catalog.concat_ws(' ', VARIADIC ARRAY(SELECT s.oid FROM pg_catalog.pg_foreign_server s \
            WHERE EXISTS (SELECT FROM pg_catalog.pg_user_mappings m WHERE m.srvid OPERATOR(pg_catalog.=) s.oid) \
            ORDER BY s.srvname))",
        None,
    )?;
    let oids = oids.split_whitespace().filter_map(|oid| Some(Oid::from_u32(oid.parse().ok()?)));
    let servers: Vec<Oid> = oids.filter(|oid| is_ours(*oid)).collect();
    for serverid in &servers {
        let name = || text::carried(&Server::read(*serverid).name);
        // SAFETY: a look-up in the catalog.
        let usage = unsafe { versions::foreign_server_usage(*serverid, userid) };
        if usage != pg_sys::AclResult::ACLCHECK_OK {
            return Err(Error::new(
                SqlState::new(b"42501"),
                format!("permission denied for foreign server {}", name()),
            ));
        }
        if Mapping::find(userid, *serverid).is_none() {
            return Err(Error::new(
                SqlState::UNDEFINED_OBJECT,
                format!("server \"{}\" has no user mapping for the current user", name()),
            )
            .detail("Others have user mappings for it, so it needs the restore point too.")
            .hint("Create one. Only servers that nobody has a user mapping for are left out."));
        }
    }
    Ok(servers)
}

/// The WAL of this server has the transactions of all of its databases, but foreign servers are
/// known in this one alone.
fn warn_of_other_databases() -> Result<()> {
    for database in resolvers::other_databases() {
        // SAFETY: a look-up that may find nothing; a C string of this transaction's memory.
        let name = unsafe {
            let name = pg_sys::get_database_name(database);
            if name.is_null() {
                continue;
            }
            text::carried(CStr::from_ptr(name))
        };
        Error::new(
            SqlState::WARNING,
            format!("servers that only database \"{name}\" knows get no restore point"),
        )
        .detail("That database has the extension too, and is restored together with this one.")
        .log(PgLogLevel::WARNING)?;
    }
    Ok(())
}
