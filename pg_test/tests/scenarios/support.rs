//! What several scenarios share: a statement in the background, the ids the extension gives, quick
//! checks.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;
use pg_test::log::Mark;
use pg_test::oracle::{assert_no_locks, assert_settled, expect_error, expect_terminated, one};
use pg_test::proxy::Hit;
use pg_test::{Cluster, DEADLINE, Fault, Fleet, Point, wait_until};
use postgres::{Client, Error, NoTls};

pub use pg_test::fleet::begin_everywhere;

/// The result of a scenario: an `Err` is the harness's own trouble, what is wrong with the
/// extension panics.
pub type Outcome = anyhow::Result<()>;

/// No id.
pub const NONE: [i32; 0] = [];

/// A coordinator with two shards, and a session on it.
pub fn start() -> anyhow::Result<(Fleet, Client)> {
    let fleet = Fleet::start()?;
    let session = fleet.session()?;
    Ok((fleet, session))
}

/// The same with rows 1 to 3 on both shards.
pub fn start_with_rows() -> anyhow::Result<(Fleet, Client)> {
    let (fleet, mut session) = start()?;
    for table in ["ft1", "ft2"] {
        session.batch_execute(&format!(
            "INSERT INTO {table} SELECT i, 'x' FROM generate_series(1, 3) i"
        ))?;
    }
    Ok((fleet, session))
}

/// A statement that runs on a thread of its own, with its session.
pub struct Background(JoinHandle<(Client, Result<(), Error>)>);

/// Runs `sql` in `session` on a thread of its own, because the test has to act while it waits.
pub fn in_background(mut session: Client, sql: &str) -> Background {
    let sql = sql.to_owned();
    Background(std::thread::spawn(move || {
        let result = session.batch_execute(&sql);
        (session, result)
    }))
}

impl Background {
    /// Waits for its end: the session again and what came of the statement.
    pub fn join(self) -> (Client, Result<(), Error>) {
        self.0.join().expect("the thread only runs one statement")
    }

    /// Whether the statement has ended.
    pub fn is_finished(&self) -> bool {
        self.0.is_finished()
    }
}

/// What one of many sessions does until it is told to stop.
pub type Busy<'a> = Box<dyn FnOnce(&AtomicBool) -> Outcome + Send + 'a>;

/// Runs all of them at once until it `is_enough`, one of them has ended, or minutes have passed.
pub fn run_until(is_enough: impl Fn() -> bool, sessions: Vec<Busy>) -> Outcome {
    let stop = AtomicBool::new(false);
    let deadline = Instant::now() + 3 * DEADLINE;
    std::thread::scope(|scope| {
        let stop = &stop;
        let threads: Vec<_> =
            sessions.into_iter().map(|run| scope.spawn(move || run(stop))).collect();
        while !is_enough()
            && Instant::now() < deadline
            && !threads.iter().any(|thread| thread.is_finished())
        {
            std::thread::sleep(Duration::from_millis(10));
        }
        stop.store(true, Ordering::Relaxed);
        threads.into_iter().try_for_each(|thread| thread.join().expect("a session panicked"))
    })
}

/// One participant's gid, `px_<n>_<serverid>_<userid>`, in its parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gid {
    pub n: String,
    pub serverid: u32,
    pub userid: u32,
}

impl Gid {
    /// The parts of `text`, which must be exactly of that form and short enough.
    pub fn parse(text: &str) -> Self {
        assert!(text.len() <= 63, "{text} is longer than 63 characters");
        let parts: Vec<&str> = text.split('_').collect();
        let ["px", n, serverid, userid] = parts.as_slice() else {
            panic!("{text} is not px_<n>_<serverid>_<userid>")
        };
        assert!(
            parts[1..].iter().all(|part| part.bytes().all(|byte| byte.is_ascii_digit())),
            "{text} holds other characters than decimal digits"
        );
        Self {
            n: (*n).to_owned(),
            serverid: serverid.parse().expect("an oid"),
            userid: userid.parse().expect("an oid"),
        }
    }
}

/// The gid in the only one of `statements` that starts with `command`, for example
/// `PREPARE TRANSACTION`.
pub fn gid_of(statements: &[String], command: &str) -> Gid {
    let found: Vec<&String> =
        statements.iter().filter(|statement| statement.starts_with(command)).collect();
    let [statement] = found.as_slice() else {
        panic!("{} statements '{command}' instead of one in {statements:#?}", found.len())
    };
    let gid = statement[command.len()..]
        .trim()
        .strip_prefix('\'')
        .and_then(|rest| rest.strip_suffix('\''))
        .unwrap_or_else(|| panic!("no quoted gid in '{statement}'"));
    Gid::parse(gid)
}

/// The oid of the foreign server of shard `number`.
pub fn serverid(fleet: &Fleet, number: usize) -> anyhow::Result<u32> {
    let name = format!("shard{number}");
    let row = fleet
        .session()?
        .query_one("SELECT oid FROM pg_foreign_server WHERE srvname = $1", &[&name])?;
    Ok(row.get(0))
}

/// Runs BEGIN, `statements` one by one, and COMMIT.
pub fn transaction(session: &mut Client, statements: &[&str]) -> Result<(), Error> {
    session.batch_execute("BEGIN")?;
    for statement in statements {
        session.batch_execute(statement)?;
    }
    session.batch_execute("COMMIT")
}

/// What a session was told beside results: warnings and notices, as "SEVERITY: message / DETAIL /
/// HINT".
#[derive(Debug, Clone, Default)]
pub struct Notices(Arc<Mutex<Vec<String>>>);

impl Notices {
    /// Those that came since the last call.
    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().expect("nobody panics with it"))
    }
}

/// A session on the coordinator whose notices are kept.
pub fn session_with_notices(fleet: &Fleet) -> anyhow::Result<(Client, Notices)> {
    session_with_notices_in(fleet, "postgres")
}

/// The same in another database.
pub fn session_with_notices_in(fleet: &Fleet, database: &str) -> anyhow::Result<(Client, Notices)> {
    let notices = Notices::default();
    let list = Arc::clone(&notices.0);
    let session = fleet
        .coordinator
        .config()
        .dbname(database)
        .notice_callback(move |notice| {
            let text = format!(
                "{}: {} / {} / {}",
                notice.severity(),
                notice.message(),
                notice.detail().unwrap_or_default(),
                notice.hint().unwrap_or_default()
            );
            list.lock().expect("nobody panics with it").push(text);
        })
        .connect(NoTls)?;
    Ok((session, notices))
}

/// Row `id` is in lt and on both shards, or in none of them, as `committed` says; asked of each
/// server itself.
pub fn assert_everywhere(fleet: &Fleet, id: i32, committed: bool) -> Outcome {
    let found = [
        fleet.ids_in_lt()?.contains(&id),
        fleet.ids_on_shard(1)?.contains(&id),
        fleet.ids_on_shard(2)?.contains(&id),
    ];
    assert_eq!(found, [committed; 3], "row {id} in lt, on shard 1, on shard 2");
    Ok(())
}

/// A transaction over lt and both shards commits in `session` and is everywhere: nothing is in its
/// way.
pub fn assert_commits(fleet: &Fleet, session: &mut Client, id: i32) -> Outcome {
    begin_everywhere(session, id)?;
    session.batch_execute("COMMIT")?;
    assert_everywhere(fleet, id, true)
}

/// The end of every fault: nothing is in doubt or locked, row `id` is everywhere or nowhere as
/// `committed` says, and a new session commits again.
pub fn assert_recovered(fleet: &Fleet, id: i32, committed: bool) -> Outcome {
    assert_settled(fleet);
    assert_everywhere(fleet, id, committed)?;
    assert_no_locks(fleet)?;
    assert_commits(fleet, &mut fleet.session()?, id + 1000)?;
    assert_settled(fleet);
    Ok(())
}

/// A warning among `notices` names the server.
#[track_caller]
pub fn assert_warned(notices: &Notices, server: &str) {
    let notices = notices.take();
    assert!(
        notices.iter().any(|line| line.starts_with("WARNING") && line.contains(server)),
        "no warning that names {server}: {notices:#?}"
    );
}

/// The status of each row of the view on shard `number`.
pub fn statuses(fleet: &Fleet, number: usize) -> anyhow::Result<Vec<String>> {
    let serverid = serverid(fleet, number)?;
    let rows = fleet
        .session()?
        .query("SELECT status FROM pg_fdw_xacts WHERE serverid = $1", &[&serverid])?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Waits until a late PREPARE has run to its end on shard `number`, whose log is looked at from
/// `mark` on.
pub fn wait_for_late_prepare(fleet: &Fleet, number: usize, mark: Mark) -> Outcome {
    let shard = fleet.shard(number);
    let mut session = shard.client()?;
    wait_until("the late PREPARE lands", DEADLINE, || {
        let arrived = shard
            .log()
            .statements_since(mark)?
            .iter()
            .any(|statement| statement.starts_with("PREPARE TRANSACTION"));
        let running: i64 = one(
            &mut session,
            "SELECT count(*) FROM pg_stat_activity
             WHERE state = 'active' AND query LIKE 'PREPARE TRANSACTION%'",
        )?;
        Ok(arrived && running == 0)
    })
}

/// COMMIT of `session` in the background, held where shard `number` is at `point` of `statement`.
pub fn commit_held_at(
    fleet: &Fleet,
    session: Client,
    number: usize,
    point: Point,
    statement: &str,
) -> anyhow::Result<(Background, Hit)> {
    let hit = fleet.proxy(number).inject(Fault::hold(point, statement));
    let commit = in_background(session, "COMMIT");
    hit.wait()?;
    Ok((commit, hit))
}

/// Calls `function`, such as `pg_cancel_backend`, for backend `pid`.
pub fn signal(fleet: &Fleet, function: &str, pid: i32) -> Outcome {
    let done: bool = one(&mut fleet.session()?, &format!("SELECT {function}({pid})"))?;
    assert!(done, "{function}({pid})");
    Ok(())
}

/// Waits until somebody on shard `number` waits for a lock.
pub fn wait_for_lock(fleet: &Fleet, number: usize) -> Outcome {
    let mut shard = fleet.shard(number).client()?;
    let waits = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock')";
    wait_until("somebody waits for a lock", DEADLINE, || one(&mut shard, waits))
}

/// From now on commits on `cluster` wait for a standby that there is not. The first of them is what
/// is returned, for [`release_commits`].
pub fn hold_commits(cluster: &Cluster) -> anyhow::Result<Background> {
    set_standbys(cluster, "nobody")?;
    // The checkpointer tells all others, as soon as it comes to that: what commits before does not
    // wait.
    let mut first = None;
    let mut witness = cluster.client()?;
    let mut number = 0;
    wait_until("commits wait for the standby", DEADLINE, || {
        number += 1;
        let statement = format!("CREATE TABLE probe{number} ()");
        let probe = in_background(cluster.client()?, &statement);
        wait_until(&format!("{statement} waits, or has ended"), DEADLINE, || {
            Ok(probe.is_finished() || one(&mut witness, &waits_for_standby(&statement))?)
        })?;
        if probe.is_finished() {
            probe.join().1?;
        } else {
            first = Some(probe);
        }
        Ok(first.is_some())
    })?;
    first.context("just found")
}

/// Whether a statement that begins with `statement` has committed, and waits for a standby.
fn waits_for_standby(statement: &str) -> String {
    format!(
        "SELECT EXISTS (SELECT FROM pg_stat_activity
                        WHERE wait_event = 'SyncRep' AND query LIKE '{statement}%')"
    )
}

/// Waits until a statement that begins with `statement` has committed on `cluster`, and waits for
/// the standby. `first` is what [`hold_commits`] returned.
pub fn wait_for_held_commit(cluster: &Cluster, first: &Background, statement: &str) -> Outcome {
    let mut witness = cluster.client()?;
    wait_until(&format!("{statement} waits for the standby"), DEADLINE, || {
        if first.is_finished() {
            anyhow::bail!("commits do not wait any more");
        }
        one(&mut witness, &waits_for_standby(statement))
    })
}

/// Commits on `cluster` wait no more.
pub fn release_commits(cluster: &Cluster, first: Background) -> Outcome {
    set_standbys(cluster, "")?;
    Ok(first.join().1?)
}

fn set_standbys(cluster: &Cluster, names: &str) -> Outcome {
    cluster.configure(&[("synchronous_standby_names", names)])?;
    cluster.reload()
}

/// The backend can be cancelled and terminated; a hold-off count gone wrong would prevent both for
/// ever.
pub fn assert_interruptible(fleet: &Fleet, mut session: Client) -> Outcome {
    let pid: i32 = one(&mut session, "SELECT pg_backend_pid()")?;
    for (function, terminates) in [("pg_cancel_backend", false), ("pg_terminate_backend", true)] {
        let sleep = in_background(session, "SELECT pg_sleep(60)");
        wait_until("the session sleeps", DEADLINE, || {
            let sql = format!(
                "SELECT wait_event IS NOT DISTINCT FROM 'PgSleep' FROM pg_stat_activity WHERE pid = {pid}"
            );
            one(&mut fleet.session()?, &sql)
        })?;
        signal(fleet, function, pid)?;
        let (asleep, result) = sleep.join();
        if terminates {
            expect_terminated(result);
            return Ok(());
        }
        expect_error(result, "57014");
        session = asleep;
    }
    Ok(())
}
