//! Delivering the outcome to participants: the same for COMMIT, for ROLLBACK, and for COMMIT
//! PREPARED and ROLLBACK PREPARED of 'gxid'. Runs where nothing may raise.

use std::time::{Duration, Instant};

use pgrx::PgLogLevel;

use crate::guc;
use crate::pg::error::{Error, Result, SqlState};
use crate::pg::text;
use crate::pg::wait_event::WaitEvent;
use crate::protocol::gid::Gid;
use crate::protocol::participant::{Event, Outcome};
use crate::remote::round::{Reply, Round};
use crate::remote::wait::Interrupts;
use crate::shared::entries;
use crate::xact::branch::Member;
use crate::xact::inject;

/// Delivers an outcome to those whose connection is there, and moves those that confirm it. The
/// others stay as they are, for [`leave_unconfirmed`].
///
/// # Errors
/// A state does not allow the step, which is a bug.
pub fn deliver<M: Member>(members: &[&M], outcome: Outcome, point: &str) -> Result<()> {
    let connections = members.iter().filter_map(|member| member.connection());
    let mut round = Round::over(connections.map(|connection| &***connection));
    for member in members {
        send(&mut round, *member, outcome);
    }
    inject::point(point);
    gather(round, guc::commit_timeout(), WaitEvent::Settle, |member, reply| {
        let connection = member.connection();
        Ok(connection.is_some_and(|connection| reply.heard(connection).settles()))
    })
}

/// Sends `COMMIT PREPARED` or `ROLLBACK PREPARED` to one member of a round.
pub fn send<'a, M: Member>(round: &mut Round<'a, &'a M>, member: &'a M, outcome: Outcome) {
    let (Some(connection), Some(prepared)) = (member.connection(), member.prepared()) else {
        return;
    };
    let command = prepared.settling(outcome);
    if round.send(member, connection, command) {
        member.log_step(&prepared.gid, format_args!("sent {}", command.tag.to_string_lossy()));
    }
}

/// Waits for the answers, and moves those members whose reply says that the outcome is there.
///
/// # Errors
/// Those of `is_confirmed`; a state does not allow the step, which is a bug.
pub fn gather<'a, M: Member>(
    mut round: Round<'a, &'a M>,
    timeout: Duration,
    event: WaitEvent,
    is_confirmed: impl Fn(&M, &Reply) -> Result<bool>,
) -> Result<()> {
    let deadline = Instant::now() + timeout;
    round.wait(deadline, Interrupts::Return, event, |member, reply| {
        if is_confirmed(member, reply)? { member.apply(Event::Confirmed) } else { Ok(()) }
    })?;
    Ok(())
}

/// Leaves to the resolver those that have not confirmed their outcome, and tells at `level`.
///
/// # Errors
/// A state does not allow the step, which is a bug; the others are left all the same.
pub fn leave_unconfirmed<'a, M: Member + 'a>(
    members: impl IntoIterator<Item = &'a M>,
    level: PgLogLevel,
) -> Result<()> {
    let mut result = Ok(());
    for member in members {
        let Some(outcome) = member.state().undelivered() else { continue };
        result = result.and(member.apply(Event::Unconfirmed));
        if let Some(prepared) = member.prepared() {
            // That this fails, for example in converting the text, changes nothing.
            let _ = unconfirmed(&member.server(), &prepared.gid, outcome).log(level);
        }
    }
    result
}

/// Moves every member by the decision to commit, and their entries together. `is_delivered`: it
/// will be delivered now.
///
/// # Errors
/// A state does not allow it, which is a bug; the others are moved all the same.
pub fn decide<'a, M: Member + 'a>(
    members: impl IntoIterator<Item = &'a M>,
    is_delivered: bool,
) -> Result<()> {
    let mut result = Ok(());
    let mut changes = Vec::new();
    for member in members {
        match member.step(Event::DecidedCommit) {
            Ok(change) => changes.extend(change),
            Err(error) => result = result.and(Err(error)),
        }
    }
    if !changes.is_empty() {
        entries::decide(&changes, is_delivered);
    }
    result
}

/// Moves every member by the same event.
///
/// # Errors
/// A state does not allow it, which is a bug; the others are moved all the same.
pub fn apply_to_all<'a, M: Member + 'a>(
    members: impl IntoIterator<Item = &'a M>,
    event: Event,
) -> Result<()> {
    let mut result = Ok(());
    for member in members {
        result = result.and(member.apply(event));
    }
    result
}

/// `server` has not confirmed that `gid` was settled as the decision says.
fn unconfirmed(server: &str, gid: &Gid, outcome: Outcome) -> Error {
    let (command, outcome) = match outcome {
        Outcome::Commit => ("COMMIT PREPARED", "committed"),
        Outcome::Abort => ("ROLLBACK PREPARED", "rolled back"),
    };
    let server = text::in_ascii(server);
    Error::new(
        SqlState::CONNECTION_FAILURE,
        format!("server \"{server}\" has not confirmed {command} '{gid}'"),
    )
    .detail(format!("The transaction is {outcome}."))
    .hint("The resolver delivers it as soon as the server can be reached.")
}
