//! Keeps what is still needed to settle transactions in doubt from being dropped, warns when a server moves, and has
//! sessions notice that a wrapper's handler has changed.
//!
//! `object_access_hook` sees every drop, by CASCADE and DROP OWNED too. DROP EXTENSION is looked at before that:
//! it would wait for a strong lock on our tables behind a transaction that is prepared here, and every later
//! COMMIT behind it.

use std::cell::Cell;
use std::ffi::CStr;

use pgrx::{PgList, PgLogLevel, pg_sys};

use crate::api::second_look;
use crate::fdw::planning::{self, Purpose};
use crate::log::workers;
use crate::pg::backend_local::BackendLocal;
use crate::pg::error::{Error, Result, SqlState, boundary};
use crate::pg::versions;
use crate::remote::options::Server;
use crate::xact;

const EXTENSION: &CStr = c"pg_fdw_xacts";
const OBJECT_IN_USE: SqlState = SqlState::new(b"55006");
const HINT: &str = "See pg_fdw_xacts and pg_stat_fdw_xacts. The resolver settles them when the server can be reached; \
     pg_fdw_xacts_forget() gives up a server that will never come back.";

static PREVIOUS: BackendLocal<Cell<pg_sys::object_access_hook_type>> =
    BackendLocal::new(Cell::new(None));

/// Installs the hook; called while the server loads the library.
pub fn install() {
    // SAFETY: single-threaded start-up.
    unsafe {
        PREVIOUS.get().set(pg_sys::object_access_hook);
        pg_sys::object_access_hook = Some(on_access);
    }
}

unsafe extern "C-unwind" fn on_access(
    access: pg_sys::ObjectAccessType::Type,
    class: pg_sys::Oid,
    object: pg_sys::Oid,
    sub: i32,
    argument: *mut std::ffi::c_void,
) {
    if let Some(previous) = PREVIOUS.get().get() {
        // SAFETY: another extension's hook, called as PostgreSQL would.
        unsafe { previous(access, class, object, sub, argument) };
    }
    boundary(|| match access {
        pg_sys::ObjectAccessType::OAT_DROP => before_drop(class, object),
        pg_sys::ObjectAccessType::OAT_POST_ALTER => after_alter(class),
        _ => Ok(()),
    });
}

fn before_drop(class: pg_sys::Oid, object: pg_sys::Oid) -> Result<()> {
    match class {
        pg_sys::ForeignServerRelationId => {
            planning::note_switch();
            if unsettled_on(object, None)? {
                let name = Server::find(object).map(|s| s.name).unwrap_or_default();
                return Err(refusal(format!("drop server \"{}\"", name.to_string_lossy())));
            }
            Ok(())
        }
        pg_sys::UserMappingRelationId => match mapping(object) {
            Some((userid, serverid)) if unsettled_on(serverid, Some(userid))? => {
                let name = Server::find(serverid).map(|s| s.name).unwrap_or_default();
                Err(refusal(format!(
                    "drop a user mapping for server \"{}\"",
                    name.to_string_lossy()
                )))
            }
            _ => Ok(()),
        },
        pg_sys::DatabaseRelationId if unsettled_in(object)? => {
            Err(refusal("drop the database".to_owned()))
        }
        pg_sys::ExtensionRelationId => {
            // SAFETY: a catalog look-up that may find nothing.
            let own = unsafe { pg_sys::get_extension_oid(EXTENSION.as_ptr(), true) };
            if own == object { before_drop_extension() } else { Ok(()) }
        }
        _ => Ok(()),
    }
}

/// Sessions keep the handler of tables they have used: PostgreSQL does not tell them that it has changed.
fn after_alter(class: pg_sys::Oid) -> Result<()> {
    if class == pg_sys::ForeignDataWrapperRelationId {
        // SAFETY: only queues messages, inside a command that changes a catalog.
        unsafe { pg_sys::CacheInvalidateRelcacheAll() };
        planning::note_switch();
    }
    Ok(())
}

/// The options that say where a server is.
pub const ADDRESS: [&CStr; 6] = [c"host", c"hostaddr", c"port", c"dbname", c"service", c"options"];

/// Warns before a server moves away from what may be in doubt there.
///
/// # Safety
/// A valid statement.
unsafe fn before_alter_server(alter: &pg_sys::AlterForeignServerStmt) -> Result<()> {
    // SAFETY: by contract; the list holds what the grammar puts there. A look-up that may find nothing.
    let (server, moves) = unsafe {
        let moves = PgList::<pg_sys::DefElem>::from_pg(alter.options)
            .iter_ptr()
            .any(|option| ADDRESS.contains(&CStr::from_ptr((*option).defname)));
        (pg_sys::get_foreign_server_oid(alter.servername, true), moves)
    };
    if !moves || server == pg_sys::Oid::INVALID || !unsettled_on(server, None)? {
        return Ok(());
    }
    let name = Server::find(server).map(|s| s.name).unwrap_or_default();
    Error::new(
        SqlState::new(b"01000"),
        format!("transactions may be in doubt on server \"{}\"", name.to_string_lossy()),
    )
    .detail("They can only be settled on the server and database where they were prepared.")
    .hint("If the address or the database was changed, change it back until pg_fdw_xacts shows no row of this server.")
    .log(PgLogLevel::WARNING)
}

fn refusal(what: String) -> Error {
    Error::new(OBJECT_IN_USE, format!("cannot {what} while transactions may be in doubt there"))
        .hint(HINT)
}

/// Whether something may be prepared on a server of this database, by one user or by any.
fn unsettled_on(serverid: pg_sys::Oid, userid: Option<pg_sys::Oid>) -> Result<bool> {
    // SAFETY: a plain global of this backend.
    let dbid = unsafe { pg_sys::MyDatabaseId };
    let by = |other| userid.is_none_or(|u| u == pg_sys::Oid::INVALID || u == other);
    second_look::finds(dbid, true, |server, user| server == serverid && user.is_none_or(by))
}

/// The user and the server of a mapping.
pub(super) fn mapping(object: pg_sys::Oid) -> Option<(pg_sys::Oid, pg_sys::Oid)> {
    // SAFETY: a catalog cache with one OID key; the tuple is read before it is released.
    unsafe {
        let cache = pg_sys::SysCacheIdentifier::USERMAPPINGOID as i32;
        let tuple = pg_sys::SearchSysCache(cache, object.into(), 0.into(), 0.into(), 0.into());
        if tuple.is_null() {
            return None;
        }
        let form = &*pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_user_mapping>();
        let found = (form.umuser, form.umserver);
        pg_sys::ReleaseSysCache(tuple);
        Some(found)
    }
}

/// Looks at a statement before it takes any lock.
///
/// # Safety
/// `statement` is a valid node.
///
/// # Errors
/// It would drop what is still needed.
pub unsafe fn before_utility(statement: *mut pg_sys::Node) -> Result<()> {
    // What this session has delivered is not in doubt once its answer has been read.
    xact::collect_deliveries();
    // SAFETY: the tag says which struct it is; the lists hold what the grammar puts there.
    unsafe {
        match (*statement).type_ {
            pg_sys::NodeTag::T_DropStmt => {
                let drop = &*statement.cast::<pg_sys::DropStmt>();
                let names = PgList::<pg_sys::Node>::from_pg(drop.objects);
                for name in names.iter_ptr().filter_map(|name| text_of(name)) {
                    before_drop_of(drop.removeType, name)?;
                }
                Ok(())
            }
            pg_sys::NodeTag::T_AlterForeignServerStmt => {
                before_alter_server(&*statement.cast::<pg_sys::AlterForeignServerStmt>())
            }
            pg_sys::NodeTag::T_DropdbStmt => {
                let drop = &*statement.cast::<pg_sys::DropdbStmt>();
                leave_database(CStr::from_ptr(drop.dbname), true)
            }
            pg_sys::NodeTag::T_CreatedbStmt => {
                let create = &*statement.cast::<pg_sys::CreatedbStmt>();
                for option in PgList::<pg_sys::DefElem>::from_pg(create.options).iter_ptr() {
                    let named = CStr::from_ptr((*option).defname) == c"template";
                    if named && !(*option).arg.is_null() {
                        leave_database(CStr::from_ptr(pg_sys::defGetString(option)), false)?;
                    }
                }
                Ok(())
            }
            pg_sys::NodeTag::T_TransactionStmt => {
                let transaction = &*statement.cast::<pg_sys::TransactionStmt>();
                let prepares = transaction.kind == pg_sys::TransactionStmtKind::TRANS_STMT_PREPARE;
                // One that has failed is rolled back by it.
                if prepares && !pg_sys::IsAbortedTransactionBlockState() {
                    planning::before(Purpose::Prepare)?;
                }
                Ok(())
            }
            pg_sys::NodeTag::T_RenameStmt => {
                let rename = &*statement.cast::<pg_sys::RenameStmt>();
                if rename.renameType == pg_sys::ObjectType::OBJECT_DATABASE {
                    leave_database(CStr::from_ptr(rename.subname), false)?;
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

unsafe fn text_of<'a>(node: *mut pg_sys::Node) -> Option<&'a CStr> {
    // SAFETY: by contract of the caller: a valid node.
    unsafe {
        ((*node).type_ == pg_sys::NodeTag::T_String)
            .then(|| CStr::from_ptr((*node.cast::<pg_sys::String>()).sval))
    }
}

/// Refuses before any lock is taken: the tables of a server may be locked by the very transaction that is
/// prepared here.
fn before_drop_of(kind: pg_sys::ObjectType::Type, name: &CStr) -> Result<()> {
    match kind {
        pg_sys::ObjectType::OBJECT_EXTENSION if name == EXTENSION => before_drop_extension(),
        pg_sys::ObjectType::OBJECT_FOREIGN_SERVER => {
            // SAFETY: a catalog look-up that may find nothing.
            let oid = unsafe { pg_sys::get_foreign_server_oid(name.as_ptr(), true) };
            before_drop(pg_sys::ForeignServerRelationId, oid)
        }
        _ => Ok(()),
    }
}

fn before_drop_extension() -> Result<()> {
    // SAFETY: a plain global of this backend.
    let left = unsettled_in(unsafe { pg_sys::MyDatabaseId })?;
    if left { Err(refusal("drop extension pg_fdw_xacts".to_owned())) } else { Ok(()) }
}

/// Whether something of a database may be prepared anywhere.
fn unsettled_in(dbid: pg_sys::Oid) -> Result<bool> {
    // SAFETY: a plain global of this backend.
    let own = dbid == unsafe { pg_sys::MyDatabaseId };
    second_look::finds(dbid, own, |_, _| true)
}

/// The resolver's connection must not stand in the way of a command that needs a database for itself.
fn leave_database(name: &CStr, drop: bool) -> Result<()> {
    // SAFETY: a catalog look-up that may find nothing.
    let dbid = unsafe { pg_sys::get_database_oid(name.as_ptr(), true) };
    if dbid == pg_sys::Oid::INVALID {
        return Ok(());
    }
    // PostgreSQL refuses below; nobody else may stop the resolver.
    // SAFETY: catalog look-ups for the current user.
    if !unsafe { versions::is_database_owner(dbid, pg_sys::GetUserId()) } {
        return Ok(());
    }
    let left = drop && unsettled_in(dbid)?;
    if left {
        return Err(refusal(format!("drop database \"{}\"", name.to_string_lossy())));
    }
    workers::pause(dbid);
    Ok(())
}
