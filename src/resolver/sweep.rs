//! Settling one participant: everything prepared there that is ours.
//!
//! The order of the observations closes the races:
//! 1. the decision rows, for what may be concluded from a gid that is *not* listed;
//! 2. the server's fingerprint, and whether it is in recovery;
//! 3. which sessions that may still prepare are alive;
//! 4. the list of prepared transactions of our identity;
//! 5. the decision rows again, for what is listed. A row is inserted before its PREPARE is sent, so a
//!    listed gid without a row has aborted.

use std::collections::HashMap;
use std::ffi::CStr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use pgrx::{PgLogLevel, pg_sys};

use crate::libpq::PgResult;
use crate::log::decisions::{self, Row};
use crate::log::entries;
use crate::log::registered::Registered;
use crate::log::shmem::{Entry, Status};
use crate::pg::error::{Error, Result, SqlState, c_string};
use crate::pg::transaction;
use crate::protocol::gid::{Gid, Identity, Nonce};
use crate::protocol::verdict::{Decision, Place, Verdict, absence_is_final, settle};
use crate::remote::Connection;
use crate::remote::connect::connect;
use crate::remote::options::{Mapping, Server};
use crate::remote::report;
use crate::remote::wait::Patience;
use crate::resolver::worker;
use crate::xact::Prepared;

/// How long connecting, and then each step of the conversation, may take.
const STEP: Duration = Duration::from_secs(10);

/// What a sweep found.
pub struct Swept {
    /// Something is left that cannot be settled yet: sweep again soon.
    pub again: bool,
    /// Committed transactions of which this participant has nothing left, with all their participants.
    pub delivered: Vec<(Nonce, Vec<i32>)>,
}

/// Settles what is prepared on a participant.
///
/// # Errors
/// It cannot be reached, is not the recorded server, or only reads.
pub fn sweep(identity: Identity, participant: &Registered) -> Result<Swept> {
    let left = handed_over(participant);
    let before = transaction::run(|| Ok(decisions::all()))?;
    let connection = transaction::run(|| {
        let mapping =
            Mapping::find(participant.userid, participant.serverid).ok_or_else(|| {
                Error::new(
                    SqlState::UNDEFINED_OBJECT,
                    format!(
                        "transactions may be in doubt on foreign server {}, but the server or its user mapping for user {} has gone",
                        participant.serverid, participant.userid
                    ),
                )
            })?;
        let server = Server::read(participant.serverid);
        connect(&server, &mapping, Some(Instant::now() + STEP))
    })?;
    let connection = &connection.connection;
    let pids: Vec<String> =
        left.iter().filter(|e| e.remote_pid != 0).map(|e| e.remote_pid.to_string()).collect();
    let alive = question(
        connection,
        &format!(
            "SELECT pid FROM pg_catalog.pg_stat_activity WHERE pid = ANY ('{{{}}}'::int[])",
            pids.join(",")
        ),
    )?;
    let list = question(
        connection,
        &format!(
            "SELECT gid FROM pg_catalog.pg_prepared_xacts \
             WHERE pg_catalog.starts_with(gid, '{}') AND database = pg_catalog.current_database()",
            identity.gid_prefix()
        ),
    )?;
    let fingerprint = connection.fingerprint().ok_or_else(|| connection.doom_error())?;
    let place = match (fingerprint.in_recovery, participant.is_at(&fingerprint)) {
        (true, _) => Place::InRecovery,
        (false, true) => Place::Recorded,
        (false, false) => Place::Other,
    };
    if place == Place::InRecovery {
        return Err(Error::new(
            SqlState::READ_ONLY_SQL_TRANSACTION,
            format!("server \"{}\" is a standby", connection.server_name.to_string_lossy()),
        ));
    }
    let listed: Vec<Gid> = column(&list)
        .filter_map(|text| Gid::parse(text.to_str().ok()?))
        .filter(|gid| gid.identity == identity)
        .collect();
    let rows: HashMap<Nonce, Row> = transaction::run(|| Ok(decisions::all()))?
        .into_iter()
        .map(|row| (row.nonce, row))
        .collect();
    let mut unsettled = settle_listed(connection, place, &listed, &rows)?;
    let alive: Vec<i32> =
        column(&alive).filter_map(|pid| pid.to_str().ok()?.parse().ok()).collect();

    // What is not listed any more, or has just been settled, is done.
    let mut again = false;
    for entry in &left {
        let Some(gid) = entry.gid() else { continue };
        // For a commit the PREPARE was confirmed: no session can still be at work on it.
        let preparer_may_live =
            entry.status == Status::Aborting && alive.contains(&entry.remote_pid);
        let gone = listed.contains(&gid) || absence_is_final(place, preparer_may_live);
        if gone && !unsettled.contains(&gid) {
            entries::remove(&gid);
        } else {
            again = true;
        }
    }
    if place != Place::Recorded {
        return Err(Error::new(
            SqlState::CONNECTION_FAILURE,
            format!(
                "server \"{}\" is not the one that was used before",
                connection.server_name.to_string_lossy()
            ),
        )
        .detail(format!(
            "Transactions may be in doubt in database \"{}\" of the server with system identifier {}.",
            participant.database, participant.system_identifier
        ))
        .hint("Point the foreign server's options back at it, so that they can be settled."));
    }
    let delivered = before
        .into_iter()
        .filter(|row| row.decision == Decision::Committed)
        .filter(|row| row.participants.iter().any(|(id, _)| *id == participant.id))
        .filter(|row| !unsettled.contains(&worker::gid(identity, row.nonce, participant)))
        .map(|row| (row.nonce, row.participants.iter().map(|(id, _)| *id).collect()))
        .collect();
    unsettled.retain(|gid| rows.get(&gid.nonce).is_none_or(|r| r.decision != Decision::InProgress));
    Ok(Swept { again: again || !unsettled.is_empty(), delivered })
}

/// The entries that backends have left here.
fn handed_over(participant: &Registered) -> Vec<Entry> {
    // SAFETY: a plain global of this process.
    let dbid = unsafe { pg_sys::MyDatabaseId };
    entries::all()
        .into_iter()
        .filter(|e| {
            e.dbid == dbid
                && e.owner == 0
                && (e.serverid, e.userid) == (participant.serverid, participant.userid)
                && matches!(e.status, Status::Committing | Status::Aborting)
        })
        .collect()
}

/// Delivers the verdicts on what is listed; returns what is left.
fn settle_listed(
    connection: &Connection,
    place: Place,
    listed: &[Gid],
    rows: &HashMap<Nonce, Row>,
) -> Result<Vec<Gid>> {
    let owned: Vec<Gid> =
        entries::all().iter().filter(|e| e.owner != 0).filter_map(Entry::gid).collect();
    let mut left = Vec::new();
    let mut sent = Vec::new();
    for gid in listed {
        let decision = rows.get(&gid.nonce).map_or(Decision::Absent, |row| row.decision);
        let verdict = settle(place, owned.contains(gid), decision);
        let settle = Prepared::new(*gid);
        let (command, tag) = match verdict {
            Verdict::Leave => {
                left.push(*gid);
                continue;
            }
            Verdict::Commit => (settle.commit, c"COMMIT PREPARED"),
            Verdict::Rollback => (settle.rollback, c"ROLLBACK PREPARED"),
        };
        let ticket = connection.send_alone(&command).ok_or_else(|| connection.doom_error())?;
        sent.push((*gid, tag, ticket));
    }
    finish(connection)?;
    for (gid, tag, ticket) in sent {
        match connection.take(ticket) {
            Some(Ok(Ok(result))) if result.command_tag() == tag => {
                Error::new(
                    SqlState(0),
                    format!(
                        "resolved {} '{gid}' on server \"{}\"",
                        tag.to_string_lossy(),
                        connection.server_name.to_string_lossy()
                    ),
                )
                .log(PgLogLevel::LOG)?;
            }
            // Somebody else settled it between the list and now.
            Some(Ok(Err(failure)))
                if SqlState::parse(failure.error_field(b'C')) == SqlState::UNDEFINED_OBJECT => {}
            Some(Ok(Err(failure))) => {
                connection.error_of(&failure, None).log(PgLogLevel::LOG)?;
                left.push(gid);
            }
            _ => left.push(gid),
        }
    }
    Ok(left)
}

/// Waits until everything asked has been answered.
fn finish(connection: &Connection) -> Result<()> {
    if connection.drain(Instant::now() + STEP, Patience::Interruptible)? {
        return Ok(());
    }
    Err(if connection.is_doomed() {
        connection.doom_error()
    } else {
        report::lost(c"the server did not answer in time")
    })
}

fn question(connection: &Connection, sql: &str) -> Result<Rc<PgResult>> {
    let sql = c_string(sql);
    let ticket = connection.send_alone(&sql).ok_or_else(|| connection.doom_error())?;
    finish(connection)?;
    connection.answer(ticket, Some(&sql))
}

fn column(result: &PgResult) -> impl Iterator<Item = &CStr> {
    (0..result.rows()).filter_map(|row| result.value(row, 0))
}
