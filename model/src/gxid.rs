//! `COMMIT PREPARED 'gxid'` and `ROLLBACK PREPARED 'gxid'` by the application, in the order of
//! `src/xact/gxid.rs`.

use crate::Hand;
use crate::protocol::participant::{Outcome, State};
use crate::protocol::verdict::Decision;
use crate::rules::Rule;
use crate::world::{MOST, Process, Row, Session, Stage};

impl Hand<'_> {
    /// COMMIT PREPARED 'gxid' or ROLLBACK PREPARED 'gxid': connects, and takes the session locks.
    pub fn connect(&mut self, outcome: Outcome) -> bool {
        let is_free = self.setting.writers().all(|i| self.world.shards[i].settler.is_none());
        let host = self.host();
        if host.row != Row::Pending || host.session.is_some() || !is_free {
            return false;
        }
        let incarnation = host.incarnation;
        host.session = Some(Session {
            settles: true,
            stage: Stage::Connected(outcome),
            states: [State::Waiting; MOST],
            ..Session::working()
        });
        for i in self.setting.all() {
            if !self.world.shards[i].away {
                self.world.shards[i].settler = Some(Process::new(incarnation));
            }
        }
        true
    }

    /// Looks for other copies, has PostgreSQL settle 'gxid', and delivers that.
    pub fn settle(&mut self) -> bool {
        let Some(Session { stage: Stage::Connected(outcome), .. }) = self.host().session else {
            return false;
        };
        let incarnation = self.host().incarnation;
        for i in self.setting.all() {
            let shard = &self.world.shards[i];
            let others = self.setting.has(Rule::OtherIncarnations)
                && shard.lock_holders().any(|(holder, _)| holder != incarnation);
            if others && let Some(process) = self.connection(i) {
                process.hang_up();
            }
        }
        if self.host().row == Row::Pending {
            let row = match outcome {
                Outcome::Commit => Row::Committed,
                Outcome::Abort => Row::Aborted,
            };
            self.write(row);
        }
        if self.setting.standby {
            self.session().stage = Stage::Replicating;
            return true;
        }
        // What has become of the local transaction tells what is true.
        match self.host().row.decision() {
            Decision::Committed => self.deliver(Outcome::Commit),
            _ => self.deliver(Outcome::Abort),
        }
    }
}
