//! The resolver's session with a server where somebody waits. It never waits for it.

use std::time::{Duration, Instant};

use pgrx::pg_sys::Oid;

use super::questions::Questions;
use crate::guc::answer_timeout;
use crate::pg::error::{Error, Result};
use crate::pg::text;
use crate::protocol::gid::Identity;
use crate::protocol::retry;
use crate::protocol::session_lock::SessionLock;
use crate::protocol::waits::Said;
use crate::remote::connect::{Connecting, Established, Step};
use crate::remote::options::{Mapping, Purpose, Server};
use crate::remote::report;
use crate::remote::wait::Interest;
use crate::resolver::sweep::handler_is_ours;
use crate::shared::incarnation::session_lock;

/// How long a session is kept that nobody needs.
const KEPT: Duration = Duration::from_secs(60);

/// The shortest and the longest time until a server is tried again that could not be asked.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// A server where somebody waits, or has waited lately.
pub(super) struct Asking {
    serverid: Oid,
    /// Its name in messages.
    pub(super) name: String,
    stage: Stage,
    /// When the stage has to end.
    deadline: Instant,
    /// When it is tried again after a failure.
    retry_at: Instant,
    /// Since when nobody waits there.
    unused_since: Option<Instant>,
    failures: u32,
    /// What to ask, once that is possible.
    processes: Vec<i32>,
    /// It has not answered in time, and looks do not wait for it until it does.
    is_slow: bool,
    said: Option<Said>,
}

enum Stage {
    /// Nothing has been tried, or it has failed.
    None,
    Connecting(Box<Connecting>, Oid),
    Idle(Box<Established>, Oid),
    Asked(Box<Established>, Oid, Questions),
}

impl Asking {
    pub(super) fn new(serverid: u32) -> Self {
        Self {
            serverid: Oid::from_u32(serverid),
            name: serverid.to_string(),
            stage: Stage::None,
            deadline: Instant::now(),
            retry_at: Instant::now(),
            unused_since: None,
            failures: 0,
            processes: Vec::new(),
            is_slow: false,
            said: None,
        }
    }

    /// Begins to ask about these processes, with the mapping of one of these users. Called in a
    /// transaction.
    pub(super) fn begin(&mut self, identity: Identity, users: &[Oid], processes: Vec<i32>) {
        let now = Instant::now();
        self.unused_since = None;
        self.processes = processes;
        let server = Server::find(self.serverid);
        if let Some(server) = &server {
            self.name = text::carried(&server.name);
        }
        let kept = match &self.stage {
            // The answer to an earlier question counts when it comes.
            Stage::Connecting(..) | Stage::Asked(..) => return,
            Stage::Idle(session, user) => self.is_usable(session, *user, server.as_ref()),
            Stage::None => false,
        };
        if kept {
            return self.ask(identity);
        }
        self.stage = Stage::None;
        if now < self.retry_at {
            return;
        }
        // Another user's mapping after each failure.
        let Some(user) = users.get(self.failures as usize % users.len().max(1)) else { return };
        match self.connect(*user, server) {
            Ok(Some(connecting)) => {
                self.stage = Stage::Connecting(Box::new(connecting), *user);
            }
            Ok(None) => {}
            Err(error) => self.fail(&error),
        }
    }

    fn is_usable(&self, session: &Established, user: Oid, server: Option<&Server>) -> bool {
        let connection = &session.connection;
        let (Some(server), Some(mapping)) = (server, Mapping::find(user, self.serverid)) else {
            return false;
        };
        connection.is_still_reusable()
            && session.is_current(server, &mapping, Purpose::Resolver).unwrap_or(false)
    }

    fn connect(&self, user: Oid, server: Option<Server>) -> Result<Option<Connecting>> {
        let (Some(server), Some(mapping)) = (server, Mapping::find(user, self.serverid)) else {
            return Ok(None);
        };
        if !handler_is_ours(self.serverid) {
            return Ok(None);
        }
        let deadline = Some(Instant::now() + answer_timeout());
        Connecting::start(&server, &mapping, Purpose::Resolver, deadline).map(Some)
    }

    fn ask(&mut self, identity: Identity) {
        let Stage::Idle(session, user) = std::mem::replace(&mut self.stage, Stage::None) else {
            return;
        };
        let lock = session_lock(identity);
        match Questions::ask(&session.connection, identity, lock, &self.processes) {
            Ok(questions) => {
                self.deadline = Instant::now() + answer_timeout();
                self.stage = Stage::Asked(session, user, questions);
            }
            Err(error) => self.fail(&error),
        }
    }

    /// Goes on as far as it can without waiting.
    pub(super) fn advance(&mut self, identity: Identity) {
        let stage = std::mem::replace(&mut self.stage, Stage::None);
        let was_connecting = matches!(stage, Stage::Connecting(..));
        match self.advanced(stage, session_lock(identity)) {
            Ok(stage) => {
                let is_new = was_connecting && matches!(stage, Stage::Idle(..));
                self.stage = stage;
                if is_new && !self.processes.is_empty() {
                    self.ask(identity);
                }
            }
            Err(error) => self.fail(&error),
        }
    }

    fn advanced(&mut self, mut stage: Stage, lock: SessionLock) -> Result<Stage> {
        if let Stage::Connecting(connecting, user) = stage {
            if !connecting.is_ready() {
                let connecting = match connecting.is_overdue() {
                    true => Box::new(connecting.give_up_host()?),
                    false => connecting,
                };
                return Ok(Stage::Connecting(connecting, user));
            }
            return Ok(match connecting.step()? {
                Step::Waits(connecting) => Stage::Connecting(Box::new(connecting), user),
                Step::Established(session) => Stage::Idle(session, user),
            });
        }
        if let Stage::Asked(session, user, questions) = stage {
            session.connection.pump();
            if session.connection.is_drained() {
                self.said = Some(questions.read(&session.connection, lock)?);
                self.failures = 0;
                self.is_slow = false;
                stage = Stage::Idle(session, user);
            } else if session.connection.is_doomed() {
                return Err(session.connection.doom_error());
            } else if Instant::now() >= self.deadline {
                return Err(report::lost(c"the server did not answer in time"));
            } else {
                stage = Stage::Asked(session, user, questions);
            }
        }
        Ok(stage)
    }

    /// It is tried again after a while; the log is told of the first failure in a row.
    fn fail(&mut self, error: &Error) {
        self.stage = Stage::None;
        self.retry_at = Instant::now() + retry::delay(self.failures, RETRY.0, RETRY.1, 0);
        if self.failures == 0 {
            let told = Error::new(
                error.sqlstate(),
                format!("could not look for deadlocks on server \"{}\"", self.name),
            );
            let _ = told.detail(error.summary()).log(pgrx::PgLogLevel::LOG);
        }
        self.failures = self.failures.saturating_add(1);
    }

    /// Whether an answer is still to come.
    pub(super) fn is_under_way(&self) -> bool {
        matches!(self.stage, Stage::Connecting(..) | Stage::Asked(..))
    }

    /// Whether a look waits for its answer.
    pub(super) fn is_awaited(&self) -> bool {
        self.is_under_way() && !self.is_slow
    }

    /// What the server has said last, at the end of a look. No answer is given to two looks: the
    /// second is to see by itself what the first has seen.
    pub(super) fn take(&mut self) -> Option<Said> {
        self.is_slow |= self.is_under_way();
        self.processes.clear();
        self.said.take()
    }

    /// The socket to wait for.
    pub(super) fn interest(&self) -> Option<Interest> {
        match &self.stage {
            Stage::Connecting(connecting, _) => Some(connecting.interest()),
            Stage::Asked(session, ..) => Some(session.connection.interest()),
            Stage::None | Stage::Idle(..) => None,
        }
    }

    /// When to advance it even if nothing has come, or to look whether it is still needed.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match &self.stage {
            Stage::Connecting(connecting, _) => connecting.deadline(),
            Stage::Asked(..) => Some(self.deadline),
            Stage::None | Stage::Idle(..) => self.unused_since.map(|since| since + KEPT),
        }
    }

    /// Nobody waits there.
    pub(super) fn is_unused(&mut self) {
        self.unused_since.get_or_insert_with(Instant::now);
    }

    /// Whether it is not kept any longer.
    pub(super) fn is_expired(&self) -> bool {
        self.unused_since.is_some_and(|since| since.elapsed() >= KEPT) && !self.is_under_way()
    }
}
