//! What a participant's server does: PostgreSQL, as far as the protocol depends on it.

use crate::protocol::answers::Heard;
use crate::rules::Rule;
use crate::setting::Setting;
use crate::world::{Command, Process, Shard, Xact};

/// Which server process.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Who {
    /// That of the session that runs the transaction.
    Worker,
    /// That of the session that settles 'gxid'.
    Settler,
}

impl Shard {
    /// A process.
    pub fn process(&mut self, who: Who) -> &mut Option<Process> {
        match who {
            Who::Worker => &mut self.worker,
            Who::Settler => &mut self.settler,
        }
    }

    /// A process executes the next command that was sent to it.
    pub fn execute(&mut self, who: Who, setting: &Setting) -> bool {
        let Some(process) = self.process(who) else { return false };
        let Some(command) = process.queue.pop() else { return false };
        let lock = process.lock || !setting.has(Rule::LockConfirmed);
        let heard = match (command, self.xact) {
            (Command::Prepare, _) if !lock => Heard::Skipped,
            (Command::Prepare, Xact::Open) => self.becomes(Xact::Prepared, Heard::Done),
            (Command::Commit, Xact::Open) => self.becomes(Xact::Committed, Heard::Done),
            (Command::Prepare | Command::Commit, Xact::Failed) => {
                self.becomes(Xact::Aborted, Heard::OtherTag)
            }
            (Command::Rollback, Xact::Open | Xact::Failed) => {
                self.becomes(Xact::Aborted, Heard::Done)
            }
            // Outside of a transaction.
            (Command::Prepare | Command::Commit | Command::Rollback, _) => Heard::OtherTag,
            (command, _) => self.settle(command),
        };
        self.answer(who, heard);
        true
    }

    /// A process refuses PREPARE or COMMIT with an error.
    pub fn refuse(&mut self, who: Who) -> bool {
        if self.xact != Xact::Open {
            return false;
        }
        let Some(process) = self.process(who) else { return false };
        let mut queue = process.queue;
        if !matches!(queue.pop(), Some(Command::Prepare | Command::Commit)) {
            return false;
        }
        process.queue = queue;
        self.xact = Xact::Aborted;
        self.answer(who, Heard::Refused);
        true
    }

    /// COMMIT PREPARED or ROLLBACK PREPARED, by whatever session.
    pub fn settle(&mut self, command: Command) -> Heard {
        match (command, self.xact) {
            (Command::CommitPrepared, Xact::Prepared) => self.becomes(Xact::Committed, Heard::Done),
            (Command::RollbackPrepared, Xact::Prepared) => self.becomes(Xact::Aborted, Heard::Done),
            _ => Heard::NotPrepared,
        }
    }

    fn becomes(&mut self, xact: Xact, heard: Heard) -> Heard {
        self.xact = xact;
        heard
    }

    fn answer(&mut self, who: Who, heard: Heard) {
        if let Some(process) = self.process(who).as_mut().filter(|process| process.client) {
            process.answers.push(heard);
        }
    }

    /// A process whose client has gone ends; what it has not read is lost.
    pub fn exit(&mut self, who: Who) -> bool {
        if self.process(who).is_none_or(|process| process.client) {
            return false;
        }
        *self.process(who) = None;
        if who == Who::Worker && matches!(self.xact, Xact::Open | Xact::Failed) {
            self.xact = Xact::Aborted;
        }
        true
    }

    /// The server crashes and starts again.
    pub fn crash(&mut self) {
        if matches!(self.xact, Xact::Open | Xact::Failed) {
            self.xact = Xact::Aborted;
        }
        (self.worker, self.settler, self.neighbour, self.fence) = (None, None, None, None);
    }

    /// All connections from an incarnation of the coordinator break.
    pub fn lose(&mut self, incarnation: u8) {
        for process in [&mut self.worker, &mut self.settler].into_iter().flatten() {
            if process.incarnation == incarnation {
                process.hang_up();
            }
        }
        for neighbour in self.neighbour.iter_mut().filter(|n| n.incarnation == incarnation) {
            neighbour.client = false;
        }
        for fence in self.fence.iter_mut().filter(|fence| fence.incarnation == incarnation) {
            fence.client = false;
        }
    }

    /// Another session's process has to wait for a row.
    pub fn neighbour_waits(&mut self) -> bool {
        let is_locked = self.xact == Xact::Prepared;
        match self.neighbour.as_mut().filter(|n| is_locked && n.client && !n.waits) {
            Some(neighbour) => neighbour.waits = true,
            None => return false,
        }
        true
    }

    /// Another session's process ends.
    pub fn neighbour_exits(&mut self, setting: &Setting) -> bool {
        let is_locked = self.xact == Xact::Prepared;
        let ends = self.neighbour.is_some_and(|n| {
            !n.client && (!n.waits || !is_locked || setting.has(Rule::ClientCheck))
        });
        if ends {
            self.neighbour = None;
        }
        ends
    }

    /// A resolver's process whose client has gone executes what it has been sent, or ends.
    pub fn fence_ends(&mut self, executes: bool) -> bool {
        let Some(fence) = self.fence.as_mut().filter(|fence| !fence.client) else { return false };
        match (executes, fence.late.take()) {
            (true, Some(command)) => {
                self.settle(command);
            }
            (true, None) => return false,
            (false, _) => self.fence = None,
        }
        true
    }
}

impl Process {
    /// One of a new session.
    pub fn new(incarnation: u8) -> Self {
        Self {
            incarnation,
            lock: true,
            is_known: true,
            client: true,
            queue: Default::default(),
            answers: Default::default(),
        }
    }

    /// The connection breaks, or is closed.
    pub fn hang_up(&mut self) {
        self.client = false;
        self.answers = Default::default();
    }
}
