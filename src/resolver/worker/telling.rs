//! What the log and the statistics are told of what is left on a participant: the transaction, the server, why, and what
//! will happen next. Once for each change, not for each attempt.

use std::collections::{HashMap, HashSet};
use std::ffi::CStr;

use pgrx::PgLogLevel;

use crate::guc;
use crate::pg::error::{Error, Result, SqlState};
use crate::protocol::gid::Gid;
use crate::protocol::verdict::Reason;
use crate::resolver::sweep::Swept;

/// So many transactions get a line each; of more that are left for one reason one line tells.
const LINES: usize = 10;

/// What the log has been told of one participant.
#[derive(Default)]
pub(super) struct Told {
    /// Why each transaction is left.
    left: HashMap<Gid, Vec<u8>>,
    /// Why the last attempt failed, empty if it did not.
    failure: Vec<u8>,
}

/// Why a sweep that has left something is no success; `None` if it is one. What is `elsewhere` is for another
/// participant's.
pub(super) fn failure(swept: &Swept, elsewhere: &HashSet<Gid>) -> Option<Error> {
    let server = swept.server.to_bytes();
    let mut counts: HashMap<Reason, u64> = HashMap::new();
    for left in &swept.left {
        if !left.reason.is_expected() && !elsewhere.contains(&left.gid) {
            *counts.entry(left.reason).or_default() += 1;
        }
    }
    let total: u64 = counts.values().sum();
    let Some((reason, _)) = counts.into_iter().max_by_key(|(_, count)| *count) else {
        return swept.strangers.then(|| {
            let text = Reason::Strangers.text();
            let text = [b"server \"", server, b"\" has to be asked again: ", text.as_bytes()];
            Error::new(SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE, text.concat())
        });
    };
    let subject = subject(total);
    let why = why(reason, swept.refusal.as_ref());
    let text = [&*subject, b" left in doubt on server \"", server, b"\": ", &*why].concat();
    Some(Error::new(SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE, text))
}

fn subject(count: u64) -> Vec<u8> {
    match count {
        1 => b"1 transaction is".to_vec(),
        _ => format!("{count} transactions are").into_bytes(),
    }
}

/// A reason in full, with what the server has said, or why it was not reached.
fn why(reason: Reason, error: Option<&Error>) -> Vec<u8> {
    match (reason, error) {
        (Reason::Refused | Reason::NotAllowed | Reason::Unreached | Reason::Gone, Some(error)) => {
            error.summary()
        }
        _ => reason.text().as_bytes().to_vec(),
    }
}

impl Told {
    /// Tells of what is left, as far as it has changed. `error` is what the server has said.
    pub(super) fn about(
        &mut self,
        server: &CStr,
        left: &[(Gid, Reason)],
        error: Option<&Error>,
    ) -> Result<()> {
        let mut changed: HashMap<Reason, Vec<Gid>> = HashMap::new();
        let before = std::mem::take(&mut self.left);
        for (gid, reason) in left {
            let why = why(*reason, error);
            if before.get(gid) != Some(&why) {
                changed.entry(*reason).or_default().push(*gid);
            }
            self.left.insert(*gid, why);
        }
        for (reason, gids) in changed {
            let why = why(reason, error);
            let place =
                [b" left in doubt on server \"", server.to_bytes(), b"\": ", &*why].concat();
            let tell = |subject: Vec<u8>, detail: Option<String>| {
                let error = Error::new(SqlState(0), [subject, place.clone()].concat())
                    .hint(next(reason).into_bytes());
                match detail {
                    Some(detail) => error.detail(detail),
                    None => error,
                }
                .log(PgLogLevel::LOG)
            };
            if gids.len() > LINES {
                let detail = format!("One of them is '{}'; pg_fdw_xacts shows all.", gids[0]);
                tell(subject(gids.len() as u64), Some(detail))?;
                continue;
            }
            for gid in gids {
                tell(format!("transaction '{gid}' is").into_bytes(), None)?;
            }
        }
        Ok(())
    }

    /// An attempt has failed. Where nothing is known to be left there, only this tells of it.
    pub(super) fn failed(&mut self, error: &Error, alone: bool) -> Result<()> {
        let text = error.summary();
        if self.failure == text {
            return Ok(());
        }
        self.failure.clone_from(&text);
        if !alone {
            return Ok(());
        }
        let text = [b"cannot settle what may be in doubt: ", &*text].concat();
        Error::new(error.sqlstate(), text)
            .hint(next(Reason::Unreached).into_bytes())
            .log(PgLogLevel::LOG)
    }

    /// All is well, and was not before.
    pub(super) fn succeeded(&mut self, server: &CStr) -> Result<()> {
        if std::mem::take(&mut self.failure).is_empty() {
            return Ok(());
        }
        let text = [b"the resolver has reached server \"", server.to_bytes(), b"\" again"].concat();
        Error::new(SqlState::SUCCESSFUL_COMPLETION, text).log(PgLogLevel::LOG)
    }
}

/// What will happen next; a sentence or two.
fn next(reason: Reason) -> String {
    let (_, longest) = guc::resolver_retry();
    format!("{} It comes again at the latest {longest:?} after each attempt.", reason.next())
}
