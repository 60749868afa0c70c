//! The participants of this backend's current transaction.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use pgrx::pg_sys::Oid;

use crate::pg::backend_local::BackendLocal;
use crate::pg::error::Result;
use crate::pg::text;
use crate::remote::cache::Cached;
use crate::remote::report;
use crate::xact::Attachment;
use crate::xact::branch::{Branch, Member};

/// One participant of the current transaction: a foreign server under one user mapping.
pub struct Participant {
    /// The session with it.
    pub connection: Rc<Cached>,
    /// The foreign server.
    pub serverid: Oid,
    /// The local user whose mapping is used; with a PUBLIC mapping the first that came.
    pub userid: Oid,
    branch: Branch,
}

impl Member for Participant {
    fn branch(&self) -> &Branch {
        &self.branch
    }

    fn connection(&self) -> Option<&Rc<Cached>> {
        Some(&self.connection)
    }

    fn server(&self) -> String {
        text::carried(&self.connection.server_name)
    }
}

impl Participant {
    /// Asks the participant whether this transaction has locked a table exclusively there.
    ///
    /// # Errors
    /// The remote's error, the lost connection, a cancel.
    pub fn holds_exclusive_lock(&self) -> Result<bool> {
        let sql = c"SELECT FROM pg_catalog.pg_locks WHERE pid = pg_catalog.pg_backend_pid() AND \
            locktype = 'relation' AND mode = 'AccessExclusiveLock' AND granted LIMIT 1";
        let locks = Attachment::of(&self.connection).run(sql, &[])?;
        if !locks.is_rows_of(0) {
            return Err(report::unexpected_answer(&self.connection.server_name));
        }
        Ok(locks.rows() > 0)
    }
}

static CURRENT: BackendLocal<RefCell<Vec<Rc<Participant>>>> =
    BackendLocal::new(RefCell::new(Vec::new()));

static ENDING: BackendLocal<Cell<bool>> = BackendLocal::new(Cell::new(false));

/// The transaction is ending: nobody can join any more.
pub fn set_ending(ending: bool) {
    ENDING.get().set(ending);
}

/// Whether the transaction is ending.
pub fn is_ending() -> bool {
    ENDING.get().get()
}

/// All of them, in the order in which they joined.
pub fn all() -> Vec<Rc<Participant>> {
    CURRENT.get().borrow().clone()
}

/// Whether the transaction has none.
pub fn is_empty() -> bool {
    CURRENT.get().borrow().is_empty()
}

/// Whether the server has joined under this user: each pair has one gid.
pub fn has(serverid: Oid, userid: Oid) -> bool {
    CURRENT.get().borrow().iter().any(|p| (p.serverid, p.userid) == (serverid, userid))
}

/// A connection joins the transaction.
pub fn join(connection: &Rc<Cached>, serverid: Oid, userid: Oid) {
    connection.use_in_transaction();
    CURRENT.get().borrow_mut().push(Rc::new(Participant {
        connection: Rc::clone(connection),
        serverid,
        userid,
        branch: Branch::new(),
    }));
}

/// Empties the list and returns who was on it.
pub fn take_all() -> Vec<Rc<Participant>> {
    std::mem::take(&mut *CURRENT.get().borrow_mut())
}
