//! What is known of a connection's remote session and transaction, and how the answers to the connection's own
//! commands change it.

use std::cell::Cell;
use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::rc::{Rc, Weak};

use crate::libpq::PgResult;
use crate::pg::error::c_string;
use crate::protocol::fingerprint::Fingerprint;
use crate::protocol::pipeline::{Control, Effect, Fifo};
use crate::protocol::plan::{Access, Xid};
use crate::protocol::session_lock::SessionLock;
use crate::remote::connection::{Opening, Unanswered};

impl SessionLock {
    /// Takes the lock, twice, so that [`Self::check`] can give one back without letting go.
    pub fn take(self) -> CString {
        let try_lock = self.call("pg_try_advisory_lock_shared");
        c_string(format!("SELECT {try_lock} AND {try_lock}"))
    }

    /// The name under which [`Self::check`] is prepared.
    pub fn check_name(self) -> CString {
        c_string(format!("px_lock {} {}", self.key, self.incarnation))
    }

    /// Fails, with a division by zero, where the session does not hold the lock. Taking it again would prove nothing:
    /// somebody may have found it free meanwhile. Nor is it looked for among all locks of the server, which are many.
    pub fn check(self) -> CString {
        let (unlock, try_lock) =
            (self.call("pg_advisory_unlock_shared"), self.call("pg_try_advisory_lock_shared"));
        c_string(format!(
            "SELECT 1 OPERATOR(pg_catalog./) (CASE WHEN {unlock} THEN {try_lock} ELSE false END)::pg_catalog.int4"
        ))
    }

    fn call(self, function: &str) -> String {
        format!(
            "pg_catalog.{function}({}::pg_catalog.int4, {}::pg_catalog.int4)",
            self.key, self.incarnation
        )
    }
}

/// Why a connection takes no more statements.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Doom {
    /// The connection broke.
    Lost,
    /// The connection broke while the savepoint of this level was being made: nobody else may try.
    LostOpening(u32),
    /// The remote transaction's state is not what it has to be. What was asked is still answered.
    CleanupFailed,
    /// Answers came that do not fit what was asked: they cannot be told apart any more.
    OutOfStep,
}

/// `FETCH` commands in a row.
pub struct FetchRun {
    /// The last of them.
    pub fetch: CString,
    /// What [`crate::libpq::Conn::parsed`] was then.
    pub parsed: u64,
    /// How many they are.
    pub length: u32,
}

/// What is known of the remote session.
#[derive(Default)]
pub struct SessionState {
    /// The answers that are due.
    pub fifo: Fifo<PgResult>,
    /// The set-up has been queued.
    pub set_up: bool,
    /// Where it is, once the set-up has been answered.
    pub fingerprint: Option<Fingerprint>,
    /// The server process that ran the set-up.
    pub server_pid: Option<i32>,
    /// 0 outside a remote transaction, 1 inside, n with savepoint `s<n>`.
    pub depth: u32,
    /// The depth that the server has answered for.
    pub confirmed: u32,
    /// The advisory lock that tells others that this session lives, once it is held.
    pub session_lock: Option<SessionLock>,
    /// The same, asked for and not answered yet.
    pub asked_lock: Option<SessionLock>,
    /// It has still to be sent.
    pub lock_to_send: bool,
    /// The lock for which [`SessionLock::check`] is prepared in this session.
    pub prepared_check: Option<SessionLock>,
    /// The remote xid, once the transaction has one.
    pub xid: Option<u64>,
    /// Something else than a query was sent in this transaction.
    pub modified: bool,
    /// What became of a `COMMIT PREPARED` that nobody waits for, once it has been answered.
    pub delivered: Option<bool>,
    /// The failure of the last transaction's `COMMIT`, for which nobody waited.
    pub failed_ending: Option<Rc<PgResult>>,
    /// PREPARE was skipped, because what comes before it in its segment has failed.
    pub prepare_skipped: bool,
    /// That was because the session does not hold its advisory lock any more.
    pub lock_lost: bool,
    /// The question for the xid was not answered: the transaction may have written.
    pub probe_failed: bool,
    /// A statement was sent since the question for the xid was, and the transaction is not known to have written.
    pub unasked: bool,
    /// What was sent of the transaction, as long as nothing has been answered.
    pub unanswered: Option<Unanswered>,
    /// It has been sent a second time.
    pub began_anew: bool,
    /// The `FETCH` commands that nothing else has come between.
    pub fetch_run: Option<FetchRun>,
    /// Commands to send before the next statement of this transaction.
    pub postponed: Vec<(CString, Control)>,
    /// Commands to send outside any transaction, where their failure harms nothing, or with the next statement when they
    /// become many.
    pub chores: Vec<CString>,
    /// Open cursors by number, with the depth they were declared at.
    pub cursors: HashMap<u32, u32>,
    /// Cursors that are to be opened.
    pub openings: Vec<Weak<Opening>>,
    /// Those that were opened in the segment that is being sent.
    pub opened: Vec<Rc<Opening>>,
    /// The nesting levels of those who use the connection.
    pub levels: Vec<Weak<Cell<u32>>>,
    /// The last number given to a cursor, in this transaction.
    pub last_cursor: u32,
    /// The last number given to a prepared statement, in this session.
    pub last_statement: u32,
}

/// One statement, because set-up has to be one message: settings postgres_fdw uses too, so that values
/// travel in one text form whatever the participant's defaults are, and the fingerprint. The keepalives have the
/// participant notice within half a minute that our host has died without a word: until then its sessions keep their
/// locks, and who takes over has to wait for them.
pub const SETUP: &CStr = c"SELECT s.system_identifier, pg_catalog.encode(CAST(pg_catalog.replace( \
    pg_catalog.current_database(), pg_catalog.chr(92), pg_catalog.repeat(pg_catalog.chr(92), 2)) AS bytea), 'escape'), \
    pg_catalog.pg_is_in_recovery(), pg_catalog.pg_backend_pid(), \
    pg_catalog.set_config('search_path', 'pg_catalog', false), \
    pg_catalog.set_config('timezone', 'GMT', false), \
    pg_catalog.set_config('datestyle', 'ISO', false), \
    pg_catalog.set_config('intervalstyle', 'postgres', false), \
    pg_catalog.set_config('extra_float_digits', '3', false), \
    pg_catalog.set_config('tcp_keepalives_idle', '10', false), \
    pg_catalog.set_config('tcp_keepalives_interval', '5', false), \
    pg_catalog.set_config('tcp_keepalives_count', '3', false) \
    FROM pg_catalog.pg_control_system() s";

/// Has the participant look every two seconds, while it runs a command for us, whether we are still there. Else a session
/// that waits for a lock, or works for long, does not notice that the coordinator has died: it holds its session lock,
/// nothing of that coordinator is settled meanwhile, and it may be waiting for just that. A command of its own: where the
/// platform cannot tell (Windows; before PostgreSQL 15 all but Linux) it is refused, and the session goes on.
pub const WATCH_US: &CStr = c"SET client_connection_check_interval = '2s'";

/// The questions for the transaction's xid, each with the name under which it is prepared in each session.
pub const PROBES: [(&CStr, &CStr); 2] = [
    (c"px_xid", c"SELECT pg_catalog.pg_current_xact_id_if_assigned()"),
    // A standby, where nothing but queries can run, has none to give.
    (
        c"px_xid_assigned",
        c"SELECT CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_current_xact_id_if_assigned() \
          ELSE pg_catalog.pg_current_xact_id() END",
    ),
];

/// What is executed before PREPARE, under the name under which it is prepared in each session.
pub const CONSTRAINTS: (&CStr, &CStr) = (c"px_constraints", c"SET CONSTRAINTS ALL IMMEDIATE");

/// The name of the question to ask: behind a query, whether it has given the transaction an xid; behind anything else,
/// for the xid, because what that has changed may be elsewhere.
pub fn probe_name(modified: bool) -> &'static CStr {
    PROBES[usize::from(modified)].0
}

impl SessionState {
    /// All that this transaction's statements might do, together. On a standby nothing can be done but read.
    pub fn access(&self) -> Access {
        let standby = self.fingerprint.as_ref().is_some_and(|f| f.in_recovery);
        if self.modified && !standby { Access::Modifies } else { Access::Reads }
    }

    /// Whether the transaction has an xid.
    pub fn xid_known(&self) -> Xid {
        match self.xid {
            Some(_) => Xid::Assigned,
            None if self.probe_failed || self.unasked => Xid::Unknown,
            None => Xid::None,
        }
    }

    /// Notes the answer to a command of the connection's own.
    pub fn note(&mut self, effect: Effect<PgResult>, doomed: &Cell<Option<Doom>>) {
        match effect {
            Effect::None
            | Effect::Done(Control::EndSavepoint | Control::UndoSavepoint | Control::Cleanup, _)
            | Effect::Done(Control::Ending | Control::Constraints | Control::LockCheck, _) => {}
            // Should the transaction still be open, the next one cannot begin and does nothing.
            Effect::Failed(Control::Ending, failure) => self.failed_ending = Some(failure),
            Effect::Failed(control @ (Control::Constraints | Control::LockCheck), failure) => {
                // The end of the connection says nothing of what the server still does.
                if doomed.get().is_none() && failure.error_field(b'C').is_some() {
                    self.lock_lost = control == Control::LockCheck
                        && !self.prepare_skipped
                        && is_false(&failure);
                    self.prepare_skipped = true;
                    if is_unknown_statement(&failure) {
                        doomed.set(Some(Doom::CleanupFailed));
                    }
                    if self.lock_lost {
                        // The next transaction takes it again.
                        self.session_lock = None;
                        self.asked_lock = None;
                    }
                }
            }
            // Any other tag means that it was not prepared there.
            Effect::Done(Control::Delivery, result) => {
                self.delivered = Some(result.command_tag() == c"COMMIT PREPARED");
            }
            Effect::Failed(Control::Delivery, _) => self.delivered = Some(false),
            Effect::Done(Control::Setup, result) => {
                if result.rows() == 1 {
                    self.fingerprint = Fingerprint::read(&result);
                    self.server_pid =
                        result.value(0, 3).and_then(|v| v.to_str().ok()?.parse().ok());
                }
            }
            Effect::Done(Control::SessionLock, result) => {
                if result.value(0, 0).is_some_and(|v| v.to_bytes() == b"t") {
                    self.session_lock = self.asked_lock;
                } else {
                    // Somebody there has kept it away: it is asked for again.
                    self.asked_lock = None;
                }
            }
            Effect::Done(Control::Begin, _) => {
                self.confirmed = 1;
                self.unanswered = None;
            }
            Effect::Done(Control::Savepoint(level), _) => self.confirmed = level,
            Effect::Done(Control::XidProbe, result) => {
                let xid = result.value(0, 0).and_then(|v| v.to_str().ok()?.parse().ok());
                self.xid = self.xid.or(xid);
                self.probe_failed = false;
            }
            // The statement before it failed, or the question itself: it may have written.
            Effect::Failed(Control::XidProbe, failure) => {
                self.probe_failed = true;
                // Something there has removed it from the session (`DEALLOCATE ALL` in a function).
                if is_unknown_statement(&failure) {
                    doomed.set(doomed.get().or(Some(Doom::CleanupFailed)));
                }
            }
            Effect::Failed(Control::Cleanup | Control::Begin | Control::Savepoint(_), _) => {}
            Effect::Failed(Control::UndoSavepoint, _) => doomed.set(Some(Doom::CleanupFailed)),
            Effect::Failed(Control::Setup | Control::SessionLock | Control::EndSavepoint, _) => {
                // Unless the connection has just broken.
                doomed.set(doomed.get().or(Some(Doom::CleanupFailed)));
            }
        }
    }
}

/// Whether a failure is that of [`SessionLock::check`] where the lock is not held.
fn is_false(failure: &PgResult) -> bool {
    failure.error_field(b'C').map(CStr::to_bytes) == Some(b"22012")
}

/// Whether a failure says that the session does not have a statement of the connection's own.
fn is_unknown_statement(failure: &PgResult) -> bool {
    const INVALID_SQL_STATEMENT_NAME: &[u8] = b"26000";
    let is = |field: u8, text: &[u8]| {
        let said = failure.error_field(field).map_or(&b""[..], CStr::to_bytes);
        said.windows(text.len()).any(|window| window == text)
    };
    let own = [&b"px_xid"[..], b"px_constraints", b"px_lock "];
    is(b'C', INVALID_SQL_STATEMENT_NAME) && own.iter().any(|name| is(b'M', name))
}

impl Fingerprint {
    fn read(result: &PgResult) -> Option<Self> {
        Some(Self {
            system_identifier: result.value(0, 0)?.to_str().ok()?.parse().ok()?,
            database: result.value(0, 1)?.to_owned(),
            in_recovery: result.value(0, 2)?.to_bytes() == b"t",
        })
    }
}
