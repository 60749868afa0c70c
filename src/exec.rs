//! `pg_fdw_xacts_exec()` and `pg_fdw_xacts_query()`: any SQL, DDL included, in a participant's
//! transaction, so that it commits with everything else or not at all.
//!
//! * [`commands`]: the commands in a text;
//! * [`rules`]: what a user's statement may not do in a participant's transaction;
//! * [`inspect`]: what a statement does that this server can parse;
//! * [`unparsed`], [`lexer`]: what any other statement does;
//! * [`remote`]: running the commands there;
//! * [`rows`]: the rows of a query;
//! * [`snapshot`]: one snapshot of several servers, as of a moment that the user chooses.
//!
//! The functions follow C's calling convention and not pgrx's, because a command is bytes in the
//! server's encoding, and because errors keep their CONTEXT.

use std::ffi::{CStr, CString};

use pgrx::pg_sys::{self, Datum, Oid};

use crate::fdw::estimates::{self, Before};
use crate::pg::error::{Error, Result, SqlState, boundary, catch};
use crate::pg::globals::current_user;
use crate::pg::{globals, raw, versions};
use crate::protocol::plan::Access;
use crate::remote::options::Server;
use crate::xact::{Attachment, attach, attach_to_write, participants};

mod commands;
mod inspect;
mod lexer;
mod remote;
mod rows;
mod rules;
mod snapshot;
mod unparsed;

use commands::{Command, Kind};

/// The call convention's record of `pg_fdw_xacts_exec`.
#[unsafe(no_mangle)]
pub extern "C" fn pg_finfo_pg_fdw_xacts_exec() -> *const pg_sys::Pg_finfo_record {
    const RECORD: pg_sys::Pg_finfo_record = pg_sys::Pg_finfo_record { api_version: 1 };
    &RECORD
}

/// `pg_fdw_xacts_exec(server name, command text) returns bigint`: runs one or more commands, and
/// returns how many rows they have affected in total.
///
/// # Safety
/// Called by PostgreSQL with these two arguments, none of them NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn pg_fdw_xacts_exec(fcinfo: pg_sys::FunctionCallInfo) -> Datum {
    boundary(|| {
        // SAFETY: by contract.
        let call = unsafe { Call::read(fcinfo, c"pg_fdw_xacts_exec()")? };
        // A query counts as a writer too: its functions may be what it is run for, except in a
        // transaction that can only read.
        let access = if only_reads() { Access::Reads } else { Access::Modifies };
        let session = call.attach()?.with(access);
        let counts = remote::run(&session, &call.commands, |r| r.rows_affected())?;
        Ok(Datum::from(counts.iter().sum::<u64>() as i64))
    })
}

/// The call convention's record of `pg_fdw_xacts_query`.
#[unsafe(no_mangle)]
pub extern "C" fn pg_finfo_pg_fdw_xacts_query() -> *const pg_sys::Pg_finfo_record {
    const RECORD: pg_sys::Pg_finfo_record = pg_sys::Pg_finfo_record { api_version: 1 };
    &RECORD
}

/// `pg_fdw_xacts_query(server name, query text) returns setof record`: runs one command and returns
/// its rows.
///
/// # Safety
/// Called by PostgreSQL with these two arguments, none of them NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn pg_fdw_xacts_query(fcinfo: pg_sys::FunctionCallInfo) -> Datum {
    boundary(|| {
        // SAFETY: by contract.
        unsafe {
            let call = Call::read(fcinfo, c"pg_fdw_xacts_query()")?;
            let [command] = call.commands.as_slice() else {
                return Err(Error::new(
                    SqlState::SYNTAX_ERROR,
                    "pg_fdw_xacts_query() runs one command at a time",
                )
                .hint("Run the others with pg_fdw_xacts_exec()."));
            };
            let mut rows = rows::Rows::declared(fcinfo)?;
            let session = call.attach()?;
            match command.kind {
                Kind::Query => rows.fetch(&session, &command.sql, call.fetch_size())?,
                Kind::Report | Kind::Data | Kind::Utility => rows.run(&session, command)?,
            }
            rows.end();
            // The rows are in the tuplestore; the value returned is ignored.
            (*fcinfo).isnull = true;
            Ok(Datum::null())
        }
    })
}

/// Whether this transaction can only read, from its beginning to its end. One whose savepoint is
/// READ ONLY may have written before, and may write again after it.
fn only_reads() -> bool {
    globals::is_read_only()
        && (globals::in_recovery()
            || globals::nest_level() == 1
                && !globals::has_written()
                && !participants::all().iter().any(|p| p.connection.work().wrote()))
}

/// The arguments of a call, checked.
struct Call {
    serverid: Oid,
    server: Server,
    userid: Oid,
    commands: Vec<Command>,
}

impl Call {
    /// Reads the arguments, and checks everything that can be checked without the other server.
    ///
    /// # Safety
    /// The call of a function with a name and a text, none of them NULL.
    ///
    /// # Errors
    /// No such server, no right to use it, a refused command, or a command that writes in a READ
    /// ONLY transaction.
    unsafe fn read(fcinfo: pg_sys::FunctionCallInfo, function: &CStr) -> Result<Self> {
        crate::pg::preload::require()?;
        // SAFETY: by contract; a name is NUL-terminated, a text may be compressed.
        let (name, text): (CString, CString) = unsafe {
            let arguments = (*fcinfo).args.as_slice(2);
            let name = arguments[0].value.cast_mut_ptr::<pg_sys::nameData>();
            let text = pg_sys::text_to_cstring(arguments[1].value.cast_mut_ptr());
            (CStr::from_ptr((*name).data.as_ptr()).to_owned(), CStr::from_ptr(text).to_owned())
        };
        let userid = current_user();
        let serverid = usable_server(&name, userid)?;
        let commands = commands::read(&text, &name)?;
        if commands.iter().any(|command| matches!(command.kind, Kind::Data | Kind::Utility)) {
            // SAFETY: looks at the transaction; a static name.
            unsafe { pg_sys::PreventCommandIfReadOnly(function.as_ptr()) };
        }
        Ok(Self { serverid, server: Server::read(serverid), userid, commands })
    }

    /// Attaches to the participant, as a statement of the same kind on a foreign table does.
    fn attach(&self) -> Result<Attachment> {
        let is = |kind| self.commands.iter().any(|command| command.kind == kind);
        let writes = is(Kind::Data) || is(Kind::Utility);
        let attach = if writes { attach_to_write } else { attach };
        let session = attach(self.userid, self.serverid)?;
        session.connection().expect_modification();
        if is(Kind::Utility) {
            estimates::end_planner_transactions(Before::ExclusiveLock)?;
        }
        Ok(session)
    }

    /// How many rows a FETCH asks for: the server's option, or more than a scan does, because all
    /// rows are wanted.
    fn fetch_size(&self) -> usize {
        crate::remote::options::option(&self.server.options, c"fetch_size")
            .and_then(|size| size.to_str().ok()?.parse().ok())
            .unwrap_or(1000)
    }
}

/// The server of that name, if it is one of ours and this user may use it.
///
/// # Errors
/// No such server; 42501; 55000: it is of another wrapper.
fn usable_server(name: &CStr, userid: Oid) -> Result<Oid> {
    let serverid = Server::named(name)?;
    may_use(serverid, userid, name)?;
    if !crate::fdw::is_ours(serverid) {
        return Err(foreign_handler(name));
    }
    Ok(serverid)
}

/// Refuses users without USAGE on the server, without which they could not create foreign tables
/// there either.
///
/// # Errors
/// 42501.
fn may_use(serverid: Oid, userid: Oid, name: &CStr) -> Result<()> {
    // SAFETY: look-ups in the catalog, and raising from a frame that owns nothing.
    unsafe {
        let result = versions::foreign_server_usage(serverid, userid);
        if result != pg_sys::AclResult::ACLCHECK_OK {
            let kind = pg_sys::ObjectType::OBJECT_FOREIGN_SERVER;
            catch(|| raw::aclcheck_error(result, kind, name.as_ptr()))?;
        }
    }
    Ok(())
}

fn foreign_handler(server: &CStr) -> Error {
    Error::new(
        SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
        [b"server \"", server.to_bytes(), b"\" does not use pg_fdw_xacts"].concat(),
    )
    .hint("Create it with FOREIGN DATA WRAPPER pg_fdw_xacts, or give its wrapper the handler pg_fdw_xacts_handler.")
}
