//! Waits for participants that last longer than `deadlock_timeout`. Such a wait may be part of a
//! deadlock that no server sees whole: it is made known, and may be ended by a verdict.
//!
//! Who makes it known and where verdicts come from is given to this room ([`install`]).

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Instant;

use crate::pg::alarm;
use crate::pg::backend_local::BackendLocal;
use crate::pg::error::Result;
use crate::pg::globals::deadlock_timeout;
use crate::remote::Connection;
use crate::remote::cache::Cached;
use crate::remote::wait::{Interrupts, WaitEnd};

/// How a wait ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Manner {
    /// A verdict may end it.
    pub can_be_cancelled: bool,
    /// It ends when all connections have answered; or when one has.
    pub needs_all: bool,
}

/// What is done about a long wait.
#[derive(Clone, Copy)]
pub struct Hooks {
    /// Makes a wait for these connections known; returns its number. `None`: it is no part of a
    /// transaction.
    pub begin: fn(Manner, &[&Connection]) -> Option<u64>,
    /// Looks for a verdict on it, which is an error.
    pub check: fn(u64) -> Result<()>,
    /// It is over.
    pub end: fn(u64),
}

static HOOKS: BackendLocal<Cell<Option<Hooks>>> = BackendLocal::new(Cell::new(None));

/// Has long waits made known.
pub fn install(hooks: Hooks) {
    HOOKS.get().set(Some(hooks));
}

/// A wait that may turn out to be long. It is over when this is dropped.
pub struct LongWait {
    manner: Manner,
    stage: Stage,
}

enum Stage {
    /// It is not long yet.
    Until(Instant),
    /// It is known under this number.
    Known(Hooks, u64),
    /// Nobody is to know of it.
    Private,
}

impl LongWait {
    /// One that begins now, for all of some connections. Only waits that the transaction's outcome
    /// depends on can be part of a deadlock: of the others, which ignore cancels, there is nothing
    /// to know.
    pub fn begin(interrupts: Interrupts) -> Self {
        Self::since(Instant::now(), interrupts)
    }

    /// One that has begun before.
    pub fn since(begin: Instant, interrupts: Interrupts) -> Self {
        let stage = match interrupts {
            Interrupts::Raise => Stage::Until(begin + deadlock_timeout()),
            Interrupts::Return | Interrupts::Ignore => Stage::Private,
        };
        let manner = Manner { can_be_cancelled: true, needs_all: true };
        Self { manner, stage }
    }

    /// One that cannot be ended by a verdict.
    pub fn of_commit() -> Self {
        let manner = Manner { can_be_cancelled: false, needs_all: true };
        Self { manner, stage: Stage::Until(Instant::now() + deadlock_timeout()) }
    }

    /// Sleeps once, after an answer was looked for in vain. `sleep` does, until a moment if there
    /// is one; `awaited` are the connections.
    ///
    /// # Errors
    /// Those of `sleep`; the verdict.
    pub fn sleep<'c>(
        &mut self,
        deadline: Option<Instant>,
        sleep: impl FnOnce(Option<Instant>) -> Result<WaitEnd>,
        awaited: impl FnOnce() -> Vec<&'c Connection>,
    ) -> Result<WaitEnd> {
        match self.stage {
            Stage::Known(hooks, number) => (hooks.check)(number)?,
            Stage::Until(long) if deadline.is_none_or(|deadline| long < deadline) => {
                let end = sleep(Some(long))?;
                if end != WaitEnd::Deadline {
                    return Ok(end);
                }
                self.become_known(&awaited());
                return Ok(WaitEnd::Ready);
            }
            _ => {}
        }
        sleep(deadline)
    }

    fn become_known(&mut self, connections: &[&Connection]) {
        let known = HOOKS.get().get();
        let known = known.and_then(|h| Some((h, (h.begin)(self.manner, connections)?)));
        self.stage = known.map_or(Stage::Private, |(hooks, n)| Stage::Known(hooks, n));
    }
}

/// The wait of the executor, which sleeps by itself until one of many connections can be read.
static SLEEP: BackendLocal<RefCell<Option<LongWait>>> = BackendLocal::new(RefCell::new(None));

/// The executor is about to sleep until one of the connections can be read or the latch is set.
/// When it has been asleep for long, it is woken once: then this is called again. `awaited` are the
/// connections; `None`: there are others that are not known.
///
/// # Errors
/// A verdict.
pub fn executor_sleeps(awaited: impl FnOnce() -> Option<Vec<Rc<Cached>>>) -> Result<()> {
    let mut sleep = SLEEP.get().borrow_mut().take().unwrap_or_else(|| {
        let manner = Manner { can_be_cancelled: true, needs_all: false };
        LongWait { manner, stage: Stage::Until(Instant::now() + deadlock_timeout()) }
    });
    match sleep.stage {
        Stage::Known(hooks, number) => (hooks.check)(number)?,
        Stage::Until(long) => match long.checked_duration_since(Instant::now()) {
            Some(left) if !left.is_zero() => alarm::set(left)?,
            _ => match awaited() {
                Some(all) => sleep.become_known(&all.iter().map(|c| &***c).collect::<Vec<_>>()),
                None => sleep.stage = Stage::Private,
            },
        },
        Stage::Private => {}
    }
    SLEEP.get().replace(Some(sleep));
    Ok(())
}

/// The executor is awake, because it has something to do or because the statement has ended.
pub fn executor_wakes() {
    drop(SLEEP.get().borrow_mut().take());
}

impl Drop for LongWait {
    fn drop(&mut self) {
        if let Stage::Known(hooks, number) = self.stage {
            (hooks.end)(number);
        }
    }
}
