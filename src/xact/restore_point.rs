//! Restore points of one name on this server and on others, to which all of them can be restored
//! together: after point-in-time recovery to that name, and once the resolver has run, each
//! distributed transaction is on all servers or on none.
//!
//! This server's point is made first, then those of the foreign servers, all at once. Why that is
//! enough:
//! * A transaction that is decided here before this server's point was prepared everywhere before
//!   that, so before every other point. Restored, each server has it committed or prepared, this
//!   one has its decision, and the resolver commits it. When it is delivered does not matter.
//! * A transaction that is decided later has no decision in the restored state. Where it is
//!   prepared, the resolver rolls it back; so no server may have committed it before its own point.
//!   Sessions, COMMIT PREPARED of the application's 'gxid' and the resolver all tell before they
//!   send the first COMMIT PREPARED of a transaction, which has a number from then on at the latest
//!   ([`hold`](crate::shared::hold)). A number that was given before this server's point is one of
//!   the first kind. So it is enough that none with a later one begins to be delivered before the
//!   last point is made. Sessions are held up meanwhile, and that nobody began is checked.
//! * Where something is prepared in the restored state, the resolver has to look: the participant
//!   was written down here before its PREPARE was sent. So none may be written down between the
//!   points, nor since the servers were looked up, which is checked in the same way.
//! * A transaction that has written on one server alone has no parts that could differ.
//! * 'gxid', prepared here before this server's point: so are its participants, and all of it waits
//!   for the application again. Prepared later, it has no decision.
//!
//! Not covered: a server with `two_phase_commit 'off'`, which commits before the decision.
//!
//! Recovery stops at the first restore point of a name. So a name is used once: what has failed
//! after this server's point was made is not tried again with it, and the error says so. Whatever
//! can be known before is therefore asked before.
//!
//! * [`session`]: what is asked of a foreign server, and its answers.

use std::time::{Duration, Instant};

use pgrx::pg_sys::Oid;

use crate::pg::debug::debug;
use crate::pg::error::{Error, Result, SqlState, check_for_interrupts};
use crate::pg::globals::current_user;
use crate::pg::wait_event::WaitEvent;
use crate::pg::{latch, text, wal};
use crate::protocol::restore_point::{Point, Refusal, Seen, points, position};
use crate::remote::wait::Interrupts;
use crate::shared::hold::Held;

mod session;

use session::Session;

/// How long connecting to a server, and each of its answers, may take.
const STEP: Duration = Duration::from_secs(10);

/// How long to wait for somebody else who makes restore points.
const TURN: Duration = Duration::from_secs(5);

/// What every server is asked first, this one too.
const LOOK: &str = "SELECT CAST(s.system_identifier AS pg_catalog.text), \
     CAST(pg_catalog.int8(pg_catalog.date_part('epoch', pg_catalog.pg_postmaster_start_time()) \
        OPERATOR(pg_catalog.*) 1000000) AS pg_catalog.text), \
     CAST(pg_catalog.pg_is_in_recovery() AS pg_catalog.text), \
     CAST(pg_catalog.current_setting('wal_level') OPERATOR(pg_catalog.<>) 'minimal' AS pg_catalog.text), \
     CAST(pg_catalog.has_function_privilege('pg_catalog.pg_create_restore_point(text)', 'EXECUTE') \
        AS pg_catalog.text) \
     FROM pg_catalog.pg_control_system() s";

/// Makes the point `$1` here, and tells where it ends and the file that it is in.
const CREATE: &str = "SELECT CAST(p AS pg_catalog.text), pg_catalog.pg_walfile_name(p) \
     FROM pg_catalog.pg_create_restore_point($1) p";

/// A restore point in a server's WAL.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Made {
    /// Where it ends.
    pub lsn: u64,
    /// The file that it is in, which recovery needs.
    pub wal_file: String,
}

impl Made {
    fn of([lsn, wal_file]: [String; 2]) -> Result<Self> {
        let lsn = position(&lsn).ok_or_else(|| {
            Error::new(SqlState::INTERNAL_ERROR, format!("not a position in the WAL: {lsn}"))
        })?;
        Ok(Self { lsn, wal_file })
    }
}

fn seen(
    [system_identifier, started, in_recovery, has_archivable_wal, may_create]: [String; 5],
) -> Seen {
    let is = |text: String| text == "true";
    Seen {
        system_identifier,
        started,
        in_recovery: is(in_recovery),
        has_archivable_wal: is(has_archivable_wal),
        may_create: is(may_create),
    }
}

/// Makes a restore point on this server, and on each of these as the current user; returns that of
/// this server and then theirs, in their order. `participants`: what
/// [`participants`](crate::shared::hold::participants) said before these servers were looked up.
///
/// # Errors
/// A server cannot be reached, or a point cannot be made there; 55000 if points were made that must
/// not be used; a cancel.
pub fn make(name: &str, servers: &[Oid], participants: u64) -> Result<Vec<Made>> {
    let open = |serverid: &Oid| Session::open(current_user(), *serverid);
    let sessions: Vec<Session> = servers.iter().map(open).collect::<Result<_>>()?;
    let plan = points(&look(&sessions)?).map_err(|(place, why)| {
        let server = place.checked_sub(1).map(|place| sessions[place].server());
        refused(server, why)
    })?;
    let held = begin_to_hold()?;
    let since = Instant::now();
    if !held.began_with(participants) {
        return Err(Error::new(
            SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
            "a server was used for the first time while restore points were prepared",
        )
        .hint("Try again. No restore point was made."));
    }
    check_for_interrupts()?;
    let here = Made::of(wal::ask(CREATE, Some(name))?);
    // From here on the name is used: whatever fails is told with the servers that have the point.
    let create = session::create(name);
    let is_own = |(_, plan): &(&Session, &Point)| **plan == Point::Own;
    let own: Vec<&Session> =
        sessions.iter().zip(&plan[1..]).filter(is_own).map(|(session, _)| session).collect();
    let deadline = Instant::now() + STEP;
    let asked: Vec<_> = own.iter().map(|session| session.ask(&create)).collect();
    // As the foreign servers' are on disk when they answer, this server's has to be.
    let here = here.and_then(|here| wal::flush(here.lsn).map(|()| here));
    let there: Vec<Result<Made>> = own
        .iter()
        .zip(&asked)
        .map(|(session, asked)| Made::of(session.answer(asked, deadline, Interrupts::Return)?))
        .collect();
    let has_held = held.end();
    let pause = since.elapsed();
    debug(|| {
        format!("restore point \"{name}\": no transaction began to be delivered for {pause:?}")
    });
    let failure = here.as_ref().err().or(there.iter().find_map(|made| made.as_ref().err()));
    if !has_held || failure.is_some() {
        let made = own.iter().zip(&there).filter(|(_, made)| made.is_ok());
        return Err(unusable(name, failure, made.map(|(session, _)| session.server())));
    }
    let mut made = std::iter::once(here).chain(there);
    let mut rows: Vec<Option<Made>> = Vec::with_capacity(plan.len());
    for point in &plan {
        let own = if *point == Point::Own { made.next().transpose()? } else { None };
        rows.push(own);
    }
    let of = |(place, point): (usize, &Point)| match point {
        Point::Own => rows[place].clone(),
        Point::Of(other) => rows[*other].clone(),
    };
    Ok(plan.iter().enumerate().filter_map(of).collect())
}

/// What this server and the others are.
fn look(sessions: &[Session]) -> Result<Vec<Seen>> {
    let question = session::question(LOOK);
    let asked: Vec<_> = sessions.iter().map(|session| session.ask(&question)).collect();
    let deadline = Instant::now() + STEP;
    let here = wal::ask(LOOK, None).map(seen);
    let there = sessions
        .iter()
        .zip(&asked)
        .map(|(session, asked)| session.answer(asked, deadline, Interrupts::Raise).map(seen));
    std::iter::once(here).chain(there).collect()
}

/// Has those who deliver wait, as soon as nobody else does.
fn begin_to_hold() -> Result<Held> {
    let give_up = Instant::now() + TURN;
    loop {
        if let Some(held) = Held::begin() {
            return Ok(held);
        }
        if Instant::now() >= give_up {
            return Err(Error::new(
                SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
                "another restore point is being made",
            )
            .hint("Try again."));
        }
        check_for_interrupts()?;
        latch::wait(Duration::from_millis(1), WaitEvent::Settle);
    }
}

fn refused(server: Option<&str>, why: Refusal) -> Error {
    let server = server.map_or_else(|| "this server".to_owned(), |s| format!("server \"{s}\""));
    let (code, why, hint) = match why {
        Refusal::InRecovery => (
            SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
            "It is in recovery.",
            "A standby has the restore point of its primary, if that is one of the foreign servers too.",
        ),
        Refusal::MinimalWal => (
            SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
            "Its \"wal_level\" is \"minimal\".",
            "Its WAL has to be archived, see the chapter on backups in PostgreSQL's documentation.",
        ),
        Refusal::NotAllowed => (
            SqlState::new(b"42501"),
            "The role there may not execute pg_create_restore_point().",
            "Grant EXECUTE on it to that role.",
        ),
    };
    Error::new(code, format!("cannot make a restore point on {server}")).detail(why).hint(hint)
}

/// Points of that name were made, here and on those servers, that must not be used.
fn unusable<'a>(
    name: &str,
    failure: Option<&Error>,
    servers: impl Iterator<Item = &'a str>,
) -> Error {
    let servers: Vec<String> = servers.map(|server| format!("\"{server}\"")).collect();
    let made = match servers.as_slice() {
        [] => "This server has a restore point of that name".to_owned(),
        [one] => format!("This server and server {one} have a restore point of that name"),
        several => {
            format!(
                "This server and servers {} have a restore point of that name",
                several.join(", ")
            )
        }
    };
    let why = match failure {
        Some(failure) => text::carried(&crate::pg::error::c_string(failure.summary())),
        None => "Before the last of the points was made, a transaction began to be delivered, or a server was used for the first time".to_owned(),
    };
    Error::new(
        SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
        format!("restore point \"{name}\" cannot be used"),
    )
    .detail(format!("{why}. {made}."))
    .hint("Do not recover to it. Make another one, under another name: recovery stops at the first of a name.")
}
