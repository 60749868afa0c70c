//! How a session ends its transaction: it delivers the outcome or rolls back, and hands over to the
//! resolver what is not confirmed.

use crate::protocol::participant::{Event, Outcome, State};
use crate::rules::Rule;
use crate::world::{Command, Host, MOST, Row, Stage};
use crate::{Hand, Side};

impl Hand<'_> {
    /// What happens to a participant that has not confirmed its outcome.
    pub(super) fn unconfirmed(&self) -> Event {
        if self.setting.has(Rule::HandOver) { Event::Unconfirmed } else { Event::Confirmed }
    }

    /// Phase two.
    pub(crate) fn deliver(&mut self, outcome: Outcome) -> bool {
        let replicated = is_replicated(self.host()) || !self.setting.has(Rule::SessionReplicated);
        for i in self.setting.all() {
            self.move_on(i, outcome.event());
        }
        let command = settling(outcome);
        let waits = self.setting.commit_wait || self.session().settles;
        for i in self.setting.all() {
            if replicated && self.session().states[i].undelivered().is_some() {
                let sent = self.send(i, command);
                if sent && !waits {
                    self.move_on(i, Event::Unawaited);
                }
            }
        }
        if !waits {
            for i in self.setting.all() {
                if self.session().states[i].undelivered().is_some() {
                    let event = self.unconfirmed();
                    self.move_on(i, event);
                }
            }
            self.world.tell(outcome);
            self.session().stage = Stage::Unawaited;
        } else {
            self.session().stage = Stage::Ending(Some(outcome));
        }
        if !self.session().awaits.contains(&true) {
            self.end(if waits { Some(outcome) } else { None });
        }
        true
    }

    /// The local transaction aborts: everybody rolls back, then the client is `told`.
    pub fn abort(&mut self, told: Option<Outcome>) -> bool {
        let was = *self.session();
        // In one phase there is no row, and the participant's answer is the outcome.
        if was.stage != Stage::OnePhase {
            self.write(Row::Aborted);
        }
        self.session().awaits = [false; MOST];
        self.session().stage = Stage::Ending(told);
        for i in self.setting.all() {
            self.move_on(i, Event::DecidedAbort);
            match self.session().states[i] {
                // Whether or not PREPARE was answered: this comes behind it.
                State::Aborting => {
                    let unanswered = was.states[i] == State::Preparing && was.awaits[i];
                    if unanswered && !self.setting.has(Rule::TellTheUnanswered) {
                        self.move_on(i, Event::Confirmed);
                        continue;
                    }
                    if self.send(i, Command::RollbackPrepared) {
                        self.session().skips[i] = unanswered;
                    }
                }
                State::RollingBack => {
                    self.send(i, Command::Rollback);
                }
                _ => {}
            }
        }
        if !self.session().awaits.contains(&true) {
            self.end(told);
        }
        true
    }

    /// Everything that was waited for has come, or is not waited for any longer.
    pub(super) fn end(&mut self, told: Option<Outcome>) -> bool {
        let outcome = self.host().row.outcome();
        for i in self.setting.all() {
            let state = self.session().states[i];
            if state.undelivered().is_some() {
                let event = self.unconfirmed();
                self.move_on(i, event);
            } else if state == State::RollingBack {
                self.move_on(i, Event::Unconfirmed);
            }
        }
        let settled = self.setting.writers().all(|i| self.session().states[i] == State::Settled);
        let is_complete = !(self.session().settles && self.host().removed.contains(&true));
        if settled && is_complete && outcome == Some(Outcome::Commit) {
            self.all_confirmed();
        }
        // If the wait for the standby was cut short, PostgreSQL has told the client that the commit
        // may be lost.
        let is_certain = outcome.is_none() || is_replicated(self.host());
        // Whoever asks a copy is told of another database.
        let is_certain = is_certain && self.side == Side::Original;
        if let Some(outcome) = told.filter(|_| is_certain) {
            self.world.tell(outcome);
        }
        for i in self.setting.all() {
            if let Some(process) = self.connection(i) {
                process.hang_up();
            }
        }
        self.host().session = None;
        true
    }
}

/// Whether a fail-over keeps what is decided.
pub fn is_replicated(host: &Host) -> bool {
    host.row_on_standby.outcome() == host.row.outcome()
}

/// The command that delivers an outcome.
pub fn settling(outcome: Outcome) -> Command {
    match outcome {
        Outcome::Commit => Command::CommitPrepared,
        Outcome::Abort => Command::RollbackPrepared,
    }
}
