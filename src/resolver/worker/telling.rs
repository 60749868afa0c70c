//! What the log and the statistics say of what is left on a participant: the transaction, the
//! server, the reason, and what happens next. The log is told once of each change, not of each
//! attempt.

use std::collections::{HashMap, HashSet};
use std::ffi::CStr;

use pgrx::PgLogLevel;

use crate::guc;
use crate::pg::error::{Error, Result, SqlState};
use crate::protocol::gid::Gid;
use crate::protocol::verdict::Reason;
use crate::resolver::sweep::Swept;

/// Up to this many transactions that are left for one reason get a line each; more share one line.
const LINES: usize = 10;

/// What the log was told of one participant.
#[derive(Default)]
pub(super) struct Told {
    /// Why each transaction is left.
    left: HashMap<Gid, Vec<u8>>,
    /// Why the last attempt failed; empty if it did not.
    failure: Vec<u8>,
}

/// Why a sweep counts as a failure; `None` if it does not. What is `elsewhere` will be settled by
/// another participant's sweep.
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
        return swept.other_incarnations.then(|| {
            let text = Reason::OtherIncarnation.text();
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

/// A reason in full: what the server has answered, or why it was not reached, if that is more
/// precise.
fn why(reason: Reason, error: Option<&Error>) -> Vec<u8> {
    match (reason, error) {
        (Reason::Refused | Reason::NotAllowed | Reason::Unreached | Reason::Gone, Some(error)) => {
            error.summary()
        }
        _ => reason.text().as_bytes().to_vec(),
    }
}

impl Told {
    /// Tells what is left, as far as that has changed. `error` is what the server has answered.
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

    /// Tells that an attempt has failed, if it is not known to have left anything (`alone`): of
    /// what it has left, [`about`](Self::about) tells.
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

    /// Tells that the server was reached again, after attempts that failed.
    pub(super) fn succeeded(&mut self, server: &CStr) -> Result<()> {
        if std::mem::take(&mut self.failure).is_empty() {
            return Ok(());
        }
        let text = [b"the resolver has reached server \"", server.to_bytes(), b"\" again"].concat();
        Error::new(SqlState::SUCCESSFUL_COMPLETION, text).log(PgLogLevel::LOG)
    }
}

/// What happens next, in one or two sentences.
fn next(reason: Reason) -> String {
    let (_, longest) = guc::resolver_retry();
    format!("{} It comes again at the latest {longest:?} after each attempt.", reason.next())
}
