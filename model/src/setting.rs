//! What a run of the model is about.

use crate::rules::Rule;
use crate::world::Faults;

/// What there is, what may go wrong, and which rule is left out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Setting {
    /// In a word.
    pub name: &'static str,
    /// In a sentence.
    pub about: &'static str,
    /// How many participants.
    pub participants: usize,
    /// The last participant has only been read on.
    pub reads_last: bool,
    /// The coordinator has a synchronous standby.
    pub standby: bool,
    /// The application ends the transaction with PREPARE TRANSACTION.
    pub gxid: bool,
    /// `pg_fdw_xacts.commit_wait`.
    pub commit_wait: bool,
    /// Another session of the coordinator is on the first participant, and may wait for a row
    /// there.
    pub neighbour: bool,
    /// A client asks for the outcome by label.
    pub label: bool,
    /// There may be a physical copy of the coordinator.
    pub copy: bool,
    /// The other server that the options may lead to is an image of the first.
    pub image: bool,
    /// The sessions know the xids of their transactions on the participants.
    pub xids: bool,
    /// The coordinator has just started, and has not swept its participants.
    pub restarted: bool,
    /// The resolver sweeps its participants one after the other, not at once.
    pub serial: bool,
    /// How often what may go wrong.
    pub faults: Faults,
    /// The rules that are left out.
    pub without: [Option<Rule>; 2],
}

const ONE_CRASH: Faults = Faults { crashes: 1, losses: 1, refusals: 0, moves: 0, forgets: 0 };
const ONE_REFUSAL: Faults = Faults { losses: 0, refusals: 1, ..ONE_CRASH };
const ONLY_CRASH: Faults = Faults { losses: 0, ..ONE_CRASH };

const PLAIN: Setting = Setting {
    name: "commit",
    about: "COMMIT of a transaction that has written on all participants",
    participants: 2,
    reads_last: false,
    standby: false,
    gxid: false,
    commit_wait: true,
    neighbour: false,
    label: false,
    copy: false,
    image: false,
    xids: true,
    restarted: false,
    serial: false,
    faults: ONE_CRASH,
    without: [None; 2],
};

/// The settings of the exhaustive run, each with its faults.
pub const ALL: [Setting; 14] = [
    PLAIN,
    Setting {
        name: "refused",
        about: "the same; a participant refuses, has failed unnoticed, or loses its lock",
        faults: ONE_REFUSAL,
        ..PLAIN
    },
    Setting {
        name: "restarted",
        about: "the same, just after the start of the coordinator, which sweeps its participants",
        restarted: true,
        faults: Faults { crashes: 0, ..ONE_CRASH },
        ..PLAIN
    },
    Setting {
        name: "unawaited",
        about: "the same with commit_wait = off",
        commit_wait: false,
        faults: ONLY_CRASH,
        ..PLAIN
    },
    Setting {
        name: "no_xids",
        about: "the same; what the sessions know of xids was lost",
        xids: false,
        ..PLAIN
    },
    Setting {
        name: "one_phase",
        about: "COMMIT after writing on the first participant only",
        reads_last: true,
        ..PLAIN
    },
    Setting {
        name: "standby",
        about: "a coordinator that fails over to its synchronous standby, with and without the last commits",
        standby: true,
        ..PLAIN
    },
    Setting {
        name: "gxid",
        about: "PREPARE TRANSACTION by the application, settled by any session later",
        gxid: true,
        serial: true,
        faults: ONLY_CRASH,
        ..PLAIN
    },
    Setting {
        name: "neighbour",
        about: "another session waits on the first participant for what the transaction has locked",
        neighbour: true,
        faults: ONLY_CRASH,
        ..PLAIN
    },
    Setting {
        name: "moved",
        about: "another server answers at a participant's address for a while",
        serial: true,
        faults: Faults { moves: 1, ..ONLY_CRASH },
        ..PLAIN
    },
    Setting {
        name: "image",
        about: "a foreign server's options are changed to an image of the server, and back",
        image: true,
        serial: true,
        faults: Faults { moves: 1, ..ONLY_CRASH },
        ..PLAIN
    },
    Setting {
        name: "given_up",
        about: "an operator gives a participant up, which comes back",
        serial: true,
        faults: Faults { forgets: 1, ..ONLY_CRASH },
        ..PLAIN
    },
    Setting {
        name: "label",
        about: "a client asks for the outcome by label, also after a fail-over",
        label: true,
        standby: true,
        faults: ONLY_CRASH,
        ..PLAIN
    },
    // Nothing else may go wrong beside a copy: where the original is cut off, even for a moment,
    // the copy takes over, which is a stated limit.
    Setting {
        name: "copy",
        about: "a physical copy of the coordinator runs beside it",
        copy: true,
        faults: Faults { crashes: 0, ..ONE_REFUSAL },
        ..PLAIN
    },
];

/// Those that take longer than a test may.
pub const DEEP: [Setting; 2] = [
    Setting {
        name: "copied_gxid",
        about: "the same, and 'gxid' may be pending in both",
        copy: true,
        gxid: true,
        serial: true,
        faults: Faults { crashes: 0, ..ONLY_CRASH },
        ..PLAIN
    },
    Setting {
        name: "given_up_gxid",
        about: "the same while 'gxid' is pending",
        gxid: true,
        serial: true,
        faults: Faults { forgets: 1, ..ONLY_CRASH },
        ..PLAIN
    },
];

impl Setting {
    /// One in which a rule is missed when it is left out.
    pub fn of(rule: Rule) -> Self {
        let name = match rule {
            Rule::CountEntries => return Self { faults: ONLY_CRASH, ..Self::called("standby") },
            Rule::ListReplicated | Rule::SessionReplicated | Rule::ResolverReplicated => "standby",
            Rule::SessionsAfter => "copy",
            Rule::Fence => "copied_gxid",
            Rule::Fingerprint => "moved",
            Rule::Address => "image",
            Rule::KeepForgotten | Rule::NoteBefore => "given_up",
            Rule::AskAgain => "one_phase",
            Rule::TakeLabel | Rule::LabelReplicated => "label",
            Rule::ClientCheck => "neighbour",
            Rule::Undecided | Rule::Look => "gxid",
            Rule::ExactTag | Rule::LockConfirmed => "refused",
            Rule::RowFirst
            | Rule::Owner
            | Rule::ListFirst
            | Rule::LeftBefore
            | Rule::SessionsBefore => "restarted",
            _ => "commit",
        };
        Self::called(name)
    }

    fn called(name: &str) -> Self {
        let mut all = ALL.iter().chain(&DEEP);
        *all.find(|setting| setting.name == name).expect("it is one of them")
    }

    /// Whether a rule holds.
    pub fn has(&self, rule: Rule) -> bool {
        !self.without.contains(&Some(rule))
    }

    /// The same without a rule.
    pub fn without(self, rule: Rule) -> Self {
        Self { without: [Some(rule), self.without[0]], ..self }
    }

    /// The participants.
    pub fn all(&self) -> std::ops::Range<usize> {
        0..self.participants
    }

    /// The participants that have been written on.
    pub fn writers(&self) -> std::ops::Range<usize> {
        0..self.participants - usize::from(self.reads_last)
    }
}
