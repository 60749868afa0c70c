//! What follows when everything has been answered: what is delivered, what is left, and why.

use std::collections::{HashMap, HashSet};

use pgrx::PgLogLevel;

use super::failure::Failure;
use super::settling::Settling;
use super::{Fenced, Subject, Swept};
use crate::pg::error::{Error, Result, SqlState};
use crate::pg::text;
use crate::protocol::gid::Gid;
use crate::protocol::verdict::{Others, Place, Reason, absence};
use crate::remote::Connection;
use crate::resolver::questions;
use crate::shared::entries;
use crate::shared::entry::{Entry, Status};
use crate::shared::entry_change::Why;
use crate::shared::left::{Left, Members, handed_over};
use crate::store::participant_list::ParticipantRecord;

impl Subject {
    /// Everything has been answered: what follows from it.
    pub(super) fn conclude(self, fenced: Fenced, mut settling: Settling) -> Result<Swept, Failure> {
        let connection = &fenced.0.connection;
        let participant = &self.participant;
        let resolved = settling.note_answers(connection)?;
        let statuses = match settling.verified {
            Some(ticket) => questions::read_status(connection, ticket)?,
            None => HashMap::new(),
        };
        let mut heuristic = Vec::new();
        let mut delivered = Vec::new();
        let mut gone = HashSet::new();
        if settling.place == Place::Recorded {
            for open in self.committed {
                let gid = open.gid;
                if settling.left.contains_key(&gid) {
                    continue;
                }
                if !settling.listed.contains(&gid) {
                    match statuses.get(&open.remote_xid).map(String::as_str) {
                        // Too long ago to be known: assumed delivered, as nothing else can be.
                        Some("committed") | None => {}
                        Some("in progress") => {
                            settling.leave(gid, Status::Committing, open.xid, Reason::Unlisted);
                            continue;
                        }
                        Some(other) => {
                            heuristic.push((gid.nonce, open.participant));
                            report_heuristic(connection, &gid, other)?;
                        }
                    }
                }
                gone.insert(gid);
                delivered.push((gid.nonce, open.participant));
            }
        }
        let known: HashSet<Gid> = self.left.iter().filter_map(Entry::gid).collect();
        let mut more = false;
        for entry in handed_over(&self.members) {
            let Some(gid) = entry.gid() else { continue };
            if settling.left.contains_key(&gid) {
                continue;
            }
            let reason = if settling.listed.contains(&gid) || gone.contains(&gid) {
                None
            } else if !known.contains(&gid) {
                // It may have been handed over since the list was read.
                more = true;
                continue;
            } else if entry.status == Status::Aborting {
                let others = Others { strangers: settling.strangers, ..Others::default() };
                let preparer_lives = settling.alive.contains(&entry.remote_pid);
                absence(settling.place, others, preparer_lives, self.seen.contains(&gid))
            } else {
                // Its row is not among those that were looked for: it is somebody's, or confirmed already.
                Some(Reason::Overtaken)
            };
            match reason {
                None => {
                    entries::end(&gid, Why::Gone);
                }
                Some(reason) => settling.leave(gid, entry.status, entry.xid, reason),
            }
        }
        // One that was left before, of no participant on the list, is nobody's any more once it is not listed.
        for gid in self.seen.iter().filter(|gid| !settling.left.contains_key(gid)) {
            entries::end(gid, Why::GoneUnlisted);
        }
        if settling.place != Place::Recorded {
            return Err(other_server(&fenced, participant));
        }
        let left: Vec<Left> = settling.left.into_values().collect();
        let keep =
            more || settling.strangers || !left.is_empty() || awaits_application(&self.members);
        Ok(Swept {
            members: self.members,
            server: connection.server_name.clone(),
            refusal: settling.refusal,
            strangers: settling.strangers,
            left,
            more,
            delivered,
            resolved,
            heuristic,
            moved: settling.moved,
            fenced: keep.then_some(fenced),
        })
    }
}

pub(super) fn other_server(
    Fenced(established, address): &Fenced,
    participant: &ParticipantRecord,
) -> Failure {
    let name = text::carried(&established.connection.server_name);
    let place = format!(
        "database \"{}\" of the server with system identifier {}",
        text::carried(&participant.database),
        participant.system_identifier
    );
    let error = |message: String| Error::new(SqlState::CONNECTION_FAILURE, message);
    let is_same = established.connection.fingerprint().is_some_and(|f| participant.is_at(&f));
    let error = match &participant.address {
        // Another one of the same image looks the same from inside.
        Some(known) if is_same => error(format!("server \"{name}\" is not where it was when it was used"))
            .detail(format!(
                "Transactions may be in doubt in {place} at \"{}\"; the address is now \"{}\". What is not prepared here may be there.",
                text::carried(known),
                text::carried(address)
            ))
            .hint("Point the foreign server's options back at it, so that they can be settled. If it is the same server, or has been replaced by its standby, pg_fdw_xacts_forget() gives up what cannot be told."),
        _ => error(format!("server \"{name}\" is not the one that was used before"))
            .detail(format!("Transactions may be in doubt in {place}."))
            .hint("Point the foreign server's options back at it, so that they can be settled."),
    };
    Failure { reason: Reason::OtherServer, error }
}

fn report_heuristic(connection: &Connection, gid: &Gid, status: &str) -> Result<()> {
    Error::new(
        SqlState::new(b"40000"),
        format!(
            "heuristic outcome: '{gid}' was decided to commit but is {status} on server \"{}\"",
            text::carried(&connection.server_name)
        ),
    )
    .detail("Somebody settled the prepared transaction there by hand, or the server was restored to an earlier state.")
    .hint("The other servers have committed: repair the data on this one.")
    .log(PgLogLevel::WARNING)
}

/// Whether something here waits for the application's COMMIT PREPARED or ROLLBACK PREPARED.
fn awaits_application(members: &Members) -> bool {
    let left = entries::left();
    left.iter().any(|e| e.status == Status::Prepared && members.have(e))
}
