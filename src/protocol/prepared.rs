//! The commands that prepare and settle a participant's transaction.

use std::ffi::CString;

use crate::protocol::gid::Gid;

/// What prepares and settles a participant, made before PREPARE is sent.
pub struct Prepared {
    /// Its gid.
    pub gid: Gid,
    /// `PREPARE TRANSACTION 'gid'`.
    pub prepare: CString,
    /// `COMMIT PREPARED 'gid'`.
    pub commit: CString,
    /// `ROLLBACK PREPARED 'gid'`.
    pub rollback: CString,
}

impl Prepared {
    /// The commands for a gid, which is digits and underscores: it needs no quoting.
    pub fn new(gid: Gid) -> Self {
        let command =
            |verb: &str| CString::new(format!("{verb} '{gid}'")).expect("no NUL in digits");
        Self {
            gid,
            prepare: command("PREPARE TRANSACTION"),
            commit: command("COMMIT PREPARED"),
            rollback: command("ROLLBACK PREPARED"),
        }
    }
}
