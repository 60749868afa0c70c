//! Consistent reads: all servers that a unit reads are read as of one point in the order of
//! decisions ([`crate::protocol::cut`]).
//!
//! Under READ COMMITTED a unit is a query: all scans and direct modifications of one executor
//! state. Under REPEATABLE READ and SERIALIZABLE it is the transaction. Every remote transaction
//! tells its snapshot behind START TRANSACTION, which costs no wait. A unit of one server needs no
//! more. Where there are several, the first statement that is sent waits until all of them have told
//! their snapshots and those are found to be one cut ([`rounds`]).
//!
//! * [`transaction`]: whether the transaction reads consistently, and since when;
//! * [`here`]: this server's own tables;
//! * [`ready`]: whether it is known of each server what is in doubt there;
//! * [`rounds`]: taking snapshots until they are a cut.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};

use pgrx::pg_sys::{EState, Oid};

use crate::pg::backend_local::BackendLocal;
use crate::pg::error::Result;
use crate::pg::globals::uses_one_snapshot;
use crate::protocol::order::Opened;
use crate::remote::cache::Cached;
use crate::shared::order;
use crate::xact::attachment::{Attachment, attach};
use crate::xact::cut::rounds::May;
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
    /// The cut it was found to be; 0 before.
    cut: Cell<u64>,
    /// How often snapshots were waited for.
    rounds: Cell<u64>,
}

/// The units of the queries that run, each with the address of its executor state.
type Units = Vec<(usize, Weak<Unit>)>;

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
        let mut members = self.members.borrow_mut();
        if !members.iter().any(|member| Rc::ptr_eq(&member.connection, connection)) {
            members.push(Member { connection: Rc::clone(connection), userid });
        }
    }

    /// How often snapshots were waited for.
    pub fn rounds(&self) -> u64 {
        self.rounds.get()
    }

    /// From now on the snapshots of its members stay as they are, as long as it is read.
    fn accept(&self, cut: u64) {
        if self.cut.replace(cut) == 0 {
            self.members.borrow().iter().for_each(|member| member.connection.pin());
        }
    }
}

impl Drop for Unit {
    fn drop(&mut self) {
        if self.cut.get() != 0 {
            self.members.get_mut().iter().for_each(|member| member.connection.unpin());
        }
    }
}

/// Called before a statement is sent on a connection, for a query with that unit. Takes the cut,
/// where one is needed and there is none. Returns when the unit began, for START TRANSACTION if that
/// travels with the statement; `None` where reads are not consistent.
///
/// # Errors
/// 40001: the servers that were read before and this one show no common state; 55000: what is in
/// doubt keeps a cut from being taken; the remote's, the lost connection, a cancel.
pub fn before_statement(
    connection: &Rc<Cached>,
    userid: Oid,
    unit: Option<&Rc<Unit>>,
) -> Result<Option<Opened>> {
    let Some(reading) = transaction::reading() else { return Ok(None) };
    if let Some(unit) = unit.filter(|unit| unit.cut.get() == 0) {
        let members = unit.members.borrow().clone();
        if members.len() > 1 && !reading.is_one_unit {
            let taken = rounds::take(&members, &reading, May::Retake)?;
            unit.rounds.set(unit.rounds.get() + taken.rounds);
            unit.accept(taken.cut);
        }
    }
    if reading.is_one_unit {
        let mut members = participants_that_read();
        let mut add = |member: &Member| {
            let is_new = |known: &Member| !Rc::ptr_eq(&known.connection, &member.connection);
            if members.iter().all(is_new) {
                members.push(member.clone());
            }
        };
        add(&Member { connection: Rc::clone(connection), userid });
        if let Some(unit) = unit {
            unit.members.borrow().iter().for_each(add);
        }
        if members.len() > 1 {
            let taken = rounds::take(&members, &reading, May::Keep)?;
            if let Some(unit) = unit {
                unit.rounds.set(unit.rounds.get() + taken.rounds);
            }
        }
    }
    if connection.in_transaction() {
        return Ok(None);
    }
    let serverid = connection.serverid.to_u32();
    let place = connection.place(serverid);
    let (now, is_missing) = order::begin_on(serverid, place);
    let is_behind = match here::local()? {
        Some(local) => local.is_behind(connection.serverid, place),
        None => false,
    };
    if is_missing || is_behind {
        let member = Member { connection: Rc::clone(connection), userid };
        let may = if reading.is_one_unit { May::Keep } else { May::Retake };
        let taken = rounds::take(&[member], &reading, may)?;
        if let Some(unit) = unit {
            unit.rounds.set(unit.rounds.get() + taken.rounds);
        }
        return Ok(None);
    }
    if !reading.is_one_unit {
        return Ok(Some(now));
    }
    if uses_one_snapshot() {
        UNCHECKED.get().replace(Some(Member { connection: Rc::clone(connection), userid }));
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
    let member = UNCHECKED.get().take();
    match (member, transaction::reading()) {
        (Some(member), Some(reading)) if connection.cut() == 0 => {
            rounds::check_read(&member, &reading)
        }
        _ => Ok(()),
    }
}

/// The transaction has ended.
pub fn end() {
    UNCHECKED.get().take();
    transaction::end();
}

/// Takes one snapshot of these servers, with the mappings of this user, and of all that the
/// transaction has used before. It stays until the transaction ends, and whatever else is read joins
/// it.
///
/// # Errors
/// Those of [`before_statement`] and of [`attach`]; 25001: too late.
pub fn fix(userid: Oid, servers: &[Oid]) -> Result<()> {
    let (reading, was_one_unit) = transaction::make_one_unit()?;
    let attachments: Vec<Attachment> =
        servers.iter().map(|server| attach(userid, *server)).collect::<Result<_>>()?;
    let mut members = participants_that_read();
    for attachment in &attachments {
        let connection = attachment.shared_connection();
        if !members.iter().any(|member| Rc::ptr_eq(&member.connection, &connection)) {
            members.push(Member { connection, userid });
        }
    }
    if members.is_empty() {
        return Ok(());
    }
    let may = if was_one_unit { May::Keep } else { May::Retake };
    rounds::take(&members, &reading, may).map(drop)
}

/// Whether this transaction reads consistently.
pub fn is_on() -> bool {
    transaction::reading().is_some()
}

/// Those on which a remote transaction is open.
fn participants_that_read() -> Vec<Member> {
    let open = participants::all().into_iter().filter(|p| p.connection.in_transaction());
    open.map(|p| Member { connection: Rc::clone(&p.connection), userid: p.userid }).collect()
}
