//! What each session is set up with: settings, the statements that the connection executes itself,
//! and the question which server this is.

use std::ffi::CStr;

use super::Connection;
use super::state::State;
use super::wire::Wire;
use crate::libpq::PgResult;
use crate::pg::globals::my_pid;
use crate::protocol::fingerprint::Fingerprint;
use crate::protocol::pipeline::Control;

/// One statement, because set-up has to be one message. The settings are those of postgres_fdw, so
/// that values travel in one text form whatever the participant's defaults are. With the keepalives
/// the participant notices within half a minute that our host has died without a word. Until then
/// its sessions keep their locks, and whoever takes over has to wait for them.
pub(super) const SETUP: &CStr = c"SELECT s.system_identifier, pg_catalog.encode(CAST(pg_catalog.replace( \
    pg_catalog.current_database(), pg_catalog.chr(92), pg_catalog.repeat(pg_catalog.chr(92), 2)) AS bytea), 'escape'), \
    pg_catalog.pg_is_in_recovery(), pg_catalog.pg_backend_pid(), \
    CAST(EXTRACT(epoch FROM pg_catalog.pg_postmaster_start_time()) OPERATOR(pg_catalog.*) 1000000 AS bigint), \
    pg_catalog.set_config('search_path', 'pg_catalog', false), \
    pg_catalog.set_config('timezone', 'GMT', false), \
    pg_catalog.set_config('datestyle', 'ISO', false), \
    pg_catalog.set_config('intervalstyle', 'postgres', false), \
    pg_catalog.set_config('extra_float_digits', '3', false), \
    pg_catalog.set_config('tcp_keepalives_idle', '10', false), \
    pg_catalog.set_config('tcp_keepalives_interval', '5', false), \
    pg_catalog.set_config('tcp_keepalives_count', '3', false) \
    FROM pg_catalog.pg_control_system() s";

/// While the participant runs a command for us, it checks every two seconds whether we are still
/// there. Otherwise a session that waits for a lock, or works for long, does not notice that the
/// coordinator has died. It keeps its session lock, so nothing of that coordinator is settled
/// meanwhile, and it may be waiting for just that. It is a command of its own because some
/// platforms refuse it (Windows; before PostgreSQL 15 all but Linux), and the session goes on
/// without.
pub(super) const WATCH_US: &CStr = c"SET client_connection_check_interval = '2s'";

/// The questions for the transaction's xid, each with the name under which it is prepared in each
/// session.
pub(super) const PROBES: [(&CStr, &CStr); 2] = [
    (c"px_xid", c"SELECT pg_catalog.pg_current_xact_id_if_assigned()"),
    // A standby, where only queries can run, has none to give.
    (
        c"px_xid_assigned",
        c"SELECT CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_current_xact_id_if_assigned() \
          ELSE pg_catalog.pg_current_xact_id() END",
    ),
];

/// What is executed before PREPARE, under the name under which it is prepared in each session.
pub(super) const CONSTRAINTS: (&CStr, &CStr) =
    (c"px_constraints", c"SET CONSTRAINTS ALL IMMEDIATE");

/// What nearly every transaction consists of beside its statements, as it is sent, each under the
/// name under which it is prepared in each session: to parse one takes the server as long as a
/// third of a statement. They depend on no table, so that they never get out of date.
const USUAL: [(&CStr, &CStr); 4] = [
    (c"px_begin", c"START TRANSACTION ISOLATION LEVEL READ COMMITTED"),
    (c"px_begin_repeatable", c"START TRANSACTION ISOLATION LEVEL REPEATABLE READ"),
    (c"px_fetch", c"FETCH 100 FROM c1"),
    (c"px_commit", c"COMMIT"),
];

/// The name under which a command is prepared, if it is.
pub(super) fn prepared_name(command: &CStr) -> Option<&'static CStr> {
    USUAL.iter().find(|(_, usual)| *usual == command).map(|(name, _)| *name)
}

/// The name of the question for the xid. A query is asked whether it has given the transaction one.
/// Anything else has it assigned, because what a statement has changed may be on yet another
/// server.
pub(super) fn probe_name(modified: bool) -> &'static CStr {
    PROBES[usize::from(modified)].0
}

impl Connection {
    /// Session set-up, the session's lock, its timeout, and what has waited for the end of a
    /// transaction, each in a segment of its own.
    pub(super) fn queue_preamble(&self, inner: &mut State) -> Option<()> {
        let conn = &self.conn;
        if !inner.session.is_set_up {
            inner.session.is_set_up = true;
            conn.send_query(SETUP, &[]).then_some(())?;
            inner.fifo.control(Control::Setup);
            for (name, statement) in PROBES.into_iter().chain([CONSTRAINTS]).chain(USUAL) {
                conn.send_prepare(name, statement).then_some(())?;
                inner.fifo.control(Control::Setup);
            }
            conn.has_usual_commands();
            conn.send_sync().then_some(())?;
            inner.fifo.sync();
            inner.session.after_transaction.push(WATCH_US.to_owned());
        }
        if let Some(lock) = inner.session.lock.ask() {
            conn.send_query(&lock.take(my_pid()), &[]).then_some(())?;
            inner.fifo.control(Control::SessionLock);
            if inner.session.prepared_check != Some(lock) {
                inner.session.prepared_check = Some(lock);
                conn.send_prepare(&lock.check_name(), &lock.check()).then_some(())?;
                inner.fifo.control(Control::Setup);
            }
            conn.send_sync().then_some(())?;
            inner.fifo.sync();
        }
        Self::queue_idle_timeout_again(conn, inner)?;
        if inner.transaction.depth == 0 && !inner.session.after_transaction.is_empty() {
            Self::queue_after_transaction(conn, inner)?;
            conn.send_sync().then_some(())?;
            inner.fifo.sync();
        }
        Some(())
    }

    pub(super) fn queue_after_transaction(conn: &Wire, inner: &mut State) -> Option<()> {
        for command in std::mem::take(&mut inner.session.after_transaction) {
            conn.send_query(&command, &[]).then_some(())?;
            inner.fifo.control(Control::Cleanup);
        }
        Some(())
    }
}

/// Whether a failure says that the session does not have a statement of the connection's own.
pub(super) fn is_unknown_statement(failure: &PgResult) -> bool {
    const INVALID_SQL_STATEMENT_NAME: &[u8] = b"26000";
    let is = |field: u8, text: &[u8]| {
        let value = failure.error_field(field).map_or(&b""[..], CStr::to_bytes);
        value.windows(text.len()).any(|window| window == text)
    };
    let own = [&b"px_xid"[..], b"px_constraints", b"px_lock ", b"px_snapshot"];
    let usual = USUAL.iter().map(|(name, _)| name.to_bytes());
    is(b'C', INVALID_SQL_STATEMENT_NAME) && own.into_iter().chain(usual).any(|name| is(b'M', name))
}

/// Which server has answered [`SETUP`].
pub(super) fn fingerprint(result: &PgResult) -> Option<Fingerprint> {
    Some(Fingerprint {
        system_identifier: result.value(0, 0)?.to_str().ok()?.parse().ok()?,
        database: result.value(0, 1)?.to_owned(),
        in_recovery: result.value(0, 2)?.to_bytes() == b"t",
    })
}

/// When the server that has answered [`SETUP`] was started, in microseconds since 1970.
pub(super) fn started(result: &PgResult) -> Option<i64> {
    result.value(0, 4)?.to_str().ok()?.parse().ok()
}

/// Which server process has answered [`SETUP`].
pub(super) fn server_pid(result: &PgResult) -> Option<i32> {
    result.value(0, 3)?.to_str().ok()?.parse().ok()
}
