//! What has to hold: the promises to users, and the invariants of the protocol.

use std::hash::Hash;

use ahash::{AHashSet, RandomState};
use stateright::Property;

use crate::check::Checked;
use crate::protocol::participant::{Outcome, State};
use crate::steps::Action;
use crate::world::{At, Command, Row, Stage, World, Xact};

/// The promise or invariant with this name.
type Named = (&'static str, fn(&Checked, &World) -> bool);

const SETTLED: &str = "everything is settled in the end";

/// What users are promised.
pub const PROMISES: [Named; 5] = [
    ("all or nothing", all_or_nothing),
    ("an outcome told never changes", told_is_true),
    (SETTLED, settles),
    ("no stranger's transaction is touched", |model, world| {
        model.setting.all().all(|i| world.shards[i].strangers)
    }),
    ("no false alarm", |_, world| !world.heuristic),
];

/// The invariants of docs/src/protocol.md.
pub const INVARIANTS: [Named; 8] = [
    ("1. the row is there before any PREPARE", row_before_prepare),
    ("1. the row is kept until all have confirmed", row_until_confirmed),
    ("2. COMMIT PREPARED only when decided and replicated", commits_decided),
    ("3. ROLLBACK PREPARED only of what has aborted", rolls_back_aborted),
    ("3. the resolver settles under the fence", under_the_fence),
    ("4. who counts as prepared is prepared", prepared_is_prepared),
    ("5. nothing prepared is forgotten", nothing_is_forgotten),
    ("5. no event is impossible", |_, world| !world.illegal),
];

impl Checked {
    /// Everything that is checked in this run.
    pub(crate) fn promises(&self) -> Vec<Property<Self>> {
        let invariants = if self.promises_only { &[][..] } else { &INVARIANTS };
        PROMISES
            .iter()
            .chain(invariants)
            // Two coordinators that both want the fence may wait for each other.
            .filter(|(name, _)| !self.setting.copy || *name != SETTLED)
            .map(|(name, holds)| Property::always(name, *holds))
            .chain([
                Property::<Self>::sometimes("it commits", |model, world| {
                    model.setting.writers().all(|i| world.shards[i].xact == Xact::Committed)
                }),
                Property::<Self>::sometimes("it aborts", |model, world| {
                    model.setting.writers().all(|i| world.shards[i].xact == Xact::Aborted)
                }),
            ])
            .collect()
    }

    fn any(&self, world: &World, xact: Xact) -> bool {
        self.setting.writers().any(|i| world.shards[i].xact == xact)
    }
}

fn all_or_nothing(model: &Checked, world: &World) -> bool {
    let (committed, aborted) = (model.any(world, Xact::Committed), model.any(world, Xact::Aborted));
    let agree = match world.host.row.outcome() {
        Some(Outcome::Commit) => !aborted,
        Some(Outcome::Abort) => !committed,
        None => true,
    };
    agree && !(committed && aborted)
}

fn told_is_true(model: &Checked, world: &World) -> bool {
    let undone = match world.told {
        Some(Outcome::Commit) => Xact::Aborted,
        Some(Outcome::Abort) => Xact::Committed,
        None => return true,
    };
    let reversed = world.host.row.outcome().is_some_and(|outcome| Some(outcome) != world.told);
    !world.contradicted && !reversed && !model.any(world, undone)
}

/// Whether nothing is left to do.
fn is_settled(model: &Checked, world: &World) -> bool {
    let ends = [Xact::Committed, Xact::Aborted];
    let host = &world.host;
    let decision_kept = host.row == Row::Committed && !host.forgotten.contains(&true);
    let sees_to = |i: usize| ends.contains(&world.shards[i].xact) && host.entries[i].is_none();
    model.setting.writers().all(sees_to)
        && host.session.is_none()
        && !decision_kept
        && host.row != Row::Pending
        && !host.open.contains(&true)
}

/// A number that stands for something.
pub(crate) fn fingerprint<T: Hash>(it: &T) -> u64 {
    RandomState::with_seeds(1, 2, 3, 4).hash_one(it)
}

/// Whether everything can still be settled by steps that are no faults. In a finite model that is
/// what fairness comes to: what stays possible for ever happens.
fn settles(model: &Checked, world: &World) -> bool {
    if model.settles.lock().expect("not poisoned").contains(&fingerprint(world)) {
        return true;
    }
    let steps = |world: &World| {
        let mut actions = Vec::new();
        model.candidates(world, &mut actions);
        actions.retain(|action: &Action| !action.is_fault());
        actions.reverse();
        actions
    };
    let mut seen = AHashSet::from([fingerprint(world)]);
    let mut path = vec![(*world, steps(world))];
    while let Some((world, actions)) = path.last_mut() {
        if is_settled(model, world) {
            break;
        }
        let Some(action) = actions.pop() else {
            path.pop();
            continue;
        };
        let mut next = *world;
        if !model.step(&mut next, action) || !seen.insert(fingerprint(&next)) {
            continue;
        }
        let mut known = model.settles.lock().expect("not poisoned");
        if known.contains(&fingerprint(&next)) {
            known.extend(path.iter().map(|(world, _)| fingerprint(world)));
            return true;
        }
        drop(known);
        let actions = steps(&next);
        path.push((next, actions));
    }
    let known = path.iter().map(|(world, _)| fingerprint(world));
    model.settles.lock().expect("not poisoned").extend(known);
    !path.is_empty()
}

fn row_before_prepare(model: &Checked, world: &World) -> bool {
    model.setting.writers().all(|i| {
        let shard = &world.shards[i];
        let is_sent = shard.worker.is_some_and(|process| process.queue.has(Command::Prepare));
        world.host.row != Row::NotYet || !(is_sent || shard.xact == Xact::Prepared)
    })
}

fn row_until_confirmed(model: &Checked, world: &World) -> bool {
    world.host.row != Row::Deleted
        || model.setting.writers().all(|i| world.shards[i].xact == Xact::Committed)
}

/// Whether a command is on its way to a participant.
fn is_under_way(world: &World, i: usize, command: Command) -> bool {
    let shard = &world.shards[i];
    let mut processes = [shard.worker, shard.settler].into_iter().flatten();
    processes.any(|process| process.queue.has(command))
        || shard.fence.is_some_and(|fence| fence.late == Some(command))
        || world.host.work[i].sweep.is_some_and(|s| s.sent == Some(command) && s.heard.is_none())
}

fn commits_decided(model: &Checked, world: &World) -> bool {
    let is_decided = [world.host.row, world.host.row_on_standby]
        .iter()
        .all(|row| row.outcome() == Some(Outcome::Commit));
    is_decided || model.setting.writers().all(|i| !is_under_way(world, i, Command::CommitPrepared))
}

fn rolls_back_aborted(model: &Checked, world: &World) -> bool {
    world.host.row.outcome() == Some(Outcome::Abort)
        || model.setting.writers().all(|i| !is_under_way(world, i, Command::RollbackPrepared))
}

fn under_the_fence(model: &Checked, world: &World) -> bool {
    model.setting.writers().all(|i| {
        let sweep = world.host.work[i].sweep.filter(|s| s.at == At::Settling && s.sent.is_some());
        // Without the connection nothing is executed.
        let fence = world.shards[i].fence.filter(|fence| fence.client);
        sweep.is_none() || fence.is_none_or(|f| f.incarnation == world.host.incarnation)
    })
}

fn prepared_is_prepared(model: &Checked, world: &World) -> bool {
    let Some(session) = world.host.session.filter(|session| !session.settles) else {
        return true;
    };
    model
        .setting
        .writers()
        .all(|i| session.states[i] != State::Prepared || world.shards[i].xact == Xact::Prepared)
}

/// Whatever is prepared, somebody will see to it.
fn nothing_is_forgotten(model: &Checked, world: &World) -> bool {
    let host = &world.host;
    let is_owner = host.session.is_some_and(|session| session.stage != Stage::Working);
    let to_deliver = host.row == Row::Pending || (host.row == Row::Committed && !host.confirmed);
    model.setting.writers().all(|i| {
        world.shards[i].xact != Xact::Prepared
            || is_owner
            || to_deliver
            || host.entries[i].is_some()
            || host.work[i].due
            || host.work[i].sweep.is_some()
            || host.forgotten[i]
    })
}
