//! The commands that end a participant's transaction, each with the tag that confirms it.

use std::borrow::Cow;
use std::ffi::{CStr, CString};

use crate::protocol::gid::Gid;
use crate::protocol::participant::Outcome;

/// A command and the command tag with which the server says that it was done.
pub struct Command {
    /// What is sent.
    pub sql: Cow<'static, CStr>,
    /// What comes back.
    pub tag: &'static CStr,
}

impl Command {
    /// Commits in one phase.
    pub const COMMIT: Self = Self { sql: Cow::Borrowed(c"COMMIT"), tag: c"COMMIT" };
    /// Rolls back what is not prepared.
    pub const ROLLBACK: Self = Self { sql: Cow::Borrowed(c"ROLLBACK"), tag: c"ROLLBACK" };

    /// `verb`, which is also the tag, with a gid: digits and underscores, which need no quoting.
    fn with_gid(verb: &'static CStr, gid: &Gid) -> Self {
        let verb_text = verb.to_str().expect("ASCII");
        let sql = CString::new(format!("{verb_text} '{gid}'")).expect("no NUL in digits");
        Self { sql: Cow::Owned(sql), tag: verb }
    }
}

/// A gid with the commands that carry it, made before PREPARE is sent.
pub struct Prepared {
    /// The gid.
    pub gid: Gid,
    /// `PREPARE TRANSACTION 'gid'`.
    pub prepare: Command,
    commit: Command,
    rollback: Command,
}

impl Prepared {
    /// The commands for a gid.
    pub fn new(gid: Gid) -> Self {
        Self {
            gid,
            prepare: Command::with_gid(c"PREPARE TRANSACTION", &gid),
            commit: Command::with_gid(c"COMMIT PREPARED", &gid),
            rollback: Command::with_gid(c"ROLLBACK PREPARED", &gid),
        }
    }

    /// `COMMIT PREPARED 'gid'` or `ROLLBACK PREPARED 'gid'`.
    pub fn settling(&self, outcome: Outcome) -> &Command {
        match outcome {
            Outcome::Commit => &self.commit,
            Outcome::Abort => &self.rollback,
        }
    }
}
