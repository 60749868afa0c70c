//! Warns when ALTER takes away what is needed to settle transactions in doubt, and has sessions
//! notice that a wrapper's handler has changed.

use std::ffi::CStr;

use pgrx::pg_sys::{self, Oid};
use pgrx::{PgList, PgLogLevel};

use crate::fdw::estimates;
use crate::hooks::doubt::{Left, left_on};
use crate::pg::error::{Error, Result, SqlState};
use crate::pg::text;
use crate::remote::options::Server;
use crate::store::participant_list;

/// The options that say where a server is.
const ADDRESS: [&CStr; 6] = [c"host", c"hostaddr", c"port", c"dbname", c"service", c"options"];

/// An object was altered. Sessions keep the handler of tables they have used, and PostgreSQL does
/// not tell them that it has changed: this does.
pub fn after(class: Oid) {
    if class == pg_sys::ForeignDataWrapperRelationId {
        // SAFETY: only queues messages, inside a command that changes a catalog.
        unsafe { pg_sys::CacheInvalidateRelcacheAll() };
        estimates::note_switch();
    }
}

/// ALTER SERVER: warns if the server moves away from what may be in doubt there.
///
/// # Safety
/// A valid statement.
///
/// # Errors
/// A cancel.
pub unsafe fn before_server(alter: &pg_sys::AlterForeignServerStmt) -> Result<()> {
    // SAFETY: by contract; the list holds what the grammar puts there. A look-up that may find
    // nothing.
    let (server, moves) = unsafe {
        let moves = PgList::<pg_sys::DefElem>::from_pg(alter.options)
            .iter_ptr()
            .any(|option| ADDRESS.contains(&CStr::from_ptr((*option).defname)));
        (pg_sys::get_foreign_server_oid(alter.servername, true), moves)
    };
    if !moves || server == Oid::INVALID || left_on(server, None)? == Left::Nothing {
        return Ok(());
    }
    warn_of(
        &Server::find(server).map(|server| server.name).unwrap_or_default(),
        "They can only be settled on the server and database where they were prepared.",
        "If the address or the database was changed, change it back until pg_fdw_xacts shows no row of this server.",
    )
}

/// ALTER FOREIGN DATA WRAPPER: warns before the handler changes while something may be in doubt on
/// a server of the wrapper. The resolver only connects to servers that have ours.
///
/// # Safety
/// A valid statement.
///
/// # Errors
/// A cancel.
pub unsafe fn before_wrapper(alter: &pg_sys::AlterFdwStmt) -> Result<()> {
    // SAFETY: by contract; the list holds what the grammar puts there. A look-up that may find
    // nothing.
    let (wrapper, switches) = unsafe {
        let switches = PgList::<pg_sys::DefElem>::from_pg(alter.func_options)
            .iter_ptr()
            .any(|option| CStr::from_ptr((*option).defname) == c"handler");
        (pg_sys::get_foreign_data_wrapper_oid(alter.fdwname, true), switches)
    };
    if !switches || wrapper == Oid::INVALID {
        return Ok(());
    }
    for participant in participant_list::listed() {
        let server = participant.serverid;
        if wrapper_of(server) == Some(wrapper) && left_on(server, None)? != Left::Nothing {
            return warn_of(
                &Server::find(server).map(|server| server.name).unwrap_or_default(),
                "The resolver settles them only while the server has the handler pg_fdw_xacts_handler.",
                "If the handler was changed to another one, change it back until pg_fdw_xacts_resolve() leaves nothing in doubt.",
            );
        }
    }
    Ok(())
}

/// The wrapper of a server, if the server exists.
fn wrapper_of(serverid: Oid) -> Option<Oid> {
    // SAFETY: a catalog look-up that may find nothing.
    unsafe {
        pg_sys::GetForeignServerExtended(serverid, pg_sys::FSV_MISSING_OK as u16)
            .as_ref()
            .map(|server| server.fdwid)
    }
}

fn warn_of(server: &CStr, detail: &str, hint: &str) -> Result<()> {
    let server = text::carried(server);
    Error::new(SqlState::WARNING, format!("transactions may be in doubt on server \"{server}\""))
        .detail(detail)
        .hint(hint)
        .log(PgLogLevel::WARNING)
}
