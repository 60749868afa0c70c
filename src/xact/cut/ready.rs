//! Whether it is known of each server what was decided before the start of this one and is not
//! delivered there. Shared memory is empty after a start, while a transaction may be half
//! delivered.

use std::cell::RefCell;
use std::collections::HashSet;
use std::time::{Duration, Instant};

use super::Member;
use crate::pg::backend_local::BackendLocal;
use crate::pg::error::{Error, Result, SqlState, check_for_interrupts};
use crate::pg::globals::my_database;
use crate::pg::wait_event::WaitEvent;
use crate::pg::{latch, text};
use crate::shared::{entries, resolvers, seen};
use crate::store::participant_list;

/// Connections, by their numbers, whose servers have been asked since the start of this one.
static READY: BackendLocal<RefCell<Option<HashSet<u64>>>> = BackendLocal::new(RefCell::new(None));

/// Waits until every participant at the places of these members has been asked by the resolver.
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
    while let Some(unasked) = first_unasked(&unknown) {
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

/// The first server of which it is not known yet what is in doubt there.
fn first_unasked(members: &[&Member]) -> Option<String> {
    let name = |member: &Member| text::carried(&member.connection.server_name);
    // What waits for 'gxid' has entries once the resolver has read the decision table.
    if !resolvers::is_up() {
        return members.first().map(|member| name(member));
    }
    let asked = seen::asked();
    let participants = participant_list::all();
    let is_unasked = |member: &Member| {
        let here = member.connection.place(member.connection.serverid.to_u32());
        participants.iter().any(|participant| {
            let at_it = participant.serverid == member.connection.serverid
                || here.is_some_and(|here| here.is_same(&participant.place()));
            at_it && !asked.has(participant.id)
        })
    };
    members.iter().find(|member| is_unasked(member)).map(|member| name(member))
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
