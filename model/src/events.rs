//! What happens to whole servers, and what clients ask.

use crate::Hand;
use crate::check::Checked;
use crate::protocol::label::{self, Known};
use crate::protocol::participant::Outcome;
use crate::protocol::verdict::Decision;
use crate::rules::Rule;
use crate::shard::Who;
use crate::steps::NEW_HOST;
use crate::world::{Host, Row, Stage, Work, World, Xact};

/// The incarnation of the copy.
const COPY: u8 = 100;

impl Checked {
    /// A new start, after a crash or on the standby.
    fn restarted(&self, host: &Host, incarnation: u8, on_standby: bool) -> Host {
        let (row, listed, taken) = if on_standby {
            (host.row_on_standby, host.listed_on_standby, host.taken_on_standby)
        } else {
            (host.row, host.listed, host.taken)
        };
        // What the standby has never heard of has aborted.
        let is_lost = row == Row::NotYet && host.row != Row::NotYet;
        let row = if is_lost { Row::Aborted } else { row.recovered() };
        let was = if self.setting.standby { host } else { &NEW_HOST };
        let mut new = Host {
            incarnation,
            row,
            row_on_standby: was.row_on_standby.recovered(),
            listed,
            listed_on_standby: was.listed_on_standby,
            forgotten: host.forgotten,
            taken,
            taken_on_standby: was.taken_on_standby,
            ..NEW_HOST
        };
        if on_standby || !self.setting.standby {
            new.row_on_standby = row;
        }
        for i in self.setting.writers().filter(|i| listed && !new.forgotten[*i]) {
            (new.work[i].unsettled, new.work[i].due) = (true, true);
        }
        new
    }

    pub(crate) fn crash(&self, world: &mut World, fails_over: bool) -> bool {
        let old = world.host;
        for i in self.setting.all() {
            // What was sent is on its way.
            let sent = old.work[i].sweep.filter(|s| s.heard.is_none() && !s.astray);
            if let Some(fence) = world.shards[i].fence.as_mut()
                && fence.incarnation == old.incarnation
                && fence.client
            {
                fence.late = sent.and_then(|sweep| sweep.sent);
            }
            world.shards[i].lose(old.incarnation);
        }
        world.host = self.restarted(&old, old.incarnation + 1, fails_over);
        true
    }

    pub(crate) fn copy(&self, world: &mut World) -> bool {
        if world.copy.is_some() {
            return false;
        }
        // Earlier transactions have been prepared on all of them.
        let host = Host { listed: true, ..world.host };
        world.copy = Some(self.restarted(&host, COPY, false));
        true
    }

    /// `pg_fdw_xacts_outcome()`.
    pub(crate) fn ask(&self, world: &mut World) -> bool {
        let host = &mut world.host;
        let runs = host.session.is_some_and(|session| session.stage != Stage::Working);
        let known = match (host.row, host.decision()) {
            (Row::Pending, _) => Known::Prepared,
            (Row::Deleted, _) | (_, Decision::Committed) => Known::Committed,
            (_, Decision::InProgress) => Known::Running,
            _ if host.taken => Known::Taken,
            _ if runs && host.row != Row::Aborted => Known::Running,
            _ => Known::Unseen,
        };
        let takes = self.setting.has(Rule::TakeLabel);
        let is_on_standby = match known {
            Known::Taken => host.taken_on_standby,
            _ => host.row_on_standby == host.row,
        };
        let waits = self.setting.has(Rule::LabelReplicated) && self.setting.standby;
        let told = world.told;
        match label::outcome(known, false, false, is_on_standby || !waits) {
            Some(label::Outcome::Committed | label::Outcome::Committing) => {
                world.tell(Outcome::Commit);
            }
            Some(label::Outcome::Aborted) => world.tell(Outcome::Abort),
            Some(_) => return false,
            None if takes => host.taken = true,
            None => world.tell(Outcome::Abort),
        }
        takes && known == Known::Unseen || world.told != told
    }
}

pub(crate) fn replicate(host: &mut Host) -> bool {
    let was = *host;
    if !matches!(host.row, Row::NotYet | Row::Running) {
        host.row_on_standby = host.row;
    }
    host.listed_on_standby = host.listed;
    host.taken_on_standby = host.taken;
    was != *host
}

pub(crate) fn reappear(world: &mut World, i: usize) -> bool {
    let needs = world.host.forgotten[i] && world.shards[i].xact == Xact::Prepared;
    let work = &mut world.host.work[i];
    let is_new = needs && *work == Work::default();
    if is_new {
        (work.unsettled, work.due) = (true, true);
    }
    is_new
}

pub(crate) fn lose(hand: &mut Hand<'_>, i: usize) -> bool {
    let incarnation = hand.host().incarnation;
    let Some(session) = hand.host().session else { return false };
    let who = if session.settles { Who::Settler } else { Who::Worker };
    match hand.world.shards[i].process(who) {
        Some(process) if process.client && process.incarnation == incarnation => process.hang_up(),
        _ => return false,
    }
    true
}
