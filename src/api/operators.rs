//! What an operator can do about transactions in doubt: have the resolver try now, or give them up.

use std::collections::HashSet;
use std::ffi::CStr;

use pgrx::pg_sys::Datum;
use pgrx::prelude::*;

use crate::api::doubt::{self, Shown};
use crate::pg::error::{Error, Result, SqlState, attempt};
use crate::pg::function::{not_on_standby, text_function};
use crate::protocol::gid::Gid;
use crate::protocol::verdict::Decision;
use crate::shared::entry::Status;
use crate::shared::requests;
use crate::store::{decisions, identity, participant_list};

/// Identifier, outcome and reason. Texts are bytes in the server's encoding, of which pgrx makes a
/// text as of a bytea.
type Resolved = (Vec<u8>, String, Option<Vec<u8>>);

/// Has the resolver try everything now. Returns for each transaction that was in doubt in this
/// database, or for the one asked for, what happened; and if it still is in doubt, why.
#[pg_extern(sql = false)]
#[allow(clippy::type_complexity)]
fn pg_fdw_xacts_resolve_and_tell(
    identifier: Option<&[u8]>,
) -> TableIterator<
    'static,
    (name!(identifier, Vec<u8>), name!(outcome, String), name!(reason, Option<Vec<u8>>)),
> {
    let rows = attempt(|| resolve(identifier)).unwrap_or_else(|error| error.raise_in_pgrx());
    TableIterator::new(rows)
}

/// The same as the SQL objects of 0.2.0 call it, until ALTER EXTENSION UPDATE has run.
#[pg_extern(sql = false)]
fn pg_fdw_xacts_resolve(
    identifier: Option<&[u8]>,
) -> TableIterator<'static, (name!(identifier, Vec<u8>), name!(outcome, String))> {
    TableIterator::new(
        pg_fdw_xacts_resolve_and_tell(identifier).map(|(gid, outcome, _)| (gid, outcome)),
    )
}

fn resolve(identifier: Option<&[u8]>) -> Result<Vec<Resolved>> {
    crate::pg::preload::require()?;
    not_on_standby(c"pg_fdw_xacts_resolve()")?;
    let before = in_doubt_here();
    requests::resolve()?;
    let after = in_doubt_here();
    let still: HashSet<Gid> = after.iter().map(|s| s.gid).collect();
    let settled = before.iter().filter(|s| !still.contains(&s.gid)).map(|s| {
        let outcome = match s.status {
            Status::Committing => "committed",
            Status::Aborting => "rolled back",
            _ => "settled",
        };
        (s.gid.to_string().into_bytes(), outcome.to_owned(), None)
    });
    let left = after.iter().map(|s| {
        let outcome = if s.status == Status::Prepared { "prepared" } else { "in doubt" };
        (s.gid.to_string().into_bytes(), outcome.to_owned(), s.reason.clone())
    });
    let mut rows: Vec<Resolved> = settled.chain(left).collect();
    if let Some(wanted) = identifier {
        rows.retain(|(gid, ..)| gid == wanted);
        if rows.is_empty() {
            rows.push((wanted.to_vec(), "not in doubt".to_owned(), None));
        }
    }
    Ok(rows)
}

/// What is in doubt in this database and left to the resolver.
fn in_doubt_here() -> Vec<Shown> {
    doubt::all().into_iter().filter(|s| s.is_here() && !s.owned && s.is_in_doubt()).collect()
}

text_function! {
    /// `pg_fdw_xacts_forget(identifier text) returns void`: gives up a transaction on a server that
    /// will never come back, or everything on a server. A server is given by its name, or by its
    /// OID if it no longer exists. The decision stays, and is delivered should the prepared
    /// transaction ever be seen.
    pg_fdw_xacts_forget_wrapper, pg_finfo_pg_fdw_xacts_forget_wrapper, |identifier| {
        forget(identifier).map(|()| Datum::from(0))
    }
}

fn forget(identifier: &CStr) -> Result<()> {
    crate::pg::preload::require()?;
    not_on_standby(c"pg_fdw_xacts_forget()")?;
    // SAFETY: reads the current role.
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
    if identity::known() != Some(gid.identity) {
        return Err(Error::new(
            SqlState::UNDEFINED_OBJECT,
            format!("\"{identifier}\" is not a transaction of this database"),
        ));
    }
    let row = decisions::of_nonce(gid.nonce);
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

/// A server on the list of participants, by its OID: a dropped one, or one from before pg_upgrade,
/// which gives servers new OIDs.
fn gone(oid: &CStr) -> Option<pg_sys::Oid> {
    let oid = pg_sys::Oid::from_u32(oid.to_str().ok()?.parse().ok()?);
    participant_list::all().iter().any(|r| r.serverid == oid).then_some(oid)
}
