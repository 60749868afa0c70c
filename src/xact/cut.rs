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
//! * [`ready`]: whether it is known of each server what is in doubt there;
//! * [`rounds`]: taking snapshots until they are a cut.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};

use pgrx::pg_sys::{EState, Oid};

use crate::pg::backend_local::BackendLocal;
use crate::pg::error::Result;
use crate::protocol::order::Opened;
use crate::remote::cache::Cached;
use crate::shared::order;
use crate::xact::participants;

mod ready;
mod rounds;
mod transaction;

pub use transaction::end;

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
    /// How often snapshots were waited for.
    rounds: Cell<u64>,
}

/// The units of the queries that run, each with the address of its executor state.
type Units = Vec<(usize, Weak<Unit>)>;

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
    if let Some(unit) = unit.filter(|unit| !unit.is_accepted.get() && !reading.is_one_unit) {
        let members = unit.members.borrow().clone();
        if members.len() > 1 {
            let rounds = rounds::take(&members, &reading)?;
            unit.rounds.set(unit.rounds.get() + rounds);
        }
        unit.accept();
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
            let rounds = rounds::take(&members, &reading)?;
            if let Some(unit) = unit {
                unit.rounds.set(unit.rounds.get() + rounds);
            }
        }
        return Ok(Some(reading.first));
    }
    if connection.in_transaction() {
        return Ok(None);
    }
    Ok(Some(order::now()))
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
