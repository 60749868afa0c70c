//! The participants of this backend's current transaction.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use pgrx::pg_sys::Oid;

use crate::pg::backend_local::BackendLocal;
use crate::protocol::participant::{Event, State};
use crate::remote::cache::Cached;

/// One participant of the current transaction: a foreign server under one user mapping.
pub struct Participant {
    /// The session.
    pub connection: Rc<Cached>,
    /// The foreign server.
    pub serverid: Oid,
    /// The local user whose mapping is used; with a PUBLIC mapping the first that came.
    pub userid: Oid,
    state: Cell<State>,
}

impl Participant {
    /// Where it is.
    pub fn state(&self) -> State {
        self.state.get()
    }

    /// Takes it further. An event that the state does not allow is a bug: it is raised before the
    /// decision by whoever looks at the result, and never loses a prepared participant.
    pub fn take(&self, event: Event) -> Result<(), crate::protocol::participant::Illegal> {
        self.state.set(self.state.get().on(event)?);
        Ok(())
    }
}

static CURRENT: BackendLocal<RefCell<Vec<Rc<Participant>>>> =
    BackendLocal::new(RefCell::new(Vec::new()));

/// All of them, in the order in which they joined.
pub fn all() -> Vec<Rc<Participant>> {
    CURRENT.get().borrow().clone()
}

/// Whether the transaction has none.
pub fn is_empty() -> bool {
    CURRENT.get().borrow().is_empty()
}

/// Whether a connection belongs to the current transaction.
pub fn uses(connection: &Rc<Cached>) -> bool {
    CURRENT.get().borrow().iter().any(|p| Rc::ptr_eq(&p.connection, connection))
}

/// A connection joins the transaction.
pub fn join(connection: &Rc<Cached>, serverid: Oid, userid: Oid) {
    CURRENT.get().borrow_mut().push(Rc::new(Participant {
        connection: Rc::clone(connection),
        serverid,
        userid,
        state: Cell::new(State::Active),
    }));
}

/// Ends the list and returns what it was.
pub fn take_all() -> Vec<Rc<Participant>> {
    std::mem::take(&mut *CURRENT.get().borrow_mut())
}
