//! What a session of the coordinator does, in the order of `src/xact`. What it decides, it decides
//! by the functions of `src/protocol`.

mod ending;

use crate::protocol::answers::Heard;
use crate::protocol::participant::{Event, Outcome, State};
use crate::protocol::plan::{Access, Local, Mode, Step, Work, Xid, plan};
use crate::protocol::shown::Shown;
use crate::rules::Rule;
use crate::shard::Who;
use crate::world::{Command, Entry, MOST, Process, Row, Session, Stage, Xact};

use crate::{Hand, Side};

pub use ending::{is_replicated, settling};

impl Session {
    /// The session that runs the transaction.
    pub fn working() -> Self {
        let (awaits, skips) = ([false; MOST], [false; MOST]);
        Self { settles: false, stage: Stage::Working, states: [State::Active; MOST], awaits, skips }
    }

    fn who(&self) -> Who {
        if self.settles { Who::Settler } else { Who::Worker }
    }
}

impl Hand<'_> {
    pub(crate) fn session(&mut self) -> &mut Session {
        self.host().session.as_mut().expect("there is a session")
    }

    /// The connection to a participant, if it is up.
    pub(crate) fn connection(&mut self, i: usize) -> Option<&mut Process> {
        let who = self.host().session?.who();
        let incarnation = self.host().incarnation;
        let process = self.world.shards[i].process(who).as_mut()?;
        (process.client && process.incarnation == incarnation).then_some(process)
    }

    /// Moves a participant and has its entry follow, as `Member::apply` does.
    fn move_on(&mut self, i: usize, event: Event) {
        let was = self.session().states[i];
        let Ok(now) = was.on(event) else {
            self.world.illegal = true;
            return;
        };
        self.session().states[i] = now;
        let entry = &mut self.host().entries[i];
        *entry = match (Shown::of(was), Shown::of(now)) {
            (None, None) => *entry,
            (None, made) => made.map(|shown| Entry { shown, counted: true }),
            (Some(_), None) => None,
            // It can be taken back from the resolver, if no other session was faster.
            (Some(Shown { left: true, .. }), Some(shown)) if !shown.left => {
                entry.map(|entry| if entry.shown.left { Entry { shown, ..entry } } else { entry })
            }
            (Some(_), Some(shown)) => entry.map(|entry| Entry { shown, ..entry }),
        };
    }

    fn send(&mut self, i: usize, command: Command) -> bool {
        let Some(process) = self.connection(i) else { return false };
        process.queue.push(command);
        self.session().awaits[i] = true;
        true
    }

    /// Takes the session locks, with the first statement or later.
    pub fn take_locks(&mut self) -> bool {
        if self.host().session.is_none_or(|session| session.stage != Stage::Working) {
            return false;
        }
        let mut taken = false;
        for i in self.setting.all() {
            if let Some(process) = self.connection(i).filter(|process| !process.is_known) {
                (process.lock, process.is_known) = (true, true);
                taken = true;
            }
        }
        taken
    }

    /// COMMIT, or PREPARE TRANSACTION: phase one, up to its first round.
    pub fn begin(&mut self) -> bool {
        let all = self.setting.all();
        let is_ready = all.clone().all(|i| self.connection(i).is_none_or(|p| p.is_known));
        if !is_ready || self.host().session.is_none_or(|s| s.stage != Stage::Working) {
            return false;
        }
        let is_cut_off = all.clone().any(|i| self.connection(i).is_none());
        if is_cut_off || self.host().taken {
            return self.abort(Some(Outcome::Abort));
        }
        let work = |i| {
            let wrote = self.setting.writers().contains(&i);
            let (access, xid) =
                if wrote { (Access::Modifies, Xid::Assigned) } else { (Access::Reads, Xid::None) };
            Work { access, xid, can_prepare: true }
        };
        let mode = if self.setting.has(Rule::TwoPhases) { Mode::Auto } else { Mode::Off };
        let local = Local { wrote: false, serializable: false, explicit: self.setting.gxid };
        let works: Vec<Work> = all.clone().map(work).collect();
        let Ok(steps) = plan(mode, local, &works) else {
            return self.abort(Some(Outcome::Abort));
        };
        let prepares = steps.contains(&Step::Prepare);
        if prepares {
            let (row_first, durable, replicated) = (
                self.setting.has(Rule::RowFirst),
                self.setting.has(Rule::DurableList),
                self.setting.has(Rule::ListReplicated) || !self.setting.standby,
            );
            let host = self.host();
            host.listed |= durable;
            host.listed_on_standby |= durable && replicated;
            if row_first {
                host.row = Row::Running;
            }
        }
        self.session().stage = Stage::Preparing;
        for (i, step) in steps.into_iter().enumerate() {
            match step {
                Step::Prepare => {
                    self.move_on(i, Event::Reserve);
                    self.move_on(i, Event::SendPrepare);
                    self.send(i, Command::Prepare);
                }
                Step::CommitReader => {
                    self.move_on(i, Event::SendCommit);
                    self.send(i, Command::Commit);
                    if !prepares {
                        self.move_on(i, Event::Unawaited);
                        self.session().awaits[i] = false;
                    }
                }
                Step::CommitLast => {}
            }
        }
        self.after_round();
        true
    }

    /// Phase one goes on when everything is answered: who commits in one phase is the last.
    fn after_round(&mut self) {
        if self.session().awaits.contains(&true) {
            return;
        }
        let last = self.setting.all().find(|i| self.session().states[*i] == State::Active);
        self.session().stage = match last {
            Some(i) => {
                self.move_on(i, Event::SendCommit);
                self.send(i, Command::Commit);
                self.session().awaits[i] = true;
                Stage::OnePhase
            }
            None => Stage::Ready,
        };
    }

    /// Takes the next answer of a participant, or notices that none will come.
    pub fn hear(&mut self, i: usize) -> bool {
        let Some(session) = self.host().session.filter(|session| session.awaits[i]) else {
            return false;
        };
        let heard = match self.connection(i) {
            Some(process) => match process.answers.pop() {
                Some(heard) => heard,
                None => return false,
            },
            None if session.stage == Stage::OnePhase => match self.ask_again(i) {
                Some(heard) => heard,
                None => return false,
            },
            None => Heard::Lost,
        };
        if std::mem::take(&mut self.session().skips[i]) && heard != Heard::Lost {
            return true;
        }
        self.session().awaits[i] = false;
        let heard = match heard {
            Heard::OtherTag if !self.setting.has(Rule::ExactTag) => Heard::Done,
            heard => heard,
        };
        let state = session.states[i];
        match session.stage {
            Stage::Preparing => {
                if let Some(event) = heard.in_phase_one(state) {
                    self.move_on(i, event);
                }
                if heard != Heard::Done {
                    return self.abort(Some(Outcome::Abort));
                }
                self.after_round();
            }
            Stage::OnePhase => {
                self.move_on(i, Event::Confirmed);
                if heard != Heard::Done {
                    return self.abort(Some(Outcome::Abort));
                }
                self.after_round();
            }
            Stage::Ending(told) => {
                let is_confirmed = match state {
                    // Those of another session's transaction need the tag.
                    State::Aborting if session.settles => heard.settles(),
                    State::Aborting | State::RollingBack => heard.is_rolled_back(state),
                    _ => heard.settles(),
                };
                if is_confirmed {
                    self.move_on(i, Event::Confirmed);
                }
                if !self.session().awaits.contains(&true) {
                    self.end(told);
                }
            }
            Stage::Unawaited => {
                let event = if heard.settles() { Event::Confirmed } else { Event::Unconfirmed };
                self.move_on(i, event);
                if !self.session().awaits.contains(&true) {
                    self.end(None);
                }
            }
            _ => unreachable!("nothing is awaited"),
        }
        true
    }

    /// The answer to COMMIT in one phase was lost: what the participant says of the xid.
    fn ask_again(&mut self, i: usize) -> Option<Heard> {
        if !self.setting.has(Rule::AskAgain) {
            return Some(Heard::Refused);
        }
        match self.world.shards[i].xact {
            Xact::Committed => Some(Heard::Done),
            Xact::Aborted => Some(Heard::OtherTag),
            _ => None,
        }
    }

    /// A deadline, a cancel, or the end of the session: whatever it waits for is not waited for any
    /// longer.
    pub fn give_up(&mut self) -> bool {
        let Some(session) = self.host().session else { return false };
        match session.stage {
            // Where nothing was prepared, nothing local is left that could fail.
            Stage::Ready if !session.states.contains(&State::Prepared) => false,
            Stage::Preparing | Stage::Ready if !session.settles => self.abort(Some(Outcome::Abort)),
            Stage::OnePhase => {
                for i in self.setting.all().filter(|i| session.awaits[*i]) {
                    self.move_on(i, Event::Confirmed);
                }
                // 08007: nobody knows.
                self.abort(None)
            }
            // With a copy beside it, the original must not be cut off.
            Stage::Ending(_) if self.setting.copy => false,
            Stage::Ending(told) => self.end(told),
            Stage::Unawaited => {
                let late: Vec<usize> = self.setting.all().filter(|i| session.awaits[*i]).collect();
                for i in late {
                    let event = self.unconfirmed();
                    self.move_on(i, event);
                }
                self.end(None)
            }
            // It stays until the resolver has the fence.
            Stage::Detached => self.setting.writers().all(|i| self.is_fenced(i)) && self.end(None),
            _ => false,
        }
    }

    /// The local transaction commits, or is prepared: the decision.
    pub fn decide(&mut self) -> bool {
        if self.host().session.is_none_or(|session| session.stage != Stage::Ready) {
            return false;
        }
        if self.setting.gxid {
            self.write(Row::Pending);
            for i in self.setting.all() {
                self.move_on(i, Event::DecidedLater);
            }
            self.session().stage = Stage::Detached;
            // Only a copy can tell whether its connections are still there.
            return self.setting.copy || self.end(None);
        }
        let prepared = self.session().states.contains(&State::Prepared);
        if !prepared {
            for i in self.setting.all() {
                self.move_on(i, Event::DecidedCommit);
            }
            return self.end(Some(Outcome::Commit));
        }
        self.write(Row::Committed);
        if self.setting.standby {
            self.session().stage = Stage::Replicating;
            return true;
        }
        self.deliver(Outcome::Commit)
    }

    pub(crate) fn write(&mut self, row: Row) {
        let standby = self.setting.standby;
        let host = self.host();
        host.row = row;
        if !standby {
            host.row_on_standby = row;
        }
    }

    /// The wait for the synchronous standby has ended: it has the commit, or the wait was cut
    /// short.
    pub fn go_on(&mut self) -> bool {
        if self.host().session.is_none_or(|session| session.stage != Stage::Replicating) {
            return false;
        }
        match self.host().row.outcome() {
            Some(outcome) => self.deliver(outcome),
            None => false,
        }
    }
}

/// Whose sessions these are.
impl Side {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::Original, Self::Copy];
}
