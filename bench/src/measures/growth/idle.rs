//! Idle sessions of the coordinator that have used sixteen shards: what they cost the shards, and
//! what can be done about it.

use std::time::Instant;

use anyhow::Result;
use pg_test::pooler::{PGBOUNCER_VARIABLE, Pooler};
use pg_test::{Cluster, wait_until};
use postgres::Client;

use super::ground::{Ground, PATIENCE};
use super::memory;
use super::work::milliseconds;
use crate::curve::{Curve, Figure};
use crate::effort::Effort;
use crate::progress::say;

const SHARDS: usize = 16;
const SERVERS: usize = 2;

/// How many server processes a pooler keeps for each database.
const POOL: usize = 20;

/// Of how many sessions the next transaction is measured.
const SAMPLE: usize = 20;

/// At least so much memory is left to the machine, in megabytes, and a process takes at most so
/// much.
const RESERVE: f64 = 4000.0;
const PER_PROCESS: f64 = 3.0;

const KEPT: &str = "Each session keeps a connection to each shard that it has used.";
const ENDED: &str = "The shards have ended what was idle.";
const CLOSED: &str = "The sessions close their connections with each transaction.";

/// What is done about idle connections.
struct Manner {
    /// The names of its foreign servers begin so.
    prefix: &'static str,
    options: &'static str,
    settings: &'static str,
    is_pooled: bool,
    /// No connection stays after a while.
    ends: bool,
    /// Of how many sessions it is measured at most: connecting again and again takes long.
    most: usize,
    processes: Figure,
    memory: Figure,
    next: Figure,
}

const MANNERS: [Manner; 4] = [
    Manner {
        prefix: "kept",
        options: "",
        settings: "",
        is_pooled: false,
        ends: false,
        most: usize::MAX,
        processes: Figure { label: "as installed", reason: KEPT },
        memory: Figure { label: "as installed", reason: KEPT },
        next: Figure { label: "as installed", reason: "" },
    },
    Manner {
        prefix: "timed",
        options: "",
        settings: "SET pg_fdw_xacts.idle_connection_timeout = '1s'",
        is_pooled: false,
        ends: true,
        most: usize::MAX,
        processes: Figure { label: "idle_connection_timeout", reason: ENDED },
        memory: Figure { label: "idle_connection_timeout", reason: ENDED },
        next: Figure { label: "idle_connection_timeout", reason: "" },
    },
    Manner {
        prefix: "closed",
        options: ", keep_connections 'off'",
        settings: "",
        is_pooled: false,
        ends: true,
        most: 50,
        processes: Figure { label: "keep_connections off", reason: CLOSED },
        memory: Figure { label: "keep_connections off", reason: CLOSED },
        next: Figure { label: "keep_connections off", reason: "" },
    },
    Manner {
        prefix: "pooled",
        options: ", keep_connections 'off'",
        settings: "",
        is_pooled: true,
        ends: false,
        most: 10,
        processes: Figure {
            label: "keep_connections off, PgBouncer in session mode",
            reason: CLOSED,
        },
        memory: Figure { label: "keep_connections off, PgBouncer in session mode", reason: CLOSED },
        next: Figure { label: "keep_connections off, PgBouncer in session mode", reason: "" },
    },
];

/// From one session to two hundred.
pub fn measure(effort: Effort) -> Result<Vec<Curve>> {
    let ground = Ground::start(
        SERVERS,
        &[("max_connections", "300")],
        &[("max_connections", "1800"), ("max_prepared_transactions", "50")],
    )?;
    ground.make_shards(1, SHARDS)?;
    let has_pooler = std::env::var_os(PGBOUNCER_VARIABLE).is_some();
    let manners: Vec<&Manner> =
        MANNERS.iter().filter(|manner| !manner.is_pooled || has_pooler).collect();
    let mut watch = Watch::start(&ground)?;
    let how =
        "Each session has read once on each of 16 shards, databases of two servers, and is idle.";
    let mut curves = [
        Curve::new("idle-processes", "idle sessions: server processes on the shards", how),
        Curve::new("idle-memory", "idle sessions: memory of these processes, MB", how),
        Curve::new(
            "idle-next",
            "idle sessions: the next read on one shard, ms",
            format!("{how} At most {SAMPLE} of them, one after the other."),
        ),
    ];
    for &sessions in effort.choose(&[1, 10][..], &[1, 10, 50, 200]) {
        if memory::available()? < RESERVE + PER_PROCESS * (sessions * SHARDS) as f64 {
            say(&format!("not enough memory for {sessions} idle sessions: left out"));
            break;
        }
        curves.iter_mut().for_each(|curve| curve.point(sessions));
        for manner in manners.iter().filter(|manner| sessions <= manner.most) {
            say(&format!("{sessions} idle sessions, {}", manner.processes.label));
            measure_manner(&ground, &mut watch, manner, sessions, &mut curves)?;
        }
    }
    Ok(curves.into())
}

fn measure_manner(
    ground: &Ground,
    watch: &mut Watch,
    manner: &Manner,
    count: usize,
    [processes, memory, next]: &mut [Curve; 3],
) -> Result<()> {
    let before = watch.processes()?.len();
    let poolers = match manner.is_pooled {
        true => (1..=SERVERS)
            .map(|number| Pooler::start(ground.fleet.shard(number), "session", POOL))
            .collect::<Result<Vec<_>>>()?,
        false => Vec::new(),
    };
    connect(ground, &poolers, manner)?;
    let mut sessions = (0..count)
        .map(|_| {
            let mut session = ground.fleet.session()?;
            for shard in 1..=SHARDS {
                read(&mut session, manner, shard)?;
            }
            if !manner.settings.is_empty() {
                session.batch_execute(manner.settings)?;
                // The next transaction tells the servers.
                for shard in 1..=SHARDS {
                    read(&mut session, manner, shard)?;
                }
            }
            Ok(session)
        })
        .collect::<Result<Vec<Client>>>()?;
    if manner.ends {
        wait_until("the connections are closed", PATIENCE, || {
            Ok(watch.processes()?.len() <= before)
        })?;
    }
    let pids = watch.processes()?;
    processes.note(manner.processes, &[pids.len() as f64]);
    let used = pids.iter().filter_map(|pid| memory::of_process(*pid).ok());
    // The sum of nothing would be -0.
    memory.note(manner.memory, &[used.fold(0.0, |sum, one| sum + one)]);
    let times = sessions
        .iter_mut()
        .take(SAMPLE)
        .map(|session| {
            let start = Instant::now();
            read(session, manner, 1)?;
            Ok(milliseconds(start.elapsed()))
        })
        .collect::<Result<Vec<f64>>>()?;
    next.note(manner.next, &times);
    drop(sessions);
    drop(poolers);
    wait_until("the sessions have ended", PATIENCE, || Ok(watch.processes()?.len() <= before))
}

fn read(session: &mut Client, manner: &Manner, shard: usize) -> Result<()> {
    let query = format!("SELECT v FROM {}{shard} WHERE id = 0", manner.prefix);
    Ok(session.batch_execute(&query)?)
}

/// Foreign tables for each shard.
fn connect(ground: &Ground, poolers: &[Pooler], manner: &Manner) -> Result<()> {
    let mut session = ground.fleet.session()?;
    for shard in 1..=SHARDS {
        let port = match manner.is_pooled {
            true => poolers[(shard - 1) % SERVERS].port(),
            false => ground.server_of(shard).port(),
        };
        let (name, database) = (format!("{}{shard}", manner.prefix), ground.database_of(shard));
        let options = manner.options;
        session.batch_execute(&format!(
            "SET client_min_messages = error;
             DROP SERVER IF EXISTS {name} CASCADE;
             CREATE SERVER {name} FOREIGN DATA WRAPPER pg_fdw_xacts OPTIONS
                 (host '127.0.0.1', port '{port}', dbname '{database}', sslmode 'disable'{options});
             CREATE USER MAPPING FOR CURRENT_USER SERVER {name} OPTIONS (user 'postgres');
             CREATE FOREIGN TABLE {name} (id int NOT NULL, v text) SERVER {name}
                 OPTIONS (table_name 't')"
        ))?;
    }
    Ok(())
}

/// Sessions on the shards' servers that look at the others.
struct Watch(Vec<Client>);

impl Watch {
    fn start(ground: &Ground) -> Result<Self> {
        ground.fleet.shards().iter().map(Cluster::client).collect::<Result<_>>().map(Self)
    }

    /// The processes of all other sessions there.
    fn processes(&mut self) -> Result<Vec<i32>> {
        let sql = "SELECT pid FROM pg_stat_activity
                   WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()";
        let mut all = Vec::new();
        for client in &mut self.0 {
            all.extend(client.query(sql, &[])?.iter().map(|row| row.get::<_, i32>(0)));
        }
        Ok(all)
    }
}
