//! Those who use the bank while its servers fail over: who makes transfers, and who adds up.
//!
//! They connect as applications do: both nodes of the coordinator, and only to one that can be
//! written. A host that hangs is given up after a while; the library used here has no limit for
//! that, so each session is in a thread of its own, which is left alone then.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use anyhow::Result;
use postgres::config::TargetSessionAttrs;
use postgres::{Client, Config, Error, NoTls};

use super::world::{ACCOUNTS, DEPOSIT};
use crate::bank::clients::{Outcome, reason, told};
use crate::bank::random::Random;
use crate::{DEADLINE, wait_until};

/// How long anybody waits for an answer.
const PATIENCE: Duration = Duration::from_secs(15);

/// How long anybody waits for a session.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// How many make transfers.
const CUSTOMERS: u64 = 6;

/// A transfer that has come to an end.
#[derive(Debug, Clone)]
pub(super) struct Transfer {
    pub(super) id: i64,
    /// Place, account and amount; place 0 is the coordinator.
    entries: Vec<(usize, u64, i64)>,
    pub(super) began: Instant,
    pub(super) ended: Instant,
    /// What the customer was told.
    pub(super) outcome: Outcome,
}

/// What those who add up have seen.
#[derive(Debug, Default, Clone)]
pub(super) struct Sums {
    pub(super) right: u64,
    /// Wrong sums, with the time and the port of the coordinator's node.
    pub(super) wrong: Vec<(Instant, i32, i64)>,
}

/// What the threads share.
#[derive(Debug)]
pub(super) struct Shared {
    ports: [u16; 2],
    stop: AtomicBool,
    /// All are to finish what they do, and wait.
    pause: AtomicBool,
    resting: AtomicU64,
    next: AtomicI64,
    pub(super) transfers: Mutex<Vec<Transfer>>,
    pub(super) sums: Mutex<Sums>,
    /// Sessions that were left alone and may not have ended.
    abandoned: Mutex<Vec<Weak<()>>>,
}

impl Shared {
    /// For a coordinator at these ports. Nobody does anything yet.
    pub(super) fn new(ports: [u16; 2]) -> Self {
        Self {
            ports,
            stop: AtomicBool::new(false),
            pause: AtomicBool::new(true),
            resting: AtomicU64::new(0),
            next: AtomicI64::new(1),
            transfers: Mutex::default(),
            sums: Mutex::default(),
            abandoned: Mutex::default(),
        }
    }

    /// The threads of all customers and of one who adds up.
    pub(super) fn open(self: &Arc<Self>) -> Vec<std::thread::JoinHandle<()>> {
        let customer = |number| {
            let shared = Arc::clone(self);
            std::thread::spawn(move || shared.make_transfers(number))
        };
        let mut threads: Vec<_> = (0..CUSTOMERS).map(customer).collect();
        let shared = Arc::clone(self);
        threads.push(std::thread::spawn(move || shared.add_up()));
        threads
    }

    /// Has all threads end.
    pub(super) fn close(&self) {
        self.stop.store(true, Ordering::SeqCst);
    }

    /// Has everybody begin anew.
    pub(super) fn go_on(&self) {
        self.transfers.lock().expect("nobody panics with it").clear();
        *self.sums.lock().expect("nobody panics with it") = Sums::default();
        self.pause.store(false, Ordering::SeqCst);
    }

    /// Lets everybody come to rest, also the sessions that were left alone.
    pub(super) fn rest(&self, deadline: Duration) -> Result<()> {
        self.pause.store(true, Ordering::SeqCst);
        wait_until("all sessions have come to the end of what they do", deadline, || {
            let mut abandoned = self.abandoned.lock().expect("nobody panics with it");
            abandoned.retain(|session| session.strong_count() > 0);
            Ok(self.resting.load(Ordering::SeqCst) == CUSTOMERS + 1 && abandoned.is_empty())
        })
    }

    /// How many transfers that have begun after `since` are acknowledged.
    pub(super) fn acknowledged_since(&self, since: Instant) -> usize {
        let transfers = self.transfers.lock().expect("nobody panics with it");
        let counts = |t: &&Transfer| t.outcome == Outcome::Committed && t.began >= since;
        transfers.iter().filter(counts).count()
    }

    /// Waits for `count` acknowledged transfers that begin from now on.
    pub(super) fn let_pass(&self, count: usize) -> Result<()> {
        let now = Instant::now();
        wait_until("transfers are acknowledged", DEADLINE, || {
            Ok(self.acknowledged_since(now) >= count)
        })
    }

    /// Whether there is a pause, and it is over now.
    fn has_rested(&self) -> bool {
        if !self.pause.load(Ordering::SeqCst) {
            return false;
        }
        self.resting.fetch_add(1, Ordering::SeqCst);
        while self.pause.load(Ordering::SeqCst) && !self.stop.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(20));
        }
        self.resting.fetch_sub(1, Ordering::SeqCst);
        true
    }

    fn make_transfers(&self, number: u64) {
        let mut random = Random::new(17, number);
        let mut line = Line::new(self, number);
        while !self.stop.load(Ordering::SeqCst) {
            if self.has_rested() {
                continue;
            }
            let id = self.next.fetch_add(1, Ordering::SeqCst);
            let entries = draw(&mut random);
            let began = Instant::now();
            let statements = statements(id, &entries);
            let outcome =
                match line.ask(move |session, given_up| transfer(session, &statements, given_up)) {
                    Answer::NoSession => continue,
                    Answer::None => Outcome::Unknown("no answer".to_owned()),
                    Answer::Given(outcome) => outcome,
                };
            let transfer = Transfer { id, entries, began, ended: Instant::now(), outcome };
            self.transfers.lock().expect("nobody panics with it").push(transfer);
        }
    }

    fn add_up(&self) {
        let mut line = Line::new(self, CUSTOMERS);
        while !self.stop.load(Ordering::SeqCst) {
            if self.has_rested() {
                continue;
            }
            let Answer::Given(Ok((port, sum))) = line.ask(|session, _| total(session)) else {
                continue;
            };
            let mut sums = self.sums.lock().expect("nobody panics with it");
            if sum == 3 * ACCOUNTS as i64 * DEPOSIT {
                sums.right += 1;
            } else {
                sums.wrong.push((Instant::now(), port, sum));
            }
            drop(sums);
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

/// The total of all accounts, and the port of the node that says so. The coordinator's own tables
/// are part of one snapshot with the others under REPEATABLE READ only.
fn total(session: &mut Client) -> Result<(i32, i64), Error> {
    session.batch_execute(
        "SET pg_fdw_xacts.consistent_reads = on; BEGIN ISOLATION LEVEL REPEATABLE READ",
    )?;
    let row = session.query_one(
        "SELECT current_setting('port')::int, (SELECT sum(balance) FROM account)::bigint
             + (SELECT sum(balance) FROM account1)::bigint
             + (SELECT sum(balance) FROM account2)::bigint",
        &[],
    );
    session.batch_execute("ROLLBACK")?;
    let row = row?;
    Ok((row.get(0), row.get(1)))
}

/// Two or three places, in their order, so that there are no deadlocks; the first is paid by the
/// others.
fn draw(random: &mut Random) -> Vec<(usize, u64, i64)> {
    let left_out = random.below(4) as usize;
    let places: Vec<usize> = (0..3).filter(|place| *place != left_out).collect();
    let amount = 1 + random.below(100) as i64;
    let paid = amount * (places.len() as i64 - 1);
    let entry = |place: &usize| {
        let amount = if *place == places[0] { paid } else { -amount };
        (*place, random.below(ACCOUNTS), amount)
    };
    places.iter().map(entry).collect()
}

fn statements(id: i64, entries: &[(usize, u64, i64)]) -> Vec<String> {
    let of = |(place, account, amount): &(usize, u64, i64)| {
        let suffix = if *place == 0 { String::new() } else { place.to_string() };
        [
            format!("UPDATE account{suffix} SET balance = balance + {amount} WHERE id = {account}"),
            format!("INSERT INTO ledger{suffix} VALUES ({id}, {account}, {amount})"),
        ]
    };
    entries.iter().flat_map(of).collect()
}

impl Transfer {
    /// Where it has to be noted.
    pub(super) fn places(&self) -> impl Iterator<Item = usize> {
        self.entries.iter().map(|(place, ..)| *place)
    }
}

fn transfer(session: &mut Client, statements: &[String], given_up: &AtomicBool) -> Outcome {
    let mut work = || -> Result<(), Error> {
        session.batch_execute("BEGIN")?;
        statements.iter().try_for_each(|statement| session.batch_execute(statement))
    };
    if let Err(error) = work() {
        // Nothing was asked to commit.
        let _ = session.batch_execute("ROLLBACK");
        return Outcome::Refused(reason(&error));
    }
    if given_up.load(Ordering::SeqCst) {
        let _ = session.batch_execute("ROLLBACK");
        return Outcome::Refused("given up".to_owned());
    }
    told(session.batch_execute("COMMIT"))
}

/// What a session has to say.
enum Answer<T> {
    /// There is no session.
    NoSession,
    /// Nothing in time.
    None,
    Given(T),
}

type Job = Box<dyn FnOnce(&mut Client) -> bool + Send>;

/// A session of the coordinator, made anew when it has ended or hangs.
struct Line<'a> {
    shared: &'a Shared,
    /// Which node is tried first. A library with a limit would go on to the next by itself.
    first: usize,
    session: Option<Session>,
}

struct Session {
    jobs: Sender<Job>,
    connected: Receiver<()>,
    given_up: Arc<AtomicBool>,
    thread: Weak<()>,
}

impl<'a> Line<'a> {
    fn new(shared: &'a Shared, number: u64) -> Self {
        Self { shared, first: number as usize, session: None }
    }

    fn ask<T: Send + 'static>(
        &mut self,
        job: impl FnOnce(&mut Client, &AtomicBool) -> T + Send + 'static,
    ) -> Answer<T> {
        let session = match self.session.take() {
            Some(session) => session,
            None => match self.connect() {
                Some(session) => session,
                None => return Answer::NoSession,
            },
        };
        let (sender, answer) = channel();
        let given_up = Arc::clone(&session.given_up);
        let job: Job = Box::new(move |client| {
            let is_late = given_up.load(Ordering::SeqCst);
            is_late || sender.send(job(client, &given_up)).is_err()
        });
        if session.jobs.send(job).is_err() {
            return Answer::NoSession;
        }
        match answer.recv_timeout(PATIENCE) {
            Ok(answer) => {
                self.session = Some(session);
                Answer::Given(answer)
            }
            // It had ended before, and has not looked at the job.
            Err(RecvTimeoutError::Disconnected) => Answer::NoSession,
            Err(RecvTimeoutError::Timeout) => {
                self.abandon(&session);
                Answer::None
            }
        }
    }

    fn connect(&mut self) -> Option<Session> {
        self.first += 1;
        let session = Session::start(self.shared.ports, self.first);
        match session.connected.recv_timeout(CONNECT_TIMEOUT) {
            Ok(()) => return Some(session),
            Err(RecvTimeoutError::Disconnected) => std::thread::sleep(Duration::from_millis(50)),
            Err(RecvTimeoutError::Timeout) => self.abandon(&session),
        }
        None
    }

    fn abandon(&self, session: &Session) {
        session.given_up.store(true, Ordering::SeqCst);
        let mut abandoned = self.shared.abandoned.lock().expect("nobody panics with it");
        abandoned.push(session.thread.clone());
    }
}

impl Session {
    fn start(ports: [u16; 2], first: usize) -> Self {
        let (jobs, orders) = channel::<Job>();
        let (is_connected, connected) = channel();
        let thread = Arc::new(());
        let session =
            Self { jobs, connected, given_up: Arc::default(), thread: Arc::downgrade(&thread) };
        std::thread::spawn(move || {
            let _thread = thread;
            let mut config = Config::new();
            for step in 0..2 {
                config.host("127.0.0.1").port(ports[(first + step) % 2]);
            }
            config.user("postgres").dbname("postgres");
            config.target_session_attrs(TargetSessionAttrs::ReadWrite);
            let Ok(mut client) = config.connect(NoTls) else { return };
            let _ = is_connected.send(());
            for job in orders {
                if job(&mut client) || client.is_closed() {
                    return;
                }
            }
        });
        session
    }
}
