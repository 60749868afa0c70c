//! The state of the model: a coordinator, perhaps a copy of it, and its participants.

use crate::protocol::answers::Heard;
use crate::protocol::participant::{Outcome, State};
use crate::protocol::shown::{Shown, Status};
use crate::protocol::verdict::{Decision, Place, Reason};

/// The most participants that there can be.
pub const MOST: usize = 3;

/// Something per participant; those beyond the number of the setting stay as they are.
pub type Each<T> = [T; MOST];

/// Everything.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct World {
    /// What may still go wrong.
    pub faults: Faults,
    /// The coordinator; after a fail-over, its successor.
    pub host: Host,
    /// A physical copy of the coordinator.
    pub copy: Option<Host>,
    /// The participants' servers.
    pub shards: Each<Shard>,
    /// What the client was told.
    pub told: Option<Outcome>,
    /// It was told the one and the other.
    pub contradicted: bool,
    /// A participant's state did not allow an event.
    pub illegal: bool,
    /// A heuristic outcome was reported.
    pub heuristic: bool,
}

/// How often each kind of fault may still happen.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Faults {
    /// Crashes and restarts of any server, and fail-overs of the coordinator.
    pub crashes: u8,
    /// Lost connections.
    pub losses: u8,
    /// PREPARE or COMMIT that is refused, a transaction that fails unnoticed, a lock that a trigger
    /// releases.
    pub refusals: u8,
    /// The options of a foreign server are changed to another server, and back.
    pub moves: u8,
    /// An operator gives a participant up.
    pub forgets: u8,
}

/// A coordinator with what it has on disk and in memory.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Host {
    /// Which start of which coordinator.
    pub incarnation: u8,
    /// The decision row.
    pub row: Row,
    /// The decision row on the synchronous standby.
    pub row_on_standby: Row,
    /// The participants are on the durable list.
    pub listed: bool,
    /// They are on the standby's, too.
    pub listed_on_standby: bool,
    /// Participants that an operator has given up, or that have undone it: durable.
    pub forgotten: Each<bool>,
    /// The label was taken by asking for it: durable.
    pub taken: bool,
    /// The standby has that, too.
    pub taken_on_standby: bool,
    /// The session that runs or settles the transaction.
    pub session: Option<Session>,
    /// The entries in shared memory.
    pub entries: Each<Option<Entry>>,
    /// The resolver has the transaction in its ledger.
    pub in_ledger: bool,
    /// Participants of which the ledger does not know that they have confirmed.
    pub members: Each<bool>,
    /// Participants at which the ledger has it open.
    pub open: Each<bool>,
    /// All participants have confirmed: the decision may be deleted.
    pub confirmed: bool,
    /// What the resolver does about each participant.
    pub work: Each<Work>,
}

impl Host {
    /// What reading the decision row with a dirty snapshot says: a transaction that waits for the
    /// synchronous standby has not ended.
    pub fn decision(&self) -> Decision {
        let waits = self.session.is_some_and(|session| session.stage == Stage::Replicating);
        if waits { Decision::InProgress } else { self.row.decision() }
    }
}

/// An entry in shared memory.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Entry {
    /// What it says.
    pub shown: Shown,
    /// It was made together with one for each participant of the transaction.
    pub counted: bool,
}

impl Entry {
    /// Whether the resolver has to deliver an outcome.
    pub fn is_for_the_resolver(&self) -> bool {
        self.shown.left && self.shown.status.is_decided()
    }

    /// Whether it is the resolver's, and waits for the application.
    pub fn waits(&self) -> bool {
        self.shown.left && self.shown.status == Status::Prepared
    }
}

/// The decision row as the ghost of the model knows it; [`Row::decision`] is what can be read.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Row {
    /// It is not inserted yet.
    NotYet,
    /// Its transaction runs.
    Running,
    /// Its transaction is prepared under the application's 'gxid'.
    Pending,
    /// Committed.
    Committed,
    /// Its transaction has aborted: nothing can be read.
    Aborted,
    /// Deleted after all have confirmed: nothing can be read.
    Deleted,
}

impl Row {
    /// What reading it with a dirty snapshot says.
    pub fn decision(self) -> Decision {
        match self {
            Self::Committed => Decision::Committed,
            Self::Running | Self::Pending => Decision::InProgress,
            Self::NotYet | Self::Aborted | Self::Deleted => Decision::Absent,
        }
    }

    /// What is left of it after a crash.
    pub fn recovered(self) -> Self {
        match self {
            Self::Running => Self::Aborted,
            other => other,
        }
    }

    /// Whether the transaction has been decided, and how.
    pub fn outcome(self) -> Option<Outcome> {
        match self {
            Self::NotYet | Self::Running | Self::Pending => None,
            Self::Committed | Self::Deleted => Some(Outcome::Commit),
            Self::Aborted => Some(Outcome::Abort),
        }
    }
}

/// A session on the coordinator.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Session {
    /// It settles the application's 'gxid', which another session has prepared.
    pub settles: bool,
    /// How far it is.
    pub stage: Stage,
    /// Its participants.
    pub states: Each<State>,
    /// Whether the answer to what was sent last has not come.
    pub awaits: Each<bool>,
    /// Whether the answer to PREPARE comes before that one.
    pub skips: Each<bool>,
}

/// How far a session is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Stage {
    /// The transaction runs.
    Working,
    /// PREPARE was sent.
    Preparing,
    /// COMMIT was sent to the only one that has written.
    OnePhase,
    /// All have prepared or committed; the local transaction is next.
    Ready,
    /// It is decided, and waits for the synchronous standby.
    Replicating,
    /// COMMIT PREPARED, ROLLBACK PREPARED or ROLLBACK was sent; what the client is told then.
    Ending(Option<Outcome>),
    /// COMMIT PREPARED was sent, and the client was told.
    Unawaited,
    /// The transaction is prepared under 'gxid'.
    Detached,
    /// It has connected to settle 'gxid' so.
    Connected(Outcome),
}

/// What the resolver does about one participant.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Work {
    /// Something may be left there.
    pub unsettled: bool,
    /// It is to be swept.
    pub due: bool,
    /// The last sweep has found it prepared, and left it.
    pub was_listed: bool,
    /// The sweep that is under way.
    pub sweep: Option<Sweep>,
}

/// A sweep.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Sweep {
    /// How far it is.
    pub at: At,
    /// It has reached the other server.
    pub astray: bool,
    /// What it has reached.
    pub place: Place,
    /// When it began, a session had left something there.
    pub known: bool,
    /// When it began, the ledger had the transaction open there.
    pub committed: bool,
    /// An earlier sweep has found it prepared.
    pub was_listed: bool,
    /// A session of another incarnation is alive there.
    pub others: bool,
    /// The session that runs or ran the transaction is alive there.
    pub alive: bool,
    /// Ours is listed.
    pub listed: bool,
    /// Something of a stranger's is taken for ours.
    pub mistaken: bool,
    /// What was decided, read too early: only without [`Rule::ListFirst`](crate::rules::Rule).
    pub early: Option<Decision>,
    /// What was sent, once the verdict is there.
    pub sent: Option<Command>,
    /// What has come back, and what the shard says of the xid.
    pub heard: Option<Heard>,
    /// The shard's word on the xid.
    pub status: Option<&'static str>,
    /// Why it is left.
    pub left: Option<(Reason, Decision)>,
}

/// How far a sweep is: what it does next.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum At {
    /// Connect; ask for the fingerprint, the fence, the sessions.
    Asking,
    /// Read the list.
    Listing,
    /// Read the sessions again; look up the decision, find the verdict. What others do in between
    /// may as well be done before.
    Judging,
    /// Wait for the synchronous standby.
    Replicating,
    /// The shard executes what was sent; conclude.
    Settling,
}

/// A participant's server.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Shard {
    /// Our transaction there.
    pub xact: Xact,
    /// Prepared transactions of others are untouched.
    pub strangers: bool,
    /// The server process of the session that runs the transaction.
    pub worker: Option<Process>,
    /// The server process of the session that settles 'gxid'.
    pub settler: Option<Process>,
    /// A server process of another session of the coordinator.
    pub neighbour: Option<Neighbour>,
    /// The server process of a resolver, which holds the fence.
    pub fence: Option<Fence>,
    /// The options of the foreign server lead to another server.
    pub away: bool,
}

/// Our transaction on a participant.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Xact {
    /// Its process is at work on it.
    Open,
    /// It has failed, and its process has not ended it.
    Failed,
    /// Prepared.
    Prepared,
    /// Committed.
    Committed,
    /// Aborted.
    Aborted,
}

/// A server process of a session.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Process {
    /// Of the session's coordinator.
    pub incarnation: u8,
    /// It holds the session lock.
    pub lock: bool,
    /// It has taken it.
    pub is_known: bool,
    /// The connection is up.
    pub client: bool,
    /// What has been sent to it, and is not executed.
    pub queue: Queue<Command>,
    /// What it has answered, and is not read.
    pub answers: Queue<Heard>,
}

/// A server process that has nothing to do with the transaction, but may wait for it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Neighbour {
    /// Of the session's coordinator.
    pub incarnation: u8,
    /// The connection is up.
    pub client: bool,
    /// It waits for a row that our transaction has locked.
    pub waits: bool,
}

/// A resolver's server process.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Fence {
    /// Of its coordinator.
    pub incarnation: u8,
    /// The connection is up.
    pub client: bool,
    /// What was sent before the connection broke, and is not executed.
    pub late: Option<Command>,
}

/// What ends a transaction.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Command {
    /// PREPARE TRANSACTION.
    Prepare,
    /// COMMIT PREPARED.
    CommitPrepared,
    /// ROLLBACK PREPARED.
    RollbackPrepared,
    /// COMMIT.
    Commit,
    /// ROLLBACK.
    Rollback,
}

/// Two places, first in, first out.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Queue<T>([Option<T>; 2]);

impl<T: Copy> Default for Queue<T> {
    fn default() -> Self {
        Self([None; 2])
    }
}

impl<T: Copy + PartialEq> Queue<T> {
    /// Adds one.
    pub fn push(&mut self, one: T) {
        let place = self.0.iter_mut().find(|place| place.is_none());
        *place.expect("there are never more than two under way") = Some(one);
    }

    /// Takes the first.
    pub fn pop(&mut self) -> Option<T> {
        let first = self.0[0].take();
        self.0.swap(0, 1);
        first
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0[0].is_none()
    }

    /// Whether one is among them.
    pub fn has(&self, one: T) -> bool {
        self.0.contains(&Some(one))
    }
}
