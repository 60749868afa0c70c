//! Consistent reads: all servers that a unit reads are read as of one point in the order of
//! decisions ([`crate::protocol::cut`]).
//!
//! Under READ COMMITTED a unit is a query: all scans and direct modifications of one executor
//! state. Under REPEATABLE READ and SERIALIZABLE it is the transaction. Every remote transaction
//! tells its snapshot behind START TRANSACTION, which costs no wait. A unit of one server needs no
//! more. Where there are several, the first statement that is sent waits until all of them have
//! told their snapshots and those are found to be one cut ([`rounds`]). Scans do not wait: what
//! they ask travels with the questions, and what is answered is thrown away if the snapshots turn
//! out to be no cut.
//!
//! * [`transaction`]: whether the transaction reads consistently, and since when;
//! * [`here`]: this server's own tables;
//! * [`ready`]: whether it is known of each server what is in doubt there;
//! * [`rounds`]: taking snapshots until they are a cut.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};

use pgrx::pg_sys::{EState, Oid};

use crate::pg::backend_local::BackendLocal;
use crate::pg::error::{Error, Result, SqlState};
use crate::pg::globals::{nest_level, uses_one_snapshot};
use crate::protocol::order::Opened;
use crate::remote::cache::Cached;
use crate::shared::order;
use crate::xact::attachment::{Attachment, attach};
use crate::xact::cut::rounds::{May, Taking};
use crate::xact::cut::transaction::Reading;
use crate::xact::participants;

mod here;
mod ready;
mod rounds;
mod transaction;

/// A connection with the user whose mapping it was attached with.
#[derive(Clone)]
struct Member {
    connection: Rc<Cached>,
    userid: Oid,
}

/// What is read together.
#[derive(Default)]
pub struct Unit {
    members: RefCell<Vec<Member>>,
    /// Its snapshots are what it reads, and found to be one cut if they are several.
    is_accepted: Cell<bool>,
    /// The snapshots that have been asked for, together with the first statements.
    pending: RefCell<Option<Taking>>,
    /// They were no cut.
    has_failed: Cell<bool>,
    /// How often they were taken.
    rounds: Cell<u64>,
    /// How often they were waited for, apart from the statements.
    waits: Cell<u64>,
    /// Changes when transactions were begun again in which statements had been sent.
    epoch: Cell<u64>,
    /// Something else than scans belongs to it: it must not run before the cut is known.
    is_eager: Cell<bool>,
}

/// The units of the queries that run, each with the address of its executor state.
type Units = Vec<(usize, Weak<Unit>)>;

/// The unit whose snapshots have been asked for together with its statements.
static PENDING: BackendLocal<RefCell<Option<Weak<Unit>>>> = BackendLocal::new(RefCell::new(None));

/// The first server of the transaction, until it has been checked.
static UNCHECKED: BackendLocal<RefCell<Option<Member>>> = BackendLocal::new(RefCell::new(None));

static UNITS: BackendLocal<RefCell<Units>> = BackendLocal::new(RefCell::new(Vec::new()));

impl Unit {
    /// That of a query.
    pub fn of_query(estate: *const EState) -> Rc<Self> {
        let mut units = UNITS.get().borrow_mut();
        // A query that has ended has dropped its unit; another may have its address now.
        units.retain(|(_, unit)| unit.strong_count() > 0);
        let address = estate.addr();
        let found =
            units.iter().find(|(of, _)| *of == address).and_then(|(_, unit)| unit.upgrade());
        found.unwrap_or_else(|| {
            let unit = Rc::new(Self::default());
            units.push((address, Rc::downgrade(&unit)));
            unit
        })
    }

    /// The query will read on this connection.
    pub fn add(&self, connection: &Rc<Cached>, userid: Oid) {
        let member = Member { connection: Rc::clone(connection), userid };
        add_to(&mut self.members.borrow_mut(), &member);
    }

    /// The query does more than scan: nothing of it runs before the cut is known.
    pub fn set_eager(&self) {
        self.is_eager.set(true);
    }

    /// How often snapshots were taken.
    pub fn rounds(&self) -> u64 {
        self.rounds.get()
    }

    /// How often they were waited for, apart from the statements.
    pub fn waits(&self) -> u64 {
        self.waits.get()
    }

    /// Changes when statements that had been sent have to be sent again.
    pub fn epoch(&self) -> u64 {
        self.epoch.get()
    }

    /// Called when a scan's answer has come, before anybody sees its rows: waits until the
    /// snapshots that were asked for with it are known to be a cut. Whether it has to be asked
    /// again.
    ///
    /// # Errors
    /// Those of [`before_statement`].
    pub fn settle(&self) -> Result<bool> {
        let Some(taking) = self.pending.take() else {
            return if self.has_failed.get() { Err(caught()) } else { Ok(false) };
        };
        // A function of the query may catch the error, and the query go on.
        self.has_failed.set(true);
        let rounds = taking.finish()?;
        self.has_failed.set(false);
        // The first round was sent with the statements.
        self.note(rounds, rounds - 1);
        self.accept();
        let is_moved = rounds > 1;
        self.epoch.set(self.epoch.get() + u64::from(is_moved));
        Ok(is_moved)
    }

    fn note(&self, rounds: u64, waits: u64) {
        self.rounds.set(self.rounds.get() + rounds);
        self.waits.set(self.waits.get() + waits);
    }

    /// From now on the snapshots of its members stay as they are, as long as it is read.
    fn accept(&self) {
        if !self.is_accepted.replace(true) {
            self.members.borrow().iter().for_each(|member| member.connection.pin());
        }
    }
}

impl Drop for Unit {
    fn drop(&mut self) {
        if self.is_accepted.get() {
            self.members.get_mut().iter().for_each(|member| member.connection.unpin());
        }
    }
}

/// Called before a statement is sent on a connection, for a query with that unit. Takes the cut,
/// where one is needed and there is none; where it `is_scan` and the query only scans, asks for the
/// snapshots, and [`Unit::settle`] has to follow. Returns when the unit began, for START
/// TRANSACTION if that travels with the statement; `None` where reads are not consistent.
///
/// # Errors
/// 40001: the servers that were read before and this one show no common state; 55000: what is in
/// doubt keeps a cut from being taken; the remote's, the lost connection, a cancel.
pub fn before_statement(
    connection: &Rc<Cached>,
    userid: Oid,
    unit: Option<&Rc<Unit>>,
    is_scan: bool,
) -> Result<Option<Opened>> {
    let Some(reading) = transaction::reading() else { return Ok(None) };
    settle_another(unit)?;
    let own = || Member { connection: Rc::clone(connection), userid };
    let mut members = Vec::new();
    if reading.is_one_unit {
        members = participants_that_read();
        add_to(&mut members, &own());
    }
    if let Some(unit) = unit.filter(|unit| !unit.is_accepted.get() || reading.is_one_unit) {
        unit.members.borrow().iter().for_each(|member| add_to(&mut members, member));
    }
    if members.len() > 1 && rounds::known(&members).is_none() {
        let may = if reading.is_one_unit { May::Keep } else { May::Retake };
        take_for(unit, &members, &reading, may, is_scan)?;
    }
    if unit.is_some_and(|unit| unit.pending.borrow().is_some()) {
        return Ok(None);
    }
    if connection.is_left_over() {
        take_for(unit, &[own()], &reading, May::Retake, false)?;
    }
    if let Some(unit) = unit {
        unit.accept();
    }
    if connection.in_transaction() {
        return Ok(None);
    }
    alone(own(), unit, &reading)
}

/// A statement of another query, which a function of this one runs: nothing may move what it reads
/// any more.
fn settle_another(unit: Option<&Rc<Unit>>) -> Result<()> {
    let pending = PENDING.get().borrow().as_ref().and_then(Weak::upgrade);
    let is_it = |pending: &Rc<Unit>| unit.is_some_and(|unit| Rc::ptr_eq(unit, pending));
    pending.filter(|pending| !is_it(pending)).map_or(Ok(()), |pending| pending.settle().map(drop))
}

fn caught() -> Error {
    Error::new(
        SqlState::T_R_SERIALIZATION_FAILURE,
        "could not serialize access: the foreign servers of the query have no common snapshot",
    )
    .detail("A function of the query has caught the error that tells why.")
}

fn add_to(members: &mut Vec<Member>, member: &Member) {
    if !members.iter().any(|known| Rc::ptr_eq(&known.connection, &member.connection)) {
        members.push(member.clone());
    }
}

/// Takes the cut of some servers, or begins to.
fn take_for(
    unit: Option<&Rc<Unit>>,
    members: &[Member],
    reading: &Reading,
    may: May,
    is_scan: bool,
) -> Result<()> {
    let Some(unit) = unit else { return rounds::take(members, reading, may).map(drop) };
    if unit.pending.borrow().is_some() {
        // Another scan has asked.
        return if is_scan { Ok(()) } else { unit.settle().map(drop) };
    }
    let taking = Taking::begin(members, reading, may)?;
    // With a savepoint other cursors are opened, which must not be lost in another round.
    let may_be_sent_again = is_scan && !unit.is_eager.get() && nest_level() == 1;
    if may_be_sent_again && taking.all_are_fresh() {
        unit.pending.replace(Some(taking));
        PENDING.get().replace(Some(Rc::downgrade(unit)));
        return Ok(());
    }
    let rounds = taking.finish()?;
    unit.note(rounds, rounds);
    Ok(())
}

/// The transaction begins on a server that is read by itself.
fn alone(own: Member, unit: Option<&Rc<Unit>>, reading: &Reading) -> Result<Option<Opened>> {
    let serverid = own.connection.serverid;
    let place = own.connection.place(serverid.to_u32());
    let (now, is_missing) = order::begin_on(serverid, place);
    let is_behind = match here::local()? {
        Some(local) => local.is_behind(serverid, place),
        None => false,
    };
    if is_missing || is_behind {
        let may = if reading.is_one_unit { May::Keep } else { May::Retake };
        take_for(unit, &[own], reading, may, false)?;
        return Ok(None);
    }
    if !reading.is_one_unit {
        return Ok(Some(now));
    }
    if uses_one_snapshot() {
        UNCHECKED.get().replace(Some(own));
    }
    Ok(Some(reading.first))
}

/// Called when a statement has been answered. The first server of a transaction that has one
/// snapshot was not waited for: whether it shows what this server's own tables show is seen now,
/// before anybody sees its rows.
///
/// # Errors
/// 40001: it does not; those of [`before_statement`].
pub fn after_answer(connection: &Rc<Cached>) -> Result<()> {
    let is_it = |member: &Member| Rc::ptr_eq(&member.connection, connection);
    if !UNCHECKED.get().borrow().as_ref().is_some_and(is_it) {
        return Ok(());
    }
    let member = UNCHECKED.get().borrow().clone();
    match (member, transaction::reading()) {
        (Some(member), Some(reading)) if connection.cut() == 0 => {
            rounds::check_read(&member, &reading)?;
        }
        _ => {}
    }
    // Not before: an error may be caught, and the server read again.
    UNCHECKED.get().take();
    Ok(())
}

/// The transaction has ended.
pub fn end() {
    UNCHECKED.get().take();
    PENDING.get().take();
    transaction::end();
}

/// Takes one snapshot of these servers, with the mappings of this user, and of all that the
/// transaction has used before. It stays until the transaction ends, and whatever else is read
/// joins it.
///
/// # Errors
/// Those of [`before_statement`] and of [`attach`]; 25001: too late.
pub fn fix(userid: Oid, servers: &[Oid]) -> Result<()> {
    let (reading, was_one_unit) = transaction::make_one_unit()?;
    let attachments: Vec<Attachment> =
        servers.iter().map(|server| attach(userid, *server)).collect::<Result<_>>()?;
    let mut members = participants_that_read();
    for attachment in &attachments {
        add_to(&mut members, &Member { connection: attachment.shared_connection(), userid });
    }
    if members.is_empty() {
        return Ok(());
    }
    let may = if was_one_unit { May::Keep } else { May::Retake };
    rounds::take(&members, &reading, may).map(drop)
}

/// Whether this transaction reads consistently, or may turn out to with its first statement.
pub fn may_be_on() -> bool {
    transaction::may_be_on()
}

/// Whether this transaction reads consistently.
pub fn is_on() -> bool {
    transaction::reading().is_some()
}

/// Those on which a remote transaction is open, and something was sent in it or will be.
fn participants_that_read() -> Vec<Member> {
    let is_read = |c: &Cached| c.in_transaction() && !c.is_left_over();
    let open = participants::all().into_iter().filter(|p| is_read(&p.connection));
    open.map(|p| Member { connection: Rc::clone(&p.connection), userid: p.userid }).collect()
}
