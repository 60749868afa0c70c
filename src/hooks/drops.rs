//! Keeps what is still needed to settle transactions in doubt from being dropped or truncated.
//!
//! [`before`] sees every drop, but late: with its locks taken. DROP EXTENSION, for example, would
//! wait for a strong lock on our tables behind a transaction that is prepared here, and every later
//! COMMIT would wait behind it. So the statements are looked at before that, too.

use std::ffi::CStr;

use pgrx::pg_sys::{self, Oid};

use crate::fdw::estimates;
use crate::hooks::doubt::{OBJECT_IN_USE, left_in, left_on};
use crate::pg::error::{Error, Result};
use crate::pg::globals::my_database;
use crate::pg::{catalog, text};
use crate::remote::options::Server;
use crate::store::trusted;
use crate::xact;

const EXTENSION: &CStr = c"pg_fdw_xacts";

/// An object is about to be dropped.
///
/// # Errors
/// 55006: it is still needed.
pub fn before(class: Oid, object: Oid) -> Result<()> {
    match class {
        pg_sys::ForeignServerRelationId => {
            estimates::note_switch();
            left_on(object, None)?.refuse(|| format!("drop server \"{}\"", server_name(object)))
        }
        pg_sys::UserMappingRelationId => match catalog::user_mapping(object) {
            Some((userid, serverid)) => {
                xact::note_dropped_mapping();
                left_on(serverid, Some(userid))?.refuse(|| {
                    format!("drop a user mapping for server \"{}\"", server_name(serverid))
                })
            }
            None => Ok(()),
        },
        // DROP SCHEMA, DROP OWNED and a DROP of what the extension needs, with CASCADE, drop the
        // extension without naming it, and this list before the servers.
        pg_sys::RelationRelationId if trusted::is_named(object, c"participant") => {
            before_extension()
        }
        pg_sys::DatabaseRelationId => left_in(object)?.refuse(|| "drop the database".to_owned()),
        pg_sys::ExtensionRelationId if catalog::extension(EXTENSION) == object => {
            before_extension()
        }
        _ => Ok(()),
    }
}

fn server_name(serverid: Oid) -> String {
    let name = Server::find(serverid).map(|server| server.name).unwrap_or_default();
    text::carried(&name)
}

fn before_extension() -> Result<()> {
    left_in(my_database())?.refuse(|| "drop extension pg_fdw_xacts".to_owned())
}

/// A DROP statement names an object: refused before any lock is taken, because the very transaction
/// that is in doubt may have locked a server's tables here.
///
/// # Errors
/// 55006: it is still needed.
pub fn before_statement(kind: pg_sys::ObjectType::Type, name: &CStr) -> Result<()> {
    match kind {
        pg_sys::ObjectType::OBJECT_EXTENSION if name == EXTENSION => before_extension(),
        pg_sys::ObjectType::OBJECT_FOREIGN_SERVER => {
            before(pg_sys::ForeignServerRelationId, catalog::foreign_server(name))
        }
        _ => Ok(()),
    }
}

/// DROP USER MAPPING: a transaction that is about to prepare locks the mapping for a moment.
///
/// # Safety
/// A valid statement.
///
/// # Errors
/// 55006: it is still needed.
pub unsafe fn before_user_mapping(drop: &pg_sys::DropUserMappingStmt) -> Result<()> {
    // SAFETY: by contract; look-ups in catalogs that may find nothing.
    let mapping = unsafe {
        let server = pg_sys::get_foreign_server_oid(drop.servername, true);
        let public = (*drop.user).roletype == pg_sys::RoleSpecType::ROLESPEC_PUBLIC;
        let user = if public { Oid::INVALID } else { pg_sys::get_rolespec_oid(drop.user, true) };
        pg_sys::GetSysCacheOid(
            pg_sys::SysCacheIdentifier::USERMAPPINGUSERSERVER as i32,
            pg_sys::Anum_pg_user_mapping_oid as pg_sys::AttrNumber,
            user.into(),
            server.into(),
            0.into(),
            0.into(),
        )
    };
    if mapping == Oid::INVALID { Ok(()) } else { before(pg_sys::UserMappingRelationId, mapping) }
}

/// TRUNCATE of our tables is refused: a missing decision means that the transaction was aborted.
///
/// # Safety
/// A valid name.
///
/// # Errors
/// 55006: it is one of our tables.
pub unsafe fn before_truncate(name: *mut pg_sys::RangeVar) -> Result<()> {
    // SAFETY: by contract; a look-up that may find nothing and locks nothing.
    let table = unsafe {
        let flags = pg_sys::RVROption::RVR_MISSING_OK;
        let no_lock = pg_sys::NoLock as i32;
        pg_sys::RangeVarGetRelidExtended(name, no_lock, flags, None, std::ptr::null_mut())
    };
    if table == Oid::INVALID || !trusted::is_member(pg_sys::RelationRelationId, table) {
        return Ok(());
    }
    Err(Error::new(OBJECT_IN_USE, "cannot truncate a table of pg_fdw_xacts")
        .detail(
            "Its rows decide what becomes of prepared transactions. The resolver deletes those \
             that are no longer needed.",
        )
        .hint(
            "To have rows deleted earlier, lower \"pg_fdw_xacts.forget_delay\" and \
             \"pg_fdw_xacts.track_retention\".",
        ))
}
