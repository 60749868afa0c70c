//! A unit: what one query does on its foreign servers, and what it reads there together.
//!
//! All scans and modifications of one executor state share it. They join when the executor
//! initialises their nodes, which is before the first row of any of them is asked for.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};

use pgrx::pg_sys::{EState, Oid};

use crate::pg::backend_local::BackendLocal;
use crate::pg::error::Result;
use crate::remote::cache::Cached;
use crate::remote::connection::Opening;
use crate::xact::cut::{self, Shown, Taking};

/// A connection with the user whose mapping it was attached with.
#[derive(Clone)]
pub struct Member {
    pub(super) connection: Rc<Cached>,
    pub(super) userid: Oid,
}

/// What is read together.
#[derive(Default)]
pub struct Unit {
    pub(super) members: RefCell<Vec<Member>>,
    /// Connections with scans of the query, each with whether cursors are opened there at different
    /// times.
    scans: RefCell<Vec<(Rc<Cached>, bool)>>,
    /// Cursors that show what is there when the query begins.
    to_open: RefCell<Vec<(Member, Weak<Opening>)>>,
    /// Connections on which a statement of the query was sent, whose snapshots it needs from then
    /// on.
    pinned: RefCell<Vec<Rc<Cached>>>,
    /// Its snapshots are what it reads, and found to be one cut if they are several.
    pub(super) is_accepted: Cell<bool>,
    /// The snapshots that have been asked for, together with the first statements.
    pub(super) pending: RefCell<Option<Taking>>,
    /// They were no cut.
    pub(super) has_failed: Cell<bool>,
    /// How often they were taken.
    rounds: Cell<u64>,
    /// How often they were waited for, apart from the statements.
    waits: Cell<u64>,
    /// Changes when transactions were begun again in which statements had been sent.
    pub(super) epoch: Cell<u64>,
    /// Something else than scans belongs to it: it must not run before the cut is known.
    is_eager: Cell<bool>,
    /// What its servers have shown, where a server may show more to a cursor that is opened later.
    pub(super) shown: RefCell<Vec<Shown>>,
}

/// The units of the queries that run, each with the address of its executor state.
type Units = Vec<(usize, Weak<Unit>)>;

static UNITS: BackendLocal<RefCell<Units>> = BackendLocal::new(RefCell::new(Vec::new()));

/// Adds a member, unless it is one.
pub(super) fn add_to(members: &mut Vec<Member>, member: &Member) {
    if !members.iter().any(|known| Rc::ptr_eq(&known.connection, &member.connection)) {
        members.push(member.clone());
    }
}

impl Unit {
    /// That of a query.
    pub fn of_query(estate: *const EState) -> Rc<Self> {
        Self::of_known_query(estate).unwrap_or_else(|| {
            let unit = Rc::new(Self::default());
            UNITS.get().borrow_mut().push((estate.addr(), Rc::downgrade(&unit)));
            unit
        })
    }

    /// That of a query, if it has one.
    pub(super) fn of_known_query(estate: *const EState) -> Option<Rc<Self>> {
        let mut units = UNITS.get().borrow_mut();
        // A query that has ended has dropped its unit; another may have its address now.
        units.retain(|(_, unit)| unit.strong_count() > 0);
        units.iter().find(|(of, _)| *of == estate.addr()).and_then(|(_, unit)| unit.upgrade())
    }

    /// A cursor is to be opened when all nodes of the query have begun.
    pub(super) fn opens(&self, member: Member, opening: &Rc<Opening>) {
        self.to_open.borrow_mut().push((member, Rc::downgrade(opening)));
    }

    /// Those cursors, once.
    pub(super) fn take_to_open(&self) -> Vec<(Member, Weak<Opening>)> {
        self.to_open.take()
    }

    /// The query will read on this connection, as of one time with all else that it reads.
    pub fn add(&self, connection: &Rc<Cached>, userid: Oid) {
        let member = Member { connection: Rc::clone(connection), userid };
        add_to(&mut self.members.borrow_mut(), &member);
    }

    /// The query has a scan on this connection. `is_reopened`: it may be opened again while the
    /// query runs; asked only where it is the first there.
    pub fn add_scan(&self, connection: &Rc<Cached>, is_reopened: impl FnOnce() -> bool) {
        let mut scans = self.scans.borrow_mut();
        match scans.iter_mut().find(|(known, _)| Rc::ptr_eq(known, connection)) {
            Some((_, opens_several)) => *opens_several = true,
            None => scans.push((Rc::clone(connection), is_reopened())),
        }
    }

    /// Whether one cursor is all that the query opens on a connection, so that it needs no snapshot
    /// of the transaction's.
    pub(super) fn has_one_cursor_on(&self, connection: &Rc<Cached>) -> bool {
        self.opens_several_on(connection) == Some(false)
    }

    /// Whether the query opens cursors on a connection at different times.
    pub(super) fn has_several_cursors_on(&self, connection: &Rc<Cached>) -> bool {
        self.opens_several_on(connection) == Some(true)
    }

    /// `None` where it has no scan.
    fn opens_several_on(&self, connection: &Rc<Cached>) -> Option<bool> {
        let scans = self.scans.borrow();
        scans.iter().find(|(known, _)| Rc::ptr_eq(known, connection)).map(|(_, several)| *several)
    }

    /// The query does more than scan: nothing of it runs before the cut is known.
    pub fn set_eager(&self) {
        self.is_eager.set(true);
    }

    /// Whether that was said.
    pub(super) fn is_eager(&self) -> bool {
        self.is_eager.get()
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
    /// Those of [`cut::before_statement`].
    pub fn settle(&self) -> Result<bool> {
        cut::settle(self)
    }

    pub(super) fn note(&self, rounds: u64, waits: u64) {
        self.rounds.set(self.rounds.get() + rounds);
        self.waits.set(self.waits.get() + waits);
    }

    /// From now on the transaction on a connection stays as it is, as long as the query runs.
    pub(super) fn begins_on(&self, connection: &Rc<Cached>) {
        if !self.has_begun_on(connection) {
            connection.pin();
            self.pinned.borrow_mut().push(Rc::clone(connection));
        }
    }

    /// Whether something of the query was sent on a connection, or its snapshot there is known.
    pub(super) fn has_begun_on(&self, connection: &Rc<Cached>) -> bool {
        self.pinned.borrow().iter().any(|known| Rc::ptr_eq(known, connection))
    }

    /// From now on the snapshots of its members stay as they are, as long as it is read.
    pub(super) fn accept(&self) {
        if !self.is_accepted.replace(true) {
            for member in &*self.members.borrow() {
                self.begins_on(&member.connection);
            }
        }
    }
}

impl Drop for Unit {
    fn drop(&mut self) {
        self.pinned.get_mut().iter().for_each(|connection| connection.unpin());
    }
}
