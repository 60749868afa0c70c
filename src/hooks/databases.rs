//! Commands that need a database for themselves: DROP DATABASE, ALTER DATABASE … RENAME and … SET
//! TABLESPACE, and CREATE DATABASE with that one as its template.
//!
//! The resolver leaves the database while the command runs, but only if PostgreSQL is going to
//! allow the command, as far as that can be told cheaply: without its resolver the first
//! distributed commits in that database have to wait.

use std::cell::Cell;
use std::ffi::CStr;
use std::time::{Duration, Instant};

use pgrx::pg_sys::{self, Oid};

use crate::hooks::doubt::{Left, left_in};
use crate::pg::backend_local::BackendLocal;
use crate::pg::error::{Result, check_for_interrupts};
use crate::pg::globals::{current_user, my_database};
use crate::pg::node::option;
use crate::pg::wait_event::WaitEvent;
use crate::pg::{catalog, latch, text, versions};
use crate::shared::workers;

/// As long as PostgreSQL waits for the database's other sessions to end (`CountOtherDBBackends`).
const OTHERS_MAY_END: Duration = Duration::from_secs(5);

/// The database whose resolver this session's transaction has paused.
static PAUSED: BackendLocal<Cell<Oid>> = BackendLocal::new(Cell::new(Oid::INVALID));

/// What a command wants of a database.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wanted {
    /// To remove it; `force`: its sessions are terminated.
    Drop { force: bool },
    /// To change its name, inside a transaction block too.
    Rename,
    /// To move its files.
    Move,
    /// To copy it.
    Copy,
}

/// Registers what ends a pause; called while the server loads the library.
pub fn install() {
    // SAFETY: the callback lives as long as the server.
    unsafe { pg_sys::RegisterXactCallback(Some(on_transaction), std::ptr::null_mut()) };
}

/// A pause ends with the transaction: until then the command's lock keeps others out. Raises
/// nothing.
unsafe extern "C-unwind" fn on_transaction(
    event: pg_sys::XactEvent::Type,
    _arg: *mut std::ffi::c_void,
) {
    use pg_sys::XactEvent as E;
    let ended = matches!(event, E::XACT_EVENT_COMMIT | E::XACT_EVENT_ABORT | E::XACT_EVENT_PREPARE);
    if ended && PAUSED.get().get() != Oid::INVALID {
        workers::end_pause(PAUSED.get().replace(Oid::INVALID));
    }
}

/// Has the resolver leave before one of these statements takes any lock.
///
/// # Safety
/// `statement` is a valid node.
///
/// # Errors
/// The database cannot be dropped while something of it may be in doubt.
pub unsafe fn before(statement: *mut pg_sys::Node) -> Result<()> {
    // SAFETY: the tag says which struct it is; the lists hold what the grammar puts there.
    unsafe {
        match (*statement).type_ {
            pg_sys::NodeTag::T_DropdbStmt => {
                let drop = &*statement.cast::<pg_sys::DropdbStmt>();
                let force = option(drop.options, c"force").is_some();
                leave(CStr::from_ptr(drop.dbname), Wanted::Drop { force })
            }
            pg_sys::NodeTag::T_CreatedbStmt => {
                let create = &*statement.cast::<pg_sys::CreatedbStmt>();
                let template = option(create.options, c"template")
                    .filter(|option| !(**option).arg.is_null())
                    .map_or(c"template1", |option| CStr::from_ptr(pg_sys::defGetString(option)));
                leave(template, Wanted::Copy)
            }
            pg_sys::NodeTag::T_AlterDatabaseStmt => {
                let alter = &*statement.cast::<pg_sys::AlterDatabaseStmt>();
                match option(alter.options, c"tablespace") {
                    Some(_) => leave(CStr::from_ptr(alter.dbname), Wanted::Move),
                    None => Ok(()),
                }
            }
            pg_sys::NodeTag::T_RenameStmt => {
                let rename = &*statement.cast::<pg_sys::RenameStmt>();
                if rename.renameType != pg_sys::ObjectType::OBJECT_DATABASE {
                    return Ok(());
                }
                leave(CStr::from_ptr(rename.subname), Wanted::Rename)
            }
            _ => Ok(()),
        }
    }
}

/// Has the resolver leave a database.
fn leave(name: &CStr, wanted: Wanted) -> Result<()> {
    let dbid = catalog::database(name);
    if dbid == Oid::INVALID || !may(dbid, wanted) {
        return Ok(());
    }
    if matches!(wanted, Wanted::Drop { .. }) {
        if left_in(dbid)? == Left::Unknown {
            workers::await_look_at(dbid)?;
        }
        left_in(dbid)?.refuse(|| format!("drop database \"{}\"", text::carried(name)))?;
    }
    if wanted == (Wanted::Drop { force: true }) || others_end(dbid)? {
        workers::pause(dbid);
        PAUSED.get().set(dbid);
    }
    Ok(())
}

/// Whether PostgreSQL is going to allow it to this role, here and now, as far as that is cheap to
/// know. It refuses the rest itself.
fn may(dbid: Oid, wanted: Wanted) -> bool {
    // SAFETY: inside the transaction of the command.
    unsafe {
        let owner = versions::is_database_owner(dbid, current_user());
        let own = dbid == my_database();
        let in_block = pg_sys::IsTransactionBlock();
        match wanted {
            Wanted::Drop { .. } | Wanted::Move => owner && !own && !in_block,
            Wanted::Rename => owner && !own && pg_sys::have_createdb_privilege(),
            Wanted::Copy => {
                (owner || catalog::is_template(dbid))
                    && !in_block
                    && pg_sys::have_createdb_privilege()
            }
        }
    }
}

/// Waits for the other sessions of a database to end, as PostgreSQL would, and tells whether they
/// did. While there are any the command would be refused, and they need the resolver.
fn others_end(dbid: Oid) -> Result<bool> {
    let deadline = Instant::now() + OTHERS_MAY_END;
    loop {
        // SAFETY: counts in shared memory, background workers apart.
        let all = unsafe { pg_sys::CountDBConnections(dbid) };
        let others = all - i32::from(dbid == my_database());
        if others <= 0 {
            return Ok(true);
        }
        if Instant::now() >= deadline {
            return Ok(false);
        }
        check_for_interrupts()?;
        latch::wait(Duration::from_millis(100), WaitEvent::Resolver);
    }
}
