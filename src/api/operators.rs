//! What an operator can do about transactions in doubt: have the resolver try now, or give up.

use std::ffi::CStr;

use pgrx::pg_sys::Datum;
use pgrx::prelude::*;

use crate::log::shmem::{Entry, Status};
use crate::log::{decisions, entries, registered, requests};
use crate::pg::error::{Error, Result, SqlState, attempt};
use crate::pg::function::{not_on_standby, text_function};
use crate::protocol::gid::Gid;
use crate::protocol::verdict::Decision;

/// Has the resolver try everything now, and tells for each transaction that is in doubt in this database, or for
/// the one asked for, what happened.
#[pg_extern(sql = "
CREATE FUNCTION pg_fdw_xacts_resolve(identifier text DEFAULT NULL, OUT identifier text, OUT outcome text)
    RETURNS SETOF record
    LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';
REVOKE EXECUTE ON FUNCTION pg_fdw_xacts_resolve(text) FROM PUBLIC;
")]
fn pg_fdw_xacts_resolve(
    identifier: Option<&[u8]>,
) -> TableIterator<'static, (name!(identifier, Vec<u8>), name!(outcome, String))> {
    let rows = attempt(|| resolve(identifier)).unwrap_or_else(|error| error.raise_in_pgrx());
    TableIterator::new(rows)
}

/// A text is made of its bytes, in the server's encoding, as a bytea is.
fn resolve(identifier: Option<&[u8]>) -> Result<Vec<(Vec<u8>, String)>> {
    crate::require_preload()?;
    not_on_standby(c"pg_fdw_xacts_resolve()")?;
    let before: Vec<(Gid, Status)> = in_doubt_here()
        .filter(|(gid, _)| identifier.is_none_or(|wanted| gid.to_string().as_bytes() == wanted))
        .collect();
    requests::resolve()?;
    let after: Vec<(Gid, Status)> = in_doubt_here().collect();
    let mut rows: Vec<(Vec<u8>, String)> = before
        .iter()
        .map(|(gid, was)| {
            let now = after.iter().find(|(other, _)| other == gid).map(|(_, status)| *status);
            let outcome = match (now, was) {
                (Some(Status::Prepared), _) => "prepared",
                (Some(_), _) => "in doubt",
                (None, Status::Committing) => "committed",
                (None, Status::Aborting) => "rolled back",
                (None, _) => "settled",
            };
            (gid.to_string().into_bytes(), outcome.to_owned())
        })
        .collect();
    if let (Some(wanted), true) = (identifier, rows.is_empty()) {
        rows.push((wanted.to_vec(), "not in doubt".to_owned()));
    }
    Ok(rows)
}

/// What no backend of this database looks after any more.
fn in_doubt_here() -> impl Iterator<Item = (Gid, Status)> {
    // SAFETY: a plain global of this backend.
    let dbid = unsafe { pg_sys::MyDatabaseId };
    entries::all()
        .into_iter()
        .filter(move |e| e.dbid == dbid && e.owner == 0)
        .filter_map(|e: Entry| Some((e.gid()?, e.status)))
}

text_function! {
    /// `pg_fdw_xacts_forget(identifier text) returns void`: stops trying to settle a transaction on a server that will never
    /// come back, or everything on a server, by its name, or by its OID where it has none any more. The decision stays:
    /// it is delivered should the prepared transaction ever be seen.
    pg_fdw_xacts_forget_wrapper, pg_finfo_pg_fdw_xacts_forget_wrapper, |identifier| {
        forget(identifier).map(|()| Datum::from(0))
    }
}

extension_sql!(
    "
CREATE FUNCTION pg_fdw_xacts_forget(identifier text) RETURNS void
    LANGUAGE c STRICT VOLATILE AS 'MODULE_PATHNAME', 'pg_fdw_xacts_forget_wrapper';
REVOKE EXECUTE ON FUNCTION pg_fdw_xacts_forget(text) FROM PUBLIC;
",
    name = "pg_fdw_xacts_forget"
);

fn forget(identifier: &CStr) -> Result<()> {
    crate::require_preload()?;
    not_on_standby(c"pg_fdw_xacts_forget()")?;
    // SAFETY: looks at the session's user.
    if !unsafe { pg_sys::superuser() } {
        return Err(Error::new(
            SqlState::new(b"42501"),
            "must be superuser to forget a transaction that is in doubt",
        ));
    }
    match identifier.to_str().ok().and_then(|text| Some((Gid::parse(text)?, text))) {
        Some((gid, text)) => forget_transaction(&gid, text),
        None => forget_server(identifier),
    }
}

fn forget_transaction(gid: &Gid, identifier: &str) -> Result<()> {
    if registered::known_identity() != Some(gid.identity) {
        return Err(Error::new(
            SqlState::UNDEFINED_OBJECT,
            format!("\"{identifier}\" is not a transaction of this database"),
        ));
    }
    let row = decisions::all().into_iter().find(|row| row.nonce == gid.nonce);
    if row.is_some_and(|row| row.decision == Decision::InProgress) {
        return Err(Error::new(
            SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
            format!("\"{identifier}\" has not been decided yet"),
        )
        .hint("Settle it here first, with COMMIT PREPARED or ROLLBACK PREPARED."));
    }
    let (serverid, userid) = (gid.serverid.into(), gid.userid.into());
    match requests::forget_transaction(gid.nonce, serverid, userid)? {
        0 => {
            Err(Error::new(SqlState::UNDEFINED_OBJECT, format!("\"{identifier}\" is not in doubt")))
        }
        _ => Ok(()),
    }
}

fn forget_server(name: &CStr) -> Result<()> {
    // SAFETY: a catalog look-up that may find nothing.
    let server = unsafe { pg_sys::GetForeignServerByName(name.as_ptr(), true).as_ref() };
    let Some(serverid) = server.map(|server| server.serverid).or_else(|| gone(name)) else {
        return Err(Error::new(
            SqlState::UNDEFINED_OBJECT,
            [
                b"\"",
                name.to_bytes(),
                b"\" is neither an identifier in pg_fdw_xacts nor a foreign server",
            ]
            .concat(),
        ));
    };
    requests::forget_server(serverid).map(|_| ())
}

/// A server that has no name any more, by its OID: pg_upgrade gives servers new ones.
fn gone(oid: &CStr) -> Option<pg_sys::Oid> {
    let oid = pg_sys::Oid::from_u32(oid.to_str().ok()?.parse().ok()?);
    registered::all().iter().any(|r| r.serverid == oid).then_some(oid)
}
