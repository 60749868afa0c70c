//! Whether it is known of each server what was decided before the start of this one and is not
//! delivered there. Shared memory is empty after a start, while a transaction may be half
//! delivered.

use std::cell::RefCell;
use std::collections::HashSet;
use std::time::{Duration, Instant};

use crate::pg::backend_local::BackendLocal;
use crate::pg::error::{Error, Result, SqlState, check_for_interrupts};
use crate::pg::globals::my_database;
use crate::pg::wait_event::WaitEvent;
use crate::pg::{latch, text};
use crate::protocol::place::Place;
use crate::protocol::verdict::Decision;
use crate::shared::{entries, resolvers, seen};
use crate::store::decisions;
use crate::store::{forgotten, participant_list};
use crate::xact::unit::Member;

/// Connections, by their numbers, whose servers have been asked since the start of this one.
static READY: BackendLocal<RefCell<Option<HashSet<u64>>>> = BackendLocal::new(RefCell::new(None));

/// Waits until every participant at the places of these members that may owe something has been
/// asked by the resolver.
/// What it has found and could not settle has an entry since then. Snapshots from before that have
/// to be taken again, which [`order::known`](crate::shared::order::known) tells.
///
/// # Errors
/// 55000 if that is not so by the deadline, or if there was no room for such an entry; a cancel.
pub(super) fn wait(members: &[Member], deadline: Instant) -> Result<()> {
    if entries::are_lacking() {
        return Err(lacking());
    }
    let is_known = |member: &&Member| {
        let number = member.connection.number();
        READY.get().borrow_mut().get_or_insert_default().contains(&number)
    };
    let unknown: Vec<&Member> = members.iter().filter(|member| !is_known(member)).collect();
    if unknown.is_empty() {
        return Ok(());
    }
    let database = my_database();
    let mut owing = None;
    while let Some(unasked) = first_unasked(&unknown, &mut owing) {
        if Instant::now() >= deadline {
            return Err(not_asked(&unasked));
        }
        resolvers::wake(database);
        check_for_interrupts()?;
        latch::wait(Duration::from_millis(10), WaitEvent::Resolver);
    }
    let mut ready = READY.get().borrow_mut();
    ready.get_or_insert_default().extend(unknown.iter().map(|m| m.connection.number()));
    Ok(())
}

/// The first server of which it is not known yet what is in doubt there. `owing`: the participants
/// that [`may_owe`] has found.
fn first_unasked(members: &[&Member], owing: &mut Option<HashSet<i32>>) -> Option<String> {
    let name = |member: &Member| text::carried(&member.connection.server_name);
    // What waits for 'gxid' has entries once the resolver has read the decision table.
    if !resolvers::is_up() {
        return members.first().map(|member| name(member));
    }
    let asked = seen::asked();
    let mut participants = participant_list::all();
    participants.retain(|participant| !asked.has(participant.id));
    if participants.is_empty() {
        return None;
    }
    // What was decided before the start becomes less and less.
    let owing = owing.get_or_insert_with(|| may_owe(&asked));
    participants.retain(|participant| owing.contains(&participant.id));
    let is_unasked = |member: &Member| {
        let here = member.connection.place(member.connection.serverid.to_u32());
        // Not where the foreign server led before it was moved: nothing is read there.
        let is_here = |place: Place| here.is_some_and(|here| here.is_same(&place));
        participants.iter().any(|participant| is_here(participant.place()))
    };
    members.iter().find(|member| is_unasked(member)).map(|member| name(member))
}

/// The participants of what was committed before the start, and was not confirmed by all of them or
/// not long ago. Nothing of that can be left on the others, which may not even be asked: their user
/// mappings may be gone.
fn may_owe(asked: &seen::Asked) -> HashSet<i32> {
    let forgotten = forgotten::all();
    let mut owing = HashSet::new();
    decisions::for_each(|row| {
        if row.decision == Decision::Committed && asked.is_older(row.xid, row.is_frozen) {
            let ids = row.participants.into_iter().map(|(id, _)| id);
            owing.extend(ids.filter(|id| !forgotten.contains(&(row.nonce, *id))));
        }
    });
    owing
}

fn not_asked(server: &str) -> Error {
    Error::new(
        SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
        "could not take one snapshot of several foreign servers: it is not known what is in doubt there",
    )
    .detail(format!("The resolver has not asked server \"{server}\" since this server was started."))
    .hint("See the view pg_stat_fdw_xacts for the reason. With \"pg_fdw_xacts.consistent_reads\" set to off, servers are read as they are.")
}

fn lacking() -> Error {
    Error::new(
        SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
        "could not take one snapshot of several foreign servers: not all prepared transactions are tracked",
    )
    .hint("Raise \"pg_fdw_xacts.max_foreign_xacts\" and restart the server.")
}
