//! What may be in doubt on a server or in a database, and the refusal of a command that would make
//! it impossible to settle.

use pgrx::pg_sys::Oid;

use crate::hooks::second_look;
use crate::pg::error::{Error, Result, SqlState};
use crate::pg::globals::my_database;
use crate::shared::resolvers;
use crate::store::participant_list::{self, ParticipantRecord};

/// 55006: the object is in use.
pub const OBJECT_IN_USE: SqlState = SqlState::new(b"55006");

/// What is known of transactions that may be in doubt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Left {
    /// There are none.
    Nothing,
    /// There may be some.
    Something,
    /// Something has been prepared there, and the resolver has not looked since this server
    /// started: a crash may have left it.
    Unknown,
}

impl Left {
    /// Refuses a command that would make it impossible to settle them.
    ///
    /// # Errors
    /// 55006, unless nothing is left.
    pub fn refuse(self, what: impl FnOnce() -> String) -> Result<()> {
        let why = match self {
            Left::Nothing => return Ok(()),
            Left::Something => "transactions may be in doubt there",
            Left::Unknown => "the resolver has not looked for transactions in doubt there",
        };
        let error = Error::new(OBJECT_IN_USE, format!("cannot {} while {why}", what()));
        Err(match self {
            Left::Unknown => error
                .detail(
                    "Something may have been prepared there before this server started, and the resolver of \
                     the database has not started since.",
                )
                .hint(
                    "Wait for the resolver; if it does not start, see the server log. \
                     \"max_worker_processes\" must leave room for one worker per database that \
                     has the extension, and for one launcher.",
                ),
            _ => {
                error.detail("The resolver settles them as soon as it can reach the server.").hint(
                    "See pg_fdw_xacts and pg_stat_fdw_xacts. Give up a server that will never \
                     come back with pg_fdw_xacts_forget().",
                )
            }
        })
    }
}

/// What may be in doubt on a server of this database, prepared by one user or by any.
///
/// # Errors
/// A cancel.
pub fn left_on(serverid: Oid, userid: Option<Oid>) -> Result<Left> {
    // A PUBLIC mapping, whose user is invalid, concerns all users.
    let concerns = |other| userid.is_none_or(|user| user == Oid::INVALID || user == other);
    let found = second_look::finds(my_database(), true, |server, user| {
        server == serverid && user.is_none_or(concerns)
    })?;
    if found {
        return Ok(Left::Something);
    }
    Ok(left_by_list(|r| r.serverid == serverid && concerns(r.userid)))
}

/// What may be in doubt on any server of a database.
///
/// # Errors
/// A cancel.
pub fn left_in(dbid: Oid) -> Result<Left> {
    let own = dbid == my_database();
    if second_look::finds(dbid, own, |_, _| true)? {
        return Ok(Left::Something);
    }
    if own {
        return Ok(left_by_list(|_| true));
    }
    // Only its own sessions can read the list of another database.
    Ok(if resolvers::has_been_looked_at(dbid) { Left::Nothing } else { Left::Unknown })
}

/// What the durable list says of this database's participants that `which` picks, where shared
/// memory, which is empty after a start of the server, shows nothing yet.
fn left_by_list(which: impl Fn(&ParticipantRecord) -> bool) -> Left {
    if resolvers::is_up() || !participant_list::listed().iter().any(which) {
        Left::Nothing
    } else {
        resolvers::wake(my_database());
        Left::Unknown
    }
}
