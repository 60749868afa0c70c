//! Taking the snapshots of several servers until they are one cut.
//!
//! Each round waits for all servers at once. When the snapshots are no cut, all that nothing was
//! read from are taken again, never the late ones alone: one that is taken alone is a round trip
//! ahead of the others, and sees what they do not.

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::here::{self, Local};
use super::kind::{Kind, May, Terms, kind_of};
use super::ready;
use super::refusals::{Missing, in_doubt, in_recovery_here, in_recovery_there, too_old};
use super::shown::Shown;
use super::transaction::Reading;
use crate::guc;
use crate::pg::backend_local::BackendLocal;
use crate::pg::error::{Result, check_for_interrupts};
use crate::pg::globals::{in_recovery, is_serializable, my_database, nest_level};
use crate::pg::wait_event::WaitEvent;
use crate::pg::{latch, text};
use crate::protocol::cut::{Row, Taken, Verdict, check};
use crate::protocol::order::Opened;
use crate::protocol::place::Place;
use crate::remote::cache::{self, Cached};
use crate::remote::connection::Isolation;
use crate::remote::round::wait_for;
use crate::remote::wait::Interrupts;
use crate::shared::left;
use crate::shared::order::{self, Known};
use crate::shared::reads::{self, Count};
use crate::shared::resolvers;
use crate::shared::window::Closed;
use crate::xact::unit::Member;

/// The first rounds follow each other at once: most transactions are delivered within a round trip.
const AT_ONCE: u64 = 3;

/// After so many rounds those who deliver are asked to wait.
const WITHOUT_WINDOW: u64 = 2;

/// After so many rounds, within some 50 ms, what an idle session has sent and not heard of is left
/// to the resolver.
const PATIENT: u64 = AT_ONCE + 6;

/// The longest pause between two rounds.
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// The last number that was given to a cut of this process.
static LAST: BackendLocal<Cell<u64>> = BackendLocal::new(Cell::new(0));

/// Makes the snapshots of these connections one cut. Those that something was read from stay as
/// they are; of the others the transactions are begun, or begun again.
///
/// # Errors
/// Those of [`super::before_statement`].
pub(super) fn take(members: &[Member], terms: Terms) -> Result<()> {
    match known(members) {
        Some(_) => Ok(()),
        None => Taking::begin(members, terms)?.finish().map(drop),
    }
}

/// The cut that all of them belong to already.
pub(super) fn known(members: &[Member]) -> Option<u64> {
    let cut = members[0].connection.cut();
    let is_one = |member: &Member| member.connection.cut() == cut;
    (cut != 0 && members.iter().all(is_one)).then_some(cut)
}

/// Checks a server by itself, once it has been read: together with this server's own tables it must
/// be a cut, too.
pub(super) fn check_read(member: &Member, reading: &Reading) -> Result<()> {
    let members = std::slice::from_ref(member);
    let mut taking = Taking::over(members, Terms { unit: None, reading, may: May::Keep })?;
    // Nothing of it can be taken again, so that it is a cut or an error.
    taking.look()?;
    Ok(())
}

/// Waits for the answers to what only the connections themselves have asked, which tell whether a
/// transaction can be begun again.
pub(in crate::xact) fn settle_down(connections: &[&Rc<Cached>]) -> Result<()> {
    let busy: Vec<_> = connections
        .iter()
        .map(|connection| &****connection)
        .filter(|c| c.in_transaction() && !c.is_drained() && !c.is_at_work())
        .collect();
    wait_for(&busy, |c| c.is_drained() || c.is_doomed(), Interrupts::Raise, WaitEvent::Snapshot)
}

/// A cut.
pub struct Accepted {
    /// How often snapshots were waited for.
    pub rounds: u64,
    /// Its snapshots, where cursors that are opened later may show more.
    pub shown: Vec<Shown>,
}

/// Snapshots on their way to be one cut.
pub struct Taking {
    members: Vec<Member>,
    /// That of each member.
    kinds: Vec<Kind>,
    /// What was read before, and has to fit.
    before: Vec<Shown>,
    opened: Opened,
    rounds: u64,
    began: Instant,
    deadline: Instant,
    /// This server's own tables, where they are part of it.
    local: Option<Local>,
    /// Closed while a few rounds are taken.
    window: Option<Closed>,
}

impl Taking {
    /// Asks for the first snapshots, without waiting.
    ///
    /// # Errors
    /// Those of [`super::before_statement`].
    pub(super) fn begin(members: &[Member], terms: Terms) -> Result<Self> {
        if in_recovery() {
            return Err(in_recovery_here());
        }
        settle_down(&members.iter().map(|member| &member.connection).collect::<Vec<_>>())?;
        let taking = Self::over(members, terms)?;
        taking.ask()?;
        Ok(taking)
    }

    /// Opens further cursors on a server where each statement has its own snapshot.
    ///
    /// # Errors
    /// Those of [`super::before_statement`].
    pub(super) fn behind(member: &Member, before: Vec<Shown>, terms: Terms) -> Result<Self> {
        let mut taking = Self::over(std::slice::from_ref(member), terms)?;
        taking.opened = before.iter().map(|shown| shown.opened).fold(taking.opened, Ord::min);
        taking.before = before;
        taking.ask()?;
        Ok(taking)
    }

    /// Waits until they are a cut.
    ///
    /// # Errors
    /// Those of [`super::before_statement`].
    pub(super) fn finish(mut self) -> Result<Accepted> {
        loop {
            self.wait()?;
            self.rounds += 1;
            match self.look()? {
                None => return self.accept(),
                Some(missing) => self.pause(&missing)?,
            }
            self.ask()?;
        }
    }

    fn accept(&self) -> Result<Accepted> {
        let cut = LAST.get().get() + 1;
        LAST.get().set(cut);
        reads::add(Count::Cuts, 1);
        reads::add(Count::Rounds, self.rounds);
        self.members.iter().for_each(|member| member.connection.set_cut(cut));
        let may_show_more = self.kinds.contains(&Kind::PerStatement);
        let shown = if may_show_more { self.shown()? } else { Vec::new() };
        Ok(Accepted { rounds: self.rounds, shown })
    }

    fn over(members: &[Member], terms: Terms) -> Result<Self> {
        let kinds =
            members.iter().map(|member| kind_of(member, terms)).collect::<Result<Vec<Kind>>>()?;
        // What was confirmed since the oldest snapshot was taken may be missing there.
        let is_kept = terms.may == May::Keep;
        let mut opened = if is_kept { terms.reading.first } else { order::now() };
        let fixed = members.iter().zip(&kinds).filter(|(_, kind)| **kind == Kind::Fixed);
        for (Member { connection, .. }, _) in fixed {
            wait_for(
                &[connection],
                |c| !c.awaits_snapshot() || c.is_doomed(),
                Interrupts::Raise,
                WaitEvent::Snapshot,
            )?;
            opened = opened.min(connection.snapshots()?.1);
        }
        let began = Instant::now();
        let deadline = began + guc::commit_timeout();
        let local = here::local()?;
        Ok(Self {
            members: members.to_vec(),
            kinds,
            before: Vec::new(),
            opened,
            rounds: 0,
            began,
            deadline,
            local,
            window: None,
        })
    }

    /// Those whose snapshots are taken.
    fn taken(&self) -> impl Iterator<Item = (&Member, Kind)> {
        let all = self.members.iter().zip(self.kinds.iter().copied());
        all.filter(|(_, kind)| *kind != Kind::Fixed)
    }

    /// Whether all of them are of transactions that can be begun again.
    pub(super) fn all_are_fresh(&self) -> bool {
        self.kinds.iter().all(|kind| *kind == Kind::Fresh)
    }

    /// Asks for all that are to be taken, together.
    fn ask(&self) -> Result<()> {
        for (Member { connection, userid }, kind) in self.taken() {
            let send = || match kind {
                Kind::PerStatement => connection.open_between_snapshots(self.opened, nest_level()),
                _ if is_serializable() => {
                    connection.take_snapshot(Isolation::Serializable, self.opened)
                }
                _ => connection.take_snapshot(Isolation::RepeatableRead, self.opened),
            };
            let sent = send();
            if sent.is_err()
                && connection.may_begin_anew()
                && cache::begin_anew(connection, *userid)?
            {
                send()?;
            } else {
                sent?;
            }
        }
        Ok(())
    }

    /// Waits for all of them.
    fn wait(&self) -> Result<()> {
        loop {
            let waiting: Vec<_> = self.taken().map(|(member, _)| &**member.connection).collect();
            wait_for(
                &waiting,
                |c| !c.awaits_snapshot() || c.is_doomed(),
                Interrupts::Raise,
                WaitEvent::Snapshot,
            )?;
            // An idle connection may have been cut without notice.
            let mut again = false;
            for (Member { connection, userid }, kind) in self.taken() {
                if connection.is_doomed()
                    && connection.may_begin_anew()
                    && cache::begin_anew(connection, *userid)?
                {
                    again = true;
                    // Its cursors were opened there without asking for snapshots.
                    if kind == Kind::PerStatement {
                        connection.open_between_snapshots(self.opened, nest_level())?;
                    }
                }
            }
            if !again {
                return Ok(());
            }
        }
    }

    /// What the servers show.
    fn shown(&self) -> Result<Vec<Shown>> {
        let mut shown = Vec::with_capacity(self.members.len());
        for (Member { connection, .. }, kind) in self.members.iter().zip(&self.kinds) {
            let (snapshots, opened) = connection.snapshots()?;
            let place = connection.place(connection.serverid.to_u32()).unwrap_or_default();
            let server = text::carried(&connection.server_name);
            let is_fixed = *kind == Kind::Fixed;
            shown.extend(snapshots.into_iter().map(|snapshot| Shown {
                taken: Taken { place, snapshot, is_fixed },
                opened,
                server: server.clone(),
            }));
        }
        Ok(shown)
    }

    /// Whether the snapshots are a cut: what is missing, if they are not.
    fn look(&mut self) -> Result<Option<Missing>> {
        let mut shown = self.shown()?;
        if let Some(standby) = self.members.iter().find(|m| m.connection.snapshot_is_of_standby()) {
            // Alone it is read as it is.
            if self.members.len() == 1 {
                return Ok(None);
            }
            return Err(in_recovery_there(&text::carried(&standby.connection.server_name)));
        }
        let before = self.before.iter().cloned();
        shown.extend(before.map(|s| Shown { taken: Taken { is_fixed: true, ..s.taken }, ..s }));
        let mut taken: Vec<Taken> = shown.iter().map(|shown| shown.taken.clone()).collect();
        if let Some(local) = &mut self.local {
            if let Some(gid) = local.look() {
                return Ok(Some(Missing::Delivery(gid)));
            }
            taken.push(local.taken.clone());
        }
        let places: Vec<Place> = taken.iter().map(|taken| taken.place).collect();
        ready::wait(&self.members, self.deadline)?;
        let here = self.local.as_ref().map(|local| &local.here);
        let Some(known) = order::known(self.opened, &places, here) else {
            if self.kinds.contains(&Kind::Fixed) || !self.before.is_empty() {
                return Err(too_old(
                    &self.names(),
                    "Too much has been committed since the first of them was read, or this server had just been started then.",
                ));
            }
            self.opened = order::now();
            return Ok(Some(Missing::Forgotten));
        };
        let rows: Vec<Row> = known.iter().map(|known| known.row).collect();
        match check(self.opened.at, &rows, &taken) {
            Verdict::Cut(_) => Ok(None),
            Verdict::Again(row) => {
                let is_it = |known: &&Known| known.row == row;
                let gid = known.iter().find(is_it).and_then(|known| known.gid);
                Ok(Some(gid.map_or(Missing::Xid(row.xid), Missing::Delivery)))
            }
            Verdict::TooOld(row) => {
                let is_here = |s: &&Shown| s.taken.is_fixed && s.taken.place.is_same(&row.place);
                let detail = shown.iter().find(is_here).map(|Shown { server, .. }| {
                    format!("Server \"{server}\" was read before a transaction was committed there that another of them shows, or has to show.")
                });
                let detail = detail.unwrap_or_else(|| {
                    "This server was read before a transaction was committed that has also written here, and that another of them shows, or has to show.".to_owned()
                });
                Err(too_old(&self.names(), &detail))
            }
        }
    }

    fn names(&self) -> String {
        let own = self.members.iter().map(|m| text::carried(&m.connection.server_name));
        let mut names: Vec<String> = Vec::new();
        for name in self.before.iter().map(|shown| shown.server.clone()).chain(own) {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        let quoted: Vec<String> = names.iter().map(|name| format!("\"{name}\"")).collect();
        match (&quoted[..], &self.local) {
            ([server], Some(_)) => format!("server {server} and this server"),
            ([server], None) => format!("cursors on server {server}"),
            (servers, _) => format!("servers {}", servers.join(", ")),
        }
    }

    /// Before the next round.
    fn pause(&mut self, missing: &Missing) -> Result<()> {
        if Instant::now() >= self.deadline {
            return Err(in_doubt(missing));
        }
        check_for_interrupts()?;
        if self.rounds == WITHOUT_WINDOW {
            // Enough for what is under way now, and for a few rounds after that.
            let round = self.began.elapsed() / WITHOUT_WINDOW as u32;
            self.window = Closed::close(4 * round + Duration::from_millis(5));
            reads::add(Count::Windows, u64::from(self.window.is_some()));
        }
        if self.rounds == AT_ONCE {
            resolvers::wake(my_database());
        }
        if let (true, Missing::Delivery(gid)) = (self.rounds == PATIENT, missing) {
            left::leave_unawaited(gid);
            resolvers::wake(my_database());
        }
        if self.rounds >= AT_ONCE {
            let exponent = (self.rounds - AT_ONCE).min(7) as u32;
            let pause = Duration::from_millis(1 << exponent).min(LONGEST_PAUSE);
            latch::wait(pause, WaitEvent::Snapshot);
            check_for_interrupts()?;
        }
        Ok(())
    }
}
