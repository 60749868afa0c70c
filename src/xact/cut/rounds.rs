//! Taking the snapshots of several servers until they are one cut.
//!
//! Each round waits for all servers at once. When the snapshots are no cut, all that nothing was
//! read from are taken again, never the late ones alone: one that is taken alone is a round trip
//! ahead of the others, and sees what they do not.

use std::cell::Cell;
use std::time::{Duration, Instant};

use super::here::{self, Local};
use super::transaction::Reading;
use super::{Member, ready};
use crate::guc;
use crate::pg::backend_local::BackendLocal;
use crate::pg::error::{Error, Result, SqlState, check_for_interrupts};
use crate::pg::globals::{in_recovery, is_serializable, my_database};
use crate::pg::wait_event::WaitEvent;
use crate::pg::{latch, text};
use crate::protocol::cut::{Row, Taken, Verdict, check};
use crate::protocol::gid::Gid;
use crate::protocol::order::Opened;
use crate::protocol::place::Place;
use crate::remote::cache;
use crate::remote::connection::Isolation;
use crate::remote::round::wait_for;
use crate::remote::wait::Interrupts;
use crate::shared::left;
use crate::shared::order::{self, Known};
use crate::shared::reads::{self, Count};
use crate::shared::resolvers;
use crate::shared::window::Closed;

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

/// What becomes of transactions that have begun, and have nothing to lose.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum May {
    /// They keep their snapshots, which belong to the transaction.
    Keep,
    /// They are begun again.
    Retake,
}

/// Makes the snapshots of these connections one cut. Those that something was read from stay as
/// they are; of the others the transactions are begun, or begun again. Returns how often snapshots
/// were waited for.
///
/// # Errors
/// Those of [`super::before_statement`].
pub(super) fn take(members: &[Member], reading: &Reading, may: May) -> Result<u64> {
    match known(members) {
        Some(_) => Ok(0),
        None => Taking::begin(members, reading, may)?.finish(),
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
    let mut taking = Taking::over(members, reading, May::Keep)?;
    // Nothing of it can be taken again, so that it is a cut or an error.
    taking.look()?;
    Ok(())
}

/// Waits for the answers to what only the connections themselves have asked, which tell whether a
/// transaction can be begun again.
fn settle_down(members: &[Member]) -> Result<()> {
    let busy: Vec<_> = members
        .iter()
        .map(|member| &**member.connection)
        .filter(|c| c.in_transaction() && !c.is_drained() && !c.is_at_work())
        .collect();
    wait_for(&busy, |c| c.is_drained() || c.is_doomed(), Interrupts::Raise, WaitEvent::Snapshot)
}

/// What is missing: a server does not see it yet.
enum Missing {
    /// What is still to be delivered.
    Delivery(Gid),
    /// What has committed there with this xid.
    Xid(u64),
    /// So much that not all of it is known any more.
    Forgotten,
}

/// Snapshots on their way to be one cut.
pub(super) struct Taking {
    members: Vec<Member>,
    /// For each member, whether its snapshot can be taken again.
    fresh: Vec<bool>,
    opened: Opened,
    isolation: Isolation,
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
    pub(super) fn begin(members: &[Member], reading: &Reading, may: May) -> Result<Self> {
        if in_recovery() {
            return Err(in_recovery_here());
        }
        settle_down(members)?;
        let taking = Self::over(members, reading, may)?;
        taking.ask()?;
        Ok(taking)
    }

    /// Waits until they are a cut; returns how often snapshots were waited for.
    ///
    /// # Errors
    /// Those of [`super::before_statement`].
    pub(super) fn finish(mut self) -> Result<u64> {
        loop {
            self.wait()?;
            self.rounds += 1;
            match self.look()? {
                None => return Ok(self.accept()),
                Some(missing) => self.pause(&missing)?,
            }
            self.ask()?;
        }
    }

    fn accept(&self) -> u64 {
        let cut = LAST.get().get() + 1;
        LAST.get().set(cut);
        reads::add(Count::Cuts, 1);
        reads::add(Count::Rounds, self.rounds);
        self.members.iter().for_each(|member| member.connection.set_cut(cut));
        self.rounds
    }

    fn over(members: &[Member], reading: &Reading, may: May) -> Result<Self> {
        let is_fresh = |member: &Member| {
            let connection = &member.connection;
            let may_be_read_anew = may == May::Retake || connection.is_left_over();
            !connection.in_transaction() || (may_be_read_anew && connection.may_retake())
        };
        let fresh: Vec<bool> = members.iter().map(is_fresh).collect();
        // What was confirmed since the oldest snapshot was taken may be missing there.
        let mut opened = if may == May::Keep { reading.first } else { order::now() };
        for (member, _) in members.iter().zip(&fresh).filter(|(_, fresh)| !**fresh) {
            let connection = &member.connection;
            wait_for(
                &[connection],
                |c| !c.awaits_snapshot() || c.is_doomed(),
                Interrupts::Raise,
                WaitEvent::Snapshot,
            )?;
            opened = opened.min(connection.snapshot()?.1);
        }
        let isolation =
            if is_serializable() { Isolation::Serializable } else { Isolation::RepeatableRead };
        let began = Instant::now();
        let deadline = began + guc::commit_timeout();
        let local = here::local()?;
        Ok(Self {
            members: members.to_vec(),
            fresh,
            opened,
            isolation,
            rounds: 0,
            began,
            deadline,
            local,
            window: None,
        })
    }

    fn fresh(&self) -> impl Iterator<Item = &Member> {
        self.members.iter().zip(&self.fresh).filter(|(_, fresh)| **fresh).map(|(m, _)| m)
    }

    /// Whether all of them can be taken again.
    pub(super) fn all_are_fresh(&self) -> bool {
        self.fresh.iter().all(|fresh| *fresh)
    }

    /// Asks for all fresh snapshots, together.
    fn ask(&self) -> Result<()> {
        for Member { connection, userid } in self.fresh() {
            let sent = connection.take_snapshot(self.isolation, self.opened);
            if sent.is_err()
                && connection.may_begin_anew()
                && cache::begin_anew(connection, *userid)?
            {
                connection.take_snapshot(self.isolation, self.opened)?;
            } else {
                sent?;
            }
        }
        Ok(())
    }

    /// Waits for all of them.
    fn wait(&self) -> Result<()> {
        loop {
            let waiting: Vec<_> = self.fresh().map(|member| &**member.connection).collect();
            wait_for(
                &waiting,
                |c| !c.awaits_snapshot() || c.is_doomed(),
                Interrupts::Raise,
                WaitEvent::Snapshot,
            )?;
            // An idle connection may have been cut without notice.
            let mut again = false;
            for Member { connection, userid } in self.fresh() {
                if connection.is_doomed() && connection.may_begin_anew() {
                    again |= cache::begin_anew(connection, *userid)?;
                }
            }
            if !again {
                return Ok(());
            }
        }
    }

    /// Whether the snapshots are a cut: what is missing, if they are not.
    fn look(&mut self) -> Result<Option<Missing>> {
        let mut taken = Vec::with_capacity(self.members.len());
        for (Member { connection, .. }, fresh) in self.members.iter().zip(&self.fresh) {
            let (snapshot, _) = connection.snapshot()?;
            if connection.snapshot_is_of_standby() {
                // Alone it is read as it is.
                if self.members.len() == 1 {
                    return Ok(None);
                }
                return Err(in_recovery_there(&text::carried(&connection.server_name)));
            }
            let place = connection.place(connection.serverid.to_u32()).unwrap_or_default();
            taken.push(Taken { place, snapshot, is_fixed: !fresh });
        }
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
            if !self.all_are_fresh() {
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
                let is_here = |(taken, _): &(&Taken, &Member)| {
                    taken.is_fixed && taken.place.is_same(&row.place)
                };
                let at = taken.iter().zip(&self.members).find(is_here);
                let server = at.map(|(_, m)| text::carried(&m.connection.server_name));
                let detail = server.map(|server| {
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
        let name = |m: &Member| format!("\"{}\"", text::carried(&m.connection.server_name));
        match self.members.as_slice() {
            [member] => format!("server {} and this server", name(member)),
            members => {
                format!("servers {}", members.iter().map(name).collect::<Vec<_>>().join(", "))
            }
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

fn too_old(servers: &str, detail: &str) -> Error {
    reads::add(Count::TooOld, 1);
    Error::new(
        SqlState::T_R_SERIALIZATION_FAILURE,
        format!("could not serialize access: {servers} have no common snapshot"),
    )
    .detail(detail)
    .hint("Try the transaction again. Servers that are read one after the other have one from the beginning if the transaction begins with pg_fdw_xacts_snapshot().")
}

fn in_doubt(missing: &Missing) -> Error {
    reads::add(Count::InDoubt, 1);
    let detail = match missing {
        Missing::Delivery(gid) => format!(
            "Prepared transaction '{gid}' is committed, and its server has not confirmed that."
        ),
        Missing::Xid(xid) => format!(
            "A transaction that has committed on a server, with xid {xid}, is not visible there."
        ),
        Missing::Forgotten => {
            "More has been committed meanwhile than is remembered for readers.".to_owned()
        }
    };
    Error::new(
        SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
        "could not take one snapshot of several foreign servers: a transaction is in doubt",
    )
    .detail(detail)
    .hint("See the view pg_fdw_xacts for the reason. With \"pg_fdw_xacts.consistent_reads\" set to off, servers are read as they are.")
}

fn in_recovery_there(server: &str) -> Error {
    Error::new(
        SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
        format!("could not take one snapshot of several foreign servers: server \"{server}\" is in recovery"),
    )
    .detail("The snapshot of a standby does not tell what is in progress.")
    .hint("Read it alone, read its primary, or set \"pg_fdw_xacts.consistent_reads\" to off.")
}

fn in_recovery_here() -> Error {
    Error::new(
        SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
        "could not take one snapshot of several foreign servers: this server is in recovery",
    )
    .detail("A standby does not know the order of its primary's decisions.")
    .hint("Ask the primary, or set \"pg_fdw_xacts.consistent_reads\" to off.")
}
