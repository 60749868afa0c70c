//! Keeps what is still needed to settle transactions in doubt from being dropped, warns when a server moves, and has
//! sessions notice that a wrapper's handler has changed.
//!
//! `object_access_hook` sees every drop, by CASCADE and DROP OWNED too. DROP EXTENSION is looked at before that:
//! it would wait for a strong lock on our tables behind a transaction that is prepared here, and every later
//! COMMIT behind it.

use std::cell::Cell;
use std::ffi::CStr;

use pgrx::{PgList, PgLogLevel, pg_sys};

use crate::fdw::estimates::{self, Before};
use crate::hooks::{databases, second_look};
use crate::pg::backend_local::BackendLocal;
use crate::pg::error::{Error, Result, SqlState, boundary};
use crate::pg::globals::my_database;
use crate::pg::text;
use crate::remote::options::Server;
use crate::shared::workers;
use crate::store::participant_list::{self, ParticipantRecord};
use crate::store::trusted;
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
    databases::install();
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
            estimates::note_changed_handler();
            left_on(object, None)?.refuse(|| {
                let name = Server::find(object).map(|s| s.name).unwrap_or_default();
                format!("drop server \"{}\"", text::carried(&name))
            })
        }
        pg_sys::UserMappingRelationId => match mapping(object) {
            Some((userid, serverid)) => {
                xact::note_dropped_mapping();
                left_on(serverid, Some(userid))?.refuse(|| {
                    let name = Server::find(serverid).map(|s| s.name).unwrap_or_default();
                    format!("drop a user mapping for server \"{}\"", text::carried(&name))
                })
            }
            None => Ok(()),
        },
        // DROP SCHEMA, DROP OWNED and a DROP of what the extension needs, with CASCADE, drop it without naming it, and the
        // list before the servers.
        pg_sys::RelationRelationId if trusted::is_named(object, c"participant") => {
            before_drop_extension()
        }
        pg_sys::DatabaseRelationId => left_in(object)?.refuse(|| "drop the database".to_owned()),
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
        estimates::note_changed_handler();
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
    if !moves || server == pg_sys::Oid::INVALID || left_on(server, None)? == Left::Nothing {
        return Ok(());
    }
    let name = Server::find(server).map(|s| s.name).unwrap_or_default();
    Error::new(
        SqlState::new(b"01000"),
        format!("transactions may be in doubt on server \"{}\"", text::carried(&name)),
    )
    .detail("They can only be settled on the server and database where they were prepared.")
    .hint("If the address or the database was changed, change it back until pg_fdw_xacts shows no row of this server.")
    .log(PgLogLevel::WARNING)
}

/// Warns before a wrapper gets another handler: the resolver only connects to servers that have ours.
///
/// # Safety
/// A valid statement.
unsafe fn before_alter_wrapper(alter: &pg_sys::AlterFdwStmt) -> Result<()> {
    // SAFETY: by contract; the list holds what the grammar puts there. A look-up that may find nothing.
    let (wrapper, switches) = unsafe {
        let switches = PgList::<pg_sys::DefElem>::from_pg(alter.func_options)
            .iter_ptr()
            .any(|option| CStr::from_ptr((*option).defname) == c"handler");
        (pg_sys::get_foreign_data_wrapper_oid(alter.fdwname, true), switches)
    };
    if !switches || wrapper == pg_sys::Oid::INVALID {
        return Ok(());
    }
    let is_of_wrapper = |serverid: pg_sys::Oid| {
        // SAFETY: a catalog look-up that may find nothing.
        let server = unsafe {
            pg_sys::GetForeignServerExtended(serverid, pg_sys::FSV_MISSING_OK as u16).as_ref()
        };
        server.is_some_and(|server| server.fdwid == wrapper)
    };
    let mut left = None;
    for registered in participant_list::listed() {
        if is_of_wrapper(registered.serverid)
            && left_on(registered.serverid, None)? != Left::Nothing
        {
            left = Server::find(registered.serverid);
            break;
        }
    }
    let Some(server) = left else { return Ok(()) };
    Error::new(
        SqlState::new(b"01000"),
        format!("transactions may be in doubt on server \"{}\"", text::carried(&server.name)),
    )
    .detail("The resolver settles them only while the server has the handler pg_fdw_xacts_handler.")
    .hint("If the handler was changed to another one, change it back until pg_fdw_xacts_resolve() leaves nothing in doubt.")
    .log(PgLogLevel::WARNING)
}

/// What is known of prepared transactions that may be left somewhere.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Left {
    /// There are none.
    Nothing,
    /// There may be some.
    Something,
    /// Something has prepared there once, and the resolver has not come to look since the start of this server: a crash
    /// may have left it.
    Unknown,
}

impl Left {
    /// Refuses a command that would make it impossible to settle them.
    pub(super) fn refuse(self, what: impl FnOnce() -> String) -> Result<()> {
        let why = match self {
            Left::Nothing => return Ok(()),
            Left::Something => "transactions may be in doubt there",
            Left::Unknown => "the resolver has not looked for transactions in doubt there",
        };
        let error = Error::new(OBJECT_IN_USE, format!("cannot {} while {why}", what()));
        Err(match self {
            Left::Unknown => error
                .detail("Something was prepared there before the last start of this server, and the resolver of the database has not come up since.")
                .hint("It comes up by itself; if not, see the server log: \"max_worker_processes\" must leave room for one worker per database that has the extension, and one launcher."),
            _ => error.hint(HINT),
        })
    }
}

/// What may be prepared on a server of this database, by one user or by any.
fn left_on(serverid: pg_sys::Oid, userid: Option<pg_sys::Oid>) -> Result<Left> {
    let concerns = |other| userid.is_none_or(|u| u == pg_sys::Oid::INVALID || u == other);
    let found = second_look::finds(my_database(), true, |server, user| {
        server == serverid && user.is_none_or(concerns)
    })?;
    if found {
        return Ok(Left::Something);
    }
    Ok(left_by_list(|r| r.serverid == serverid && concerns(r.userid)))
}

/// The same of this database's participants that `which` picks, as far as shared memory, which a start of the server
/// empties, does not show it: by the durable list.
fn left_by_list(which: impl Fn(&ParticipantRecord) -> bool) -> Left {
    if workers::resolver_is_up() || !participant_list::listed().iter().any(which) {
        Left::Nothing
    } else {
        workers::wake_resolver(my_database());
        Left::Unknown
    }
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
            pg_sys::NodeTag::T_DropUserMappingStmt => {
                before_drop_mapping(&*statement.cast::<pg_sys::DropUserMappingStmt>())
            }
            pg_sys::NodeTag::T_AlterForeignServerStmt => {
                before_alter_server(&*statement.cast::<pg_sys::AlterForeignServerStmt>())
            }
            pg_sys::NodeTag::T_TruncateStmt => {
                let truncate = &*statement.cast::<pg_sys::TruncateStmt>();
                PgList::<pg_sys::RangeVar>::from_pg(truncate.relations)
                    .iter_ptr()
                    .try_for_each(|name| before_truncate(name))
            }
            pg_sys::NodeTag::T_AlterFdwStmt => {
                before_alter_wrapper(&*statement.cast::<pg_sys::AlterFdwStmt>())
            }
            pg_sys::NodeTag::T_TransactionStmt => {
                let transaction = &*statement.cast::<pg_sys::TransactionStmt>();
                let prepares = transaction.kind == pg_sys::TransactionStmtKind::TRANS_STMT_PREPARE;
                // One that has failed is rolled back by it.
                if prepares && !pg_sys::IsAbortedTransactionBlockState() {
                    estimates::end_planner_transactions(Before::Prepare)?;
                }
                Ok(())
            }
            _ => databases::before(statement),
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

/// Decisions that are emptied out are aborts.
///
/// # Safety
/// A valid name.
unsafe fn before_truncate(name: *mut pg_sys::RangeVar) -> Result<()> {
    // SAFETY: by contract; a look-up that may find nothing and locks nothing.
    let table = unsafe {
        let flags = pg_sys::RVROption::RVR_MISSING_OK;
        let no_lock = pg_sys::NoLock as i32;
        pg_sys::RangeVarGetRelidExtended(name, no_lock, flags, None, std::ptr::null_mut())
    };
    if table == pg_sys::Oid::INVALID || !trusted::is_member(pg_sys::RelationRelationId, table) {
        return Ok(());
    }
    Err(Error::new(OBJECT_IN_USE, "cannot truncate a table of pg_fdw_xacts")
        .detail("What it says decides what becomes of prepared transactions.")
        .hint("The resolver deletes what is not needed any more; see \"pg_fdw_xacts.forget_delay\" and \"pg_fdw_xacts.track_retention\"."))
}

/// The same for a user mapping, which a transaction that is about to prepare locks for a moment.
///
/// # Safety
/// A valid statement.
unsafe fn before_drop_mapping(drop: &pg_sys::DropUserMappingStmt) -> Result<()> {
    // SAFETY: by contract; look-ups in catalogs that may find nothing.
    let mapping = unsafe {
        let server = pg_sys::get_foreign_server_oid(drop.servername, true);
        let public = (*drop.user).roletype == pg_sys::RoleSpecType::ROLESPEC_PUBLIC;
        let user =
            if public { pg_sys::Oid::INVALID } else { pg_sys::get_rolespec_oid(drop.user, true) };
        pg_sys::GetSysCacheOid(
            pg_sys::SysCacheIdentifier::USERMAPPINGUSERSERVER as i32,
            pg_sys::Anum_pg_user_mapping_oid as pg_sys::AttrNumber,
            user.into(),
            server.into(),
            0.into(),
            0.into(),
        )
    };
    if mapping == pg_sys::Oid::INVALID {
        Ok(())
    } else {
        before_drop(pg_sys::UserMappingRelationId, mapping)
    }
}

fn before_drop_extension() -> Result<()> {
    left_in(my_database())?.refuse(|| "drop extension pg_fdw_xacts".to_owned())
}

/// What of a database may be prepared anywhere.
pub(super) fn left_in(dbid: pg_sys::Oid) -> Result<Left> {
    let own = dbid == my_database();
    if second_look::finds(dbid, own, |_, _| true)? {
        return Ok(Left::Something);
    }
    if own {
        return Ok(left_by_list(|_| true));
    }
    // Only its own sessions can read the list of another database.
    Ok(if workers::has_been_looked_at(dbid) { Left::Nothing } else { Left::Unknown })
}
