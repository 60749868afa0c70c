//! The settings, each with its unit, range and description; `pg_fdw_xacts.inject`, which only test
//! builds have, is in `xact::inject`.

use std::ffi::CStr;
use std::time::Duration;

use pgrx::guc::{GucContext, GucFlags, GucRegistry, GucSetting, PostgresGucEnum};
use pgrx::pg_sys;

use crate::pg::globals::statement_timeout;
use crate::protocol::plan::Mode;

/// `pg_fdw_xacts.two_phase_commit`.
#[derive(Clone, Copy, PostgresGucEnum)]
enum TwoPhaseCommit {
    #[name = c"auto"]
    Auto,
    #[name = c"always"]
    Always,
    #[name = c"off"]
    Off,
}

/// `pg_fdw_xacts.consistent_reads`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PostgresGucEnum)]
pub enum ConsistentReads {
    /// Each server is read as it is.
    #[name = c"off"]
    Off,
    /// All servers that are read together are read as of one point in the order of commits.
    #[name = c"on"]
    On,
    /// The same, under REPEATABLE READ and SERIALIZABLE only.
    #[name = c"auto"]
    Auto,
}

/// `pg_fdw_xacts.remote_isolation`, and the server option of the same name.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PostgresGucEnum)]
pub enum RemoteIsolation {
    /// As postgres_fdw: a transaction sees each server as of its first statement there.
    #[name = c"repeatable read"]
    RepeatableRead,
    /// That of the transaction here.
    #[name = c"match"]
    Match,
}

static REMOTE_ISOLATION: GucSetting<RemoteIsolation> =
    GucSetting::<RemoteIsolation>::new(RemoteIsolation::Match);
static CONSISTENT_READS: GucSetting<ConsistentReads> =
    GucSetting::<ConsistentReads>::new(ConsistentReads::Off);
static TWO_PHASE_COMMIT: GucSetting<TwoPhaseCommit> =
    GucSetting::<TwoPhaseCommit>::new(TwoPhaseCommit::Auto);
static COMMIT_WAIT: GucSetting<bool> = GucSetting::<bool>::new(true);
static WRITE_BEHIND: GucSetting<bool> = GucSetting::<bool>::new(false);
static PREPARE_TIMEOUT: GucSetting<i32> = GucSetting::<i32>::new(0);
static COMMIT_TIMEOUT: GucSetting<i32> = GucSetting::<i32>::new(10_000);
static FORGET_DELAY: GucSetting<i32> = GucSetting::<i32>::new(300);
static MAX_FOREIGN_XACTS: GucSetting<i32> = GucSetting::<i32>::new(1000);
static MAX_SERVERS: GucSetting<i32> = GucSetting::<i32>::new(1000);
static TRACK_LIMIT: GucSetting<i32> = GucSetting::<i32>::new(10_000_000);
static TRACK_RETENTION: GucSetting<i32> = GucSetting::<i32>::new(86_400);
static LOG_REMOTE_COMMANDS: GucSetting<bool> = GucSetting::<bool>::new(false);
static DETECT_DEADLOCKS: GucSetting<bool> = GucSetting::<bool>::new(true);
static IDLE_CONNECTION_TIMEOUT: GucSetting<i32> = GucSetting::<i32>::new(0);
static BATCH_SIZE: GucSetting<i32> = GucSetting::<i32>::new(0);
static RESOLVER_INTERVAL: GucSetting<i32> = GucSetting::<i32>::new(60);
static RESOLVER_RETRY_MIN: GucSetting<i32> = GucSetting::<i32>::new(200);
static RESOLVER_RETRY_MAX: GucSetting<i32> = GucSetting::<i32>::new(10_000);

struct Int {
    name: &'static CStr,
    short: &'static CStr,
    long: &'static CStr,
    setting: &'static GucSetting<i32>,
    range: (i32, i32),
    context: GucContext,
    unit: GucFlags,
}

/// The settings that are whole numbers.
fn integers() -> [Int; 12] {
    [
    Int {
        name: c"pg_fdw_xacts.prepare_timeout",
        short: c"How long COMMIT waits until all foreign servers have prepared; then the transaction is rolled back.",
        long: c"0 takes the smaller of statement_timeout and pg_fdw_xacts.commit_timeout.",
        setting: &PREPARE_TIMEOUT,
        range: (0, i32::MAX),
        context: GucContext::Userset,
        unit: GucFlags::UNIT_MS,
    },
    Int {
        name: c"pg_fdw_xacts.commit_timeout",
        short: c"How long COMMIT and ROLLBACK wait for the foreign servers to confirm the outcome.",
        long: c"A server that has not confirmed by then is left to the resolver, with a warning. The outcome is not affected.",
        setting: &COMMIT_TIMEOUT,
        range: (1, i32::MAX),
        context: GucContext::Userset,
        unit: GucFlags::UNIT_MS,
    },
    Int {
        name: c"pg_fdw_xacts.forget_delay",
        short: c"How long the decision of a transaction is kept after all foreign servers have confirmed it.",
        long: c"A foreign server that is restored or fails over to a state from within this time learns the decision again.",
        setting: &FORGET_DELAY,
        range: (0, i32::MAX),
        context: GucContext::Sighup,
        unit: GucFlags::UNIT_S,
    },
    Int {
        name: c"pg_fdw_xacts.track_retention",
        short: c"How long the outcome of a labelled transaction is kept.",
        long: c"See pg_fdw_xacts_track() and pg_fdw_xacts_outcome().",
        setting: &TRACK_RETENTION,
        range: (1, i32::MAX),
        context: GucContext::Sighup,
        unit: GucFlags::UNIT_S,
    },
    Int {
        name: c"pg_fdw_xacts.track_limit",
        short: c"How many labels one role may use within pg_fdw_xacts.track_retention.",
        long: c"0 is no limit. Superusers have none.",
        setting: &TRACK_LIMIT,
        range: (0, i32::MAX),
        context: GucContext::Sighup,
        unit: GucFlags::default(),
    },
    Int {
        name: c"pg_fdw_xacts.idle_connection_timeout",
        short: c"How long a connection to a foreign server may be idle outside of a transaction before it is closed.",
        long: c"0 keeps it as long as the session. The foreign server ends it, from PostgreSQL 14 on; the next transaction makes another.",
        setting: &IDLE_CONNECTION_TIMEOUT,
        range: (0, i32::MAX),
        context: GucContext::Userset,
        unit: GucFlags::UNIT_MS,
    },
    Int {
        name: c"pg_fdw_xacts.batch_size",
        short: c"How many rows one INSERT sends to a foreign server, where neither the table nor the server has the option batch_size.",
        long: c"0 is 200, and COPY for more where that does the same. Rows go one by one where their result may depend on it: with RETURNING, row triggers, WITH CHECK OPTION, or a volatile function in the source.",
        setting: &BATCH_SIZE,
        range: (0, i32::MAX),
        context: GucContext::Userset,
        unit: GucFlags::default(),
    },
    Int {
        name: c"pg_fdw_xacts.max_foreign_xacts",
        short: c"How many prepared transactions on foreign servers are tracked at a time, in all databases.",
        long: c"A transaction counts once for each server it prepares on.",
        setting: &MAX_FOREIGN_XACTS,
        range: (1, 1_000_000),
        context: GucContext::Postmaster,
        unit: GucFlags::default(),
    },
    Int {
        name: c"pg_fdw_xacts.max_servers",
        short: c"Number of foreign servers for which statistics are kept, in all databases.",
        long: c"Transactions on others are settled and shown all the same.",
        setting: &MAX_SERVERS,
        range: (1, 1_000_000),
        context: GucContext::Postmaster,
        unit: GucFlags::default(),
    },
    Int {
        name: c"pg_fdw_xacts.resolver_interval",
        short: c"How often the resolver looks for work that nobody told it of.",
        long: c"",
        setting: &RESOLVER_INTERVAL,
        range: (1, 86_400),
        context: GucContext::Sighup,
        unit: GucFlags::UNIT_S,
    },
    Int {
        name: c"pg_fdw_xacts.resolver_retry_min",
        short: c"The resolver's first wait before it tries an unreachable server again; it doubles with each failure.",
        long: c"",
        setting: &RESOLVER_RETRY_MIN,
        range: (1, 3_600_000),
        context: GucContext::Sighup,
        unit: GucFlags::UNIT_MS,
    },
    Int {
        name: c"pg_fdw_xacts.resolver_retry_max",
        short: c"The resolver's longest wait before it tries an unreachable server again.",
        long: c"",
        setting: &RESOLVER_RETRY_MAX,
        range: (1, 3_600_000),
        context: GucContext::Sighup,
        unit: GucFlags::UNIT_MS,
    },
]
}

/// Defines all settings; called while the server loads the library.
pub fn define() {
    GucRegistry::define_enum_guc(
        c"pg_fdw_xacts.two_phase_commit",
        c"When participants are prepared before they commit.",
        c"auto: whenever atomicity needs it. always: for every transaction that wrote on a foreign server. off: never, each server commits on its own and the transaction is not atomic.",
        &TWO_PHASE_COMMIT,
        GucContext::Userset,
        GucFlags::default(),
    );
    GucRegistry::define_enum_guc(
        c"pg_fdw_xacts.consistent_reads",
        c"Whether the foreign servers that are read together show the same transactions.",
        c"on: under READ COMMITTED in each query, otherwise in the whole transaction. auto: only under REPEATABLE READ and SERIALIZABLE. off: each server is read as it is, and one may show what another does not show yet.",
        &CONSISTENT_READS,
        GucContext::Userset,
        GucFlags::default(),
    );
    GucRegistry::define_enum_guc(
        c"pg_fdw_xacts.remote_isolation",
        c"How a READ COMMITTED transaction sees the foreign servers.",
        c"match: as READ COMMITTED says, each statement sees what is committed when it begins. repeatable read: each server is seen as of the first statement there. The server option of the same name counts before it.",
        &REMOTE_ISOLATION,
        GucContext::Userset,
        GucFlags::default(),
    );
    GucRegistry::define_bool_guc(
        c"pg_fdw_xacts.commit_wait",
        c"Whether COMMIT waits until the foreign servers have confirmed it.",
        c"off: it returns when the transaction is committed here and on its way to them. Other sessions may see it on one server and not yet on another.",
        &COMMIT_WAIT,
        GucContext::Userset,
        GucFlags::default(),
    );
    GucRegistry::define_bool_guc(
        c"pg_fdw_xacts.write_behind",
        c"Whether INSERT ... VALUES into a foreign table goes on without waiting for the server's answer.",
        c"A failure is reported by a later statement that needs an answer of that server, at the latest by COMMIT or PREPARE TRANSACTION.",
        &WRITE_BEHIND,
        GucContext::Userset,
        GucFlags::default(),
    );
    GucRegistry::define_bool_guc(
        c"pg_fdw_xacts.log_remote_commands",
        c"Whether each command that is sent to a foreign server is logged.",
        c"With the server's name and, once it is known, the gid of the transaction; without the values of parameters. New connections and cancel requests are logged too.",
        &LOG_REMOTE_COMMANDS,
        GucContext::Suset,
        GucFlags::default(),
    );
    GucRegistry::define_bool_guc(
        c"pg_fdw_xacts.detect_deadlocks",
        c"Whether deadlocks over several servers are looked for.",
        c"Only when a session has waited for a foreign server for longer than deadlock_timeout.",
        &DETECT_DEADLOCKS,
        GucContext::Sighup,
        GucFlags::default(),
    );
    for int in integers() {
        let (min, max) = int.range;
        GucRegistry::define_int_guc(
            int.name,
            int.short,
            int.long,
            int.setting,
            min,
            max,
            int.context,
            int.unit,
        );
    }
    // SAFETY: the prefix is a static string.
    unsafe {
        pg_sys::MarkGUCPrefixReserved(c"pg_fdw_xacts".as_ptr());
    }
}

fn milliseconds(setting: &GucSetting<i32>) -> Duration {
    Duration::from_millis(setting.get().max(0) as u64)
}

/// When participants are prepared.
pub fn two_phase_commit() -> Mode {
    match TWO_PHASE_COMMIT.get() {
        TwoPhaseCommit::Auto => Mode::Auto,
        TwoPhaseCommit::Always => Mode::Always,
        TwoPhaseCommit::Off => Mode::Off,
    }
}

/// Whether servers are read as of one point in the order of commits.
pub fn consistent_reads() -> ConsistentReads {
    CONSISTENT_READS.get()
}

/// How a READ COMMITTED transaction sees servers that have no option for it.
pub fn remote_isolation() -> RemoteIsolation {
    REMOTE_ISOLATION.get()
}

/// Whether COMMIT waits for the participants' confirmation.
pub fn commit_wait() -> bool {
    COMMIT_WAIT.get()
}

/// Whether INSERTs whose answer nobody needs are not waited for.
pub fn write_behind() -> bool {
    WRITE_BEHIND.get()
}

/// Whether commands to participants are logged.
pub fn log_remote_commands() -> bool {
    LOG_REMOTE_COMMANDS.get()
}

/// Whether waits for participants are made known to the resolver.
pub fn detect_deadlocks() -> bool {
    DETECT_DEADLOCKS.get()
}

/// The deadline of phase one, from its beginning.
pub fn prepare_timeout() -> Duration {
    if PREPARE_TIMEOUT.get() > 0 {
        return milliseconds(&PREPARE_TIMEOUT);
    }
    statement_timeout().map_or(commit_timeout(), |limit| limit.min(commit_timeout()))
}

/// The deadline of phase two and of abort.
pub fn commit_timeout() -> Duration {
    milliseconds(&COMMIT_TIMEOUT)
}

/// How long the resolver waits for a server's answer, and a session for its resolver to come up or
/// to answer. A short deadline of COMMIT is for clients, so it does not count here.
pub fn answer_timeout() -> Duration {
    commit_timeout().max(Duration::from_secs(10))
}

/// How long decisions outlive their confirmation.
pub fn forget_delay() -> Duration {
    Duration::from_secs(FORGET_DELAY.get().max(0) as u64)
}

/// How many labels a role may use in that time, if there is a limit.
pub fn track_limit() -> Option<u64> {
    u64::try_from(TRACK_LIMIT.get()).ok().filter(|limit| *limit > 0)
}

/// How long labels are kept.
pub fn track_retention() -> Duration {
    Duration::from_secs(TRACK_RETENTION.get().max(1) as u64)
}

/// How long a connection may be idle, in milliseconds; 0: as long as it likes.
pub fn idle_connection_timeout() -> i32 {
    IDLE_CONNECTION_TIMEOUT.get()
}

/// Rows in one INSERT, where no option says.
pub fn batch_size() -> usize {
    match BATCH_SIZE.get() {
        0 => 200,
        size => size.max(1) as usize,
    }
}

/// Whether that is for a user to say, who has not.
pub fn chooses_batch_size() -> bool {
    BATCH_SIZE.get() == 0
}

/// Slots in shared memory.
pub fn max_foreign_xacts() -> usize {
    MAX_FOREIGN_XACTS.get().max(1) as usize
}

/// Foreign servers with statistics.
pub fn max_servers() -> usize {
    MAX_SERVERS.get().max(1) as usize
}

/// The resolver's rounds.
pub fn resolver_interval() -> Duration {
    Duration::from_secs(RESOLVER_INTERVAL.get().max(1) as u64)
}

/// The resolver's shortest and longest wait before another attempt.
pub fn resolver_retry() -> (Duration, Duration) {
    let (min, max) = (milliseconds(&RESOLVER_RETRY_MIN), milliseconds(&RESOLVER_RETRY_MAX));
    (min, max.max(min))
}
