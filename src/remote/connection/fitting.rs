//! Whether an answer can be one to a command of the connection's own. Any other shows that what
//! comes is not what was asked for, and none of it may be believed: a question for the xid that is
//! answered without a row does not say that there is none.

use std::ffi::CStr;

use super::state::Broken;
use super::{Connection, setup};
use crate::libpq::{PgResult, Status};
use crate::protocol::pipeline::{Control, Kind};

/// Whether this can be what a server says to `control`.
pub(super) fn fits(control: Control, kind: Kind, result: &PgResult) -> bool {
    match kind {
        Kind::Done => is_done(control, result),
        Kind::Failed => result.status() == Status::Error,
        // The queue of answers knows.
        Kind::Skipped | Kind::Sync => true,
    }
}

/// Whether this can be what a server says when it has done `control`.
fn is_done(control: Control, result: &PgResult) -> bool {
    let tag = result.command_tag().to_bytes();
    let has_row_of = |columns| result.is_rows_of(columns) && result.rows() == 1;
    let number = |text: &CStr| text.to_str().ok()?.parse::<u64>().ok();
    match control {
        Control::Setup if result.status() == Status::CommandOk => tag.is_empty(),
        Control::Setup => {
            result.rows() == 1
                && setup::fingerprint(result).is_some()
                && setup::started(result).is_some()
                && setup::server_pid(result).is_some()
        }
        Control::SessionLock | Control::Snapshot => has_row_of(2),
        Control::LockCheck => has_row_of(1),
        Control::XidProbe => {
            has_row_of(1) && result.value(0, 0).is_none_or(|text| number(text).is_some())
        }
        Control::Begin => matches!(tag, b"START TRANSACTION" | b"BEGIN"),
        Control::Savepoint(_) => tag == b"SAVEPOINT",
        Control::EndSavepoint(_) => tag == b"RELEASE",
        Control::UndoSavepoint => matches!(tag, b"ROLLBACK" | b"RELEASE"),
        Control::Constraints => tag == b"SET CONSTRAINTS",
        Control::Ending => matches!(tag, b"COMMIT" | b"ROLLBACK"),
        Control::Delivery => tag == b"COMMIT PREPARED",
        // Nothing depends on what it says.
        Control::Cleanup => true,
    }
}

impl Connection {
    /// Something has come that cannot be an answer to what was asked: from now on nothing is one.
    pub fn distrust(&self) {
        self.broken.set(Some(Broken::OutOfStep));
    }
}
