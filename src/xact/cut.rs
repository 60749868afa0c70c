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
//! * [`kind`]: how each server gets its snapshot;
//! * [`shown`]: what was read and has to fit what is read later;
//! * [`rounds`]: taking snapshots until they are a cut; [`refusals`]: why there is none.

use std::cell::RefCell;
use std::rc::{Rc, Weak};

use pgrx::pg_sys::Oid;

use crate::pg::backend_local::BackendLocal;
use crate::pg::error::{Error, Result, SqlState};
use crate::pg::globals::{nest_level, uses_one_snapshot};
use crate::protocol::order::Opened;
use crate::protocol::place::Place;
use crate::remote::cache::Cached;
use crate::remote::connection::{Isolation, Opening};
use crate::shared::order;
use crate::xact::attachment::{Attachment, attach};
use crate::xact::cut::kind::{May, Terms};
use crate::xact::cut::transaction::Reading;
use crate::xact::unit::{Member, Unit, add_to};
use crate::xact::{participants, renewal};

mod here;
mod kind;
mod ready;
mod refusals;
mod rounds;
mod shown;
mod transaction;

pub(super) use rounds::{Taking, settle_down};
pub(super) use shown::Shown;

/// The unit whose snapshots have been asked for together with its statements.
static PENDING: BackendLocal<RefCell<Option<Weak<Unit>>>> = BackendLocal::new(RefCell::new(None));

/// The first server of the transaction, until it has been checked.
static UNCHECKED: BackendLocal<RefCell<Option<Member>>> = BackendLocal::new(RefCell::new(None));

/// Called when a scan's answer has come, before anybody sees its rows: waits until the snapshots
/// that were asked for with it are known to be a cut. Whether it has to be asked again.
///
/// # Errors
/// Those of [`before_statement`].
pub(super) fn settle(unit: &Unit) -> Result<bool> {
    let Some(taking) = unit.pending.take() else {
        return if unit.has_failed.get() { Err(caught()) } else { Ok(false) };
    };
    // A function of the query may catch the error, and the query go on.
    unit.has_failed.set(true);
    let rounds = taking.finish()?.rounds;
    unit.has_failed.set(false);
    // The first round was sent with the statements.
    unit.note(rounds, rounds - 1);
    unit.accept();
    let is_moved = rounds > 1;
    unit.epoch.set(unit.epoch.get() + u64::from(is_moved));
    Ok(is_moved)
}

/// What is sent on a connection.
pub struct Statement<'a> {
    /// Where.
    pub connection: &'a Rc<Cached>,
    /// The user whose mapping it was attached with.
    pub userid: Oid,
    /// That of the query that it belongs to.
    pub unit: Option<&'a Rc<Unit>>,
    /// The cursor that it is about, unless that locks rows: it shows what was committed when it was
    /// opened.
    pub scan: Option<&'a Rc<Opening>>,
}

impl Statement<'_> {
    fn member(&self) -> Member {
        Member { connection: Rc::clone(self.connection), userid: self.userid }
    }
}

/// Called before a statement is sent on a connection. Takes the cut, where one is needed and there
/// is none; where it is a scan and the query only scans, asks for the snapshots, and [`settle`] has
/// to follow. Returns when the unit began, for START TRANSACTION if that travels with the
/// statement; `None` where reads are not consistent.
///
/// # Errors
/// 40001: the servers that were read before and this one show no common state; 55000: what is in
/// doubt keeps a cut from being taken; the remote's, the lost connection, a cancel.
pub(super) fn before_statement(statement: &Statement) -> Result<Option<Opened>> {
    let &Statement { connection, unit, scan, .. } = statement;
    let Some(reading) = transaction::reading() else {
        renewal::before_statement(connection, unit)?;
        return Ok(None);
    };
    settle_another(unit)?;
    if unit.is_some_and(|unit| unit.has_failed.get()) {
        return Err(caught());
    }
    let own = || statement.member();
    let anew = Terms { unit, reading: &reading, may: May::Retake };
    let is_first = unit.is_some_and(|unit| !unit.has_begun_on(connection));
    let mut members = Vec::new();
    if reading.is_one_unit {
        members = participants_that_read();
        add_to(&mut members, &own());
    }
    if let Some(unit) = unit.filter(|unit| !unit.is_accepted.get() || reading.is_one_unit) {
        unit.members.borrow().iter().for_each(|member| add_to(&mut members, member));
    }
    let is_pending = unit.is_some_and(|unit| unit.pending.borrow().is_some());
    // With a cut under way they were looked at when it began, and what they ask is its question.
    if is_first && !is_pending {
        // What they still ask for themselves does not tell what they have to lose.
        settle_down(&members.iter().map(|member| &member.connection).collect::<Vec<_>>())?;
    }
    let needs_cut = needs_cut(&members, &reading, unit);
    if needs_cut {
        announce(connection, scan);
        let may = if reading.is_one_unit { May::Keep } else { May::Retake };
        take_for(&members, Terms { unit, reading: &reading, may }, scan.is_some())?;
    }
    if unit.is_some_and(|unit| unit.pending.borrow().is_some()) {
        return Ok(None);
    }
    if connection.is_left_over() {
        take_for(&[own()], anew, false)?;
    } else if !needs_cut {
        renewal::renew(connection, unit, is_first)?;
    }
    if let (Some(unit), Some(opening)) = (unit, scan) {
        open_later(unit, connection, opening, anew)?;
    }
    if let Some(unit) = unit {
        unit.begins_on(connection);
        unit.accept();
    }
    if !connection.in_transaction() {
        return alone(own(), unit, &reading);
    }
    if is_first
        && sees_anew(connection)
        && order::begin_on(connection.serverid, place(connection)).1
    {
        take_for(&[own()], anew, false)?;
    }
    Ok(None)
}

/// Whether each statement on the connection has a snapshot of its own.
fn sees_anew(connection: &Cached) -> bool {
    connection.isolation() == Some(Isolation::ReadCommitted)
}

/// Whether snapshots of these servers have to be taken before something of the unit is sent.
fn needs_cut(members: &[Member], reading: &Reading, unit: Option<&Rc<Unit>>) -> bool {
    let is_new = !reading.is_one_unit && unit.is_some_and(|unit| !unit.is_accepted.get());
    let has_several_snapshots = |Member { connection, .. }: &Member| {
        renewal::isolation_of_query(connection, unit) == Isolation::ReadCommitted
            && unit.is_some_and(|unit| unit.has_several_cursors_on(connection))
    };
    // What another query has read is older than this one.
    let is_old = |member: &Member| {
        let connection = &member.connection;
        renewal::follows_statements(connection)
            && (sees_anew(connection) || connection.has_nothing_to_lose())
    };
    match members {
        [] => false,
        [member] => is_new && has_several_snapshots(member),
        members => rounds::known(members).is_none() || is_new && members.iter().any(is_old),
    }
}

/// The cursor is opened with the snapshot that is taken, where each cursor has its own.
fn announce(connection: &Cached, scan: Option<&Rc<Opening>>) {
    if let Some(opening) = scan.filter(|opening| opening.sent.get().is_none()) {
        connection.announce(opening);
    }
}

/// Opens a cursor whose parameters were not known when the cut was taken. On a server where each
/// cursor has its own snapshot it must show nothing that the cut does not.
fn open_later(
    unit: &Rc<Unit>,
    connection: &Rc<Cached>,
    opening: &Rc<Opening>,
    terms: Terms,
) -> Result<()> {
    let is_checked = unit.is_accepted.get() && !unit.shown.borrow().is_empty();
    if !is_checked || opening.sent.get().is_some() || !sees_anew(connection) {
        return Ok(());
    }
    announce(connection, Some(opening));
    let is_it = |member: &&Member| Rc::ptr_eq(&member.connection, connection);
    let Some(member) = unit.members.borrow().iter().find(is_it).cloned() else { return Ok(()) };
    let before = unit.shown.borrow().clone();
    let taken = Taking::behind(&member, before, terms)?.finish()?;
    unit.note(taken.rounds, taken.rounds);
    Shown::add(&mut unit.shown.borrow_mut(), taken.shown);
    Ok(())
}

/// A statement of another query, which a function of this one runs: nothing may move what it reads
/// any more.
///
/// # Errors
/// Those of [`before_statement`].
pub(super) fn settle_another(unit: Option<&Rc<Unit>>) -> Result<()> {
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

/// Takes the cut of some servers, or begins to.
fn take_for(members: &[Member], terms: Terms, is_scan: bool) -> Result<()> {
    let Some(unit) = terms.unit else { return rounds::take(members, terms) };
    if unit.pending.borrow().is_some() {
        // Another scan has asked.
        return if is_scan { Ok(()) } else { unit.settle().map(drop) };
    }
    let taking = Taking::begin(members, terms)?;
    // With a savepoint other cursors are opened, which must not be lost in another round.
    let may_be_sent_again = is_scan && !unit.is_eager() && nest_level() == 1;
    if may_be_sent_again && taking.all_are_fresh() {
        unit.pending.replace(Some(taking));
        PENDING.get().replace(Some(Rc::downgrade(unit)));
        return Ok(());
    }
    let taken = taking.finish()?;
    unit.note(taken.rounds, taken.rounds);
    unit.shown.replace(taken.shown);
    Ok(())
}

fn place(connection: &Cached) -> Option<Place> {
    connection.place(connection.serverid.to_u32())
}

/// The transaction begins on a server that is read by itself.
fn alone(own: Member, unit: Option<&Rc<Unit>>, reading: &Reading) -> Result<Option<Opened>> {
    let serverid = own.connection.serverid;
    let place = place(&own.connection);
    let (now, is_missing) = order::begin_on(serverid, place);
    let is_behind = match here::local()? {
        Some(local) => local.is_behind(serverid, place),
        None => false,
    };
    if is_missing || is_behind {
        let may = if reading.is_one_unit { May::Keep } else { May::Retake };
        take_for(&[own], Terms { unit, reading, may }, false)?;
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
    rounds::take(&members, Terms { unit: None, reading: &reading, may })
}

/// Whether all servers of this transaction are one unit.
pub fn is_one_unit() -> bool {
    transaction::is_one_unit()
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
