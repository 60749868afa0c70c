//! The rules of the protocol, each of which can be left out to see what it is good for.

/// A rule that can be left out. What it says is what the extension does.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Rule {
    /// Whoever has written prepares, unless it is the only one.
    TwoPhases,
    /// The decision row is inserted before the first PREPARE is sent.
    RowFirst,
    /// A participant is on the durable list before it prepares for the first time.
    DurableList,
    /// That list is on the synchronous standby as well before the participant prepares.
    ListReplicated,
    /// Success is the exact command tag.
    ExactTag,
    /// Each session holds its advisory lock from before PREPARE on, and a sweep concludes nothing
    /// from absence while one of another incarnation is alive.
    OtherIncarnations,
    /// The lock is confirmed in the message of the PREPARE.
    LockConfirmed,
    /// A sweep reads the sessions before the list.
    SessionsBefore,
    /// A sweep reads the sessions again after the list.
    SessionsAfter,
    /// The session that may still prepare is alive: absence proves nothing.
    Preparer,
    /// The decision is looked up after the list was read.
    ListFirst,
    /// What was left to the resolver after the list was read waits for the next sweep.
    LeftBefore,
    /// A transaction whose decision row is there and not decided is left alone.
    Undecided,
    /// What is not confirmed is left to the resolver.
    HandOver,
    /// Without the answer to PREPARE, the participant is told to roll back what it may have
    /// prepared.
    TellTheUnanswered,
    /// A session delivers a commit only when the synchronous standby has it.
    SessionReplicated,
    /// So does the resolver.
    ResolverReplicated,
    /// Of all copies of a coordinator only the one that holds the fence settles.
    Fence,
    /// Absence counts only on the server with the recorded fingerprint.
    Fingerprint,
    /// Absence counts only at the recorded address.
    Address,
    /// Gids are compared whole.
    WholeGid,
    /// The decision is kept until all participants have confirmed.
    KeepDecision,
    /// The decision is kept for ever if a participant was given up.
    KeepForgotten,
    /// After a lost answer to COMMIT in one phase, the participant is asked.
    AskAgain,
    /// A label about which `aborted` was said cannot be used any more.
    TakeLabel,
    /// A taken label is on the synchronous standby before `aborted` is said.
    LabelReplicated,
    /// A server process whose client has gone ends, even while it waits for a lock.
    ClientCheck,
    /// While the session that ran the transaction is alive, the resolver leaves it alone.
    Owner,
    /// A resolver reads the decision table after its start, and from time to time.
    Look,
    /// Entries tell who has not confirmed only if there was one for each participant.
    CountEntries,
}

impl Rule {
    /// All of them.
    pub const ALL: [Self; 30] = [
        Self::TwoPhases,
        Self::RowFirst,
        Self::DurableList,
        Self::ListReplicated,
        Self::ExactTag,
        Self::OtherIncarnations,
        Self::LockConfirmed,
        Self::SessionsBefore,
        Self::SessionsAfter,
        Self::Preparer,
        Self::ListFirst,
        Self::LeftBefore,
        Self::Undecided,
        Self::HandOver,
        Self::TellTheUnanswered,
        Self::SessionReplicated,
        Self::ResolverReplicated,
        Self::Fence,
        Self::Fingerprint,
        Self::Address,
        Self::WholeGid,
        Self::KeepDecision,
        Self::KeepForgotten,
        Self::AskAgain,
        Self::TakeLabel,
        Self::LabelReplicated,
        Self::ClientCheck,
        Self::Owner,
        Self::Look,
        Self::CountEntries,
    ];
}
