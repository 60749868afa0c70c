//! Foreign partitions in one query, on two shards.

use anyhow::Result;
use postgres::Client;

use super::ground::Ground;
use super::work::rounds;
use crate::contender::Contender;
use crate::curve::{Curve, Figure};
use crate::effort::{Effort, alternate};
use crate::measures::processor::used_by_process;

const EACH: &str = "What a query costs once is divided by more partitions; then PostgreSQL's planner and executor, \
                    whose work for one partition grows with the number of tables of the query.";
const ONE: &str = "PostgreSQL reads the bounds of all partitions when a session first plans for the table, and finds \
                   the right one by bisection.";

/// What a session does, by its name in the report.
struct Work {
    query: &'static str,
    settings: &'static str,
    per_partition: bool,
    figures: [Figure; 2],
}

const WORKS: [Work; 4] = [
    Work {
        query: "SELECT count(*) FROM {}",
        settings: "SET enable_async_append = off",
        per_partition: true,
        figures: [
            Figure {
                label: "scan, one after the other: processor time per partition, µs",
                reason: EACH,
            },
            Figure { label: "postgres_fdw: the same, µs", reason: EACH },
        ],
    },
    Work {
        query: "SELECT count(*) FROM {}",
        settings: "SET enable_async_append = on",
        per_partition: true,
        figures: [
            Figure {
                label: "scan, async_capable: processor time per partition, µs", reason: EACH
            },
            Figure { label: "postgres_fdw: async_capable, µs", reason: EACH },
        ],
    },
    Work {
        query: "SELECT v FROM {} WHERE id = 5",
        settings: "",
        per_partition: false,
        figures: [
            Figure { label: "SELECT by key: processor time, µs", reason: ONE },
            Figure { label: "postgres_fdw: SELECT by key, µs", reason: ONE },
        ],
    },
    Work {
        query: "UPDATE {} SET v = 'b'",
        settings: "",
        per_partition: true,
        figures: [
            Figure { label: "UPDATE of all: processor time per partition, µs", reason: EACH },
            Figure { label: "postgres_fdw: UPDATE of all, µs", reason: EACH },
        ],
    },
];

const CONTENDERS: [Contender; 2] = [Contender::Ours, Contender::StockParallel];

/// From one to a thousand.
pub fn measure(effort: Effort) -> Result<Vec<Curve>> {
    let locks = ("max_locks_per_transaction", "256");
    let ground = Ground::start(2, &[locks], &[locks])?;
    ground.make_shards(1, 2)?;
    let mut curve = Curve::new(
        "partitions",
        "foreign partitions in a query",
        "Partitions of one row on two shards in turn. The processor time is that of the session's process on the \
         coordinator.",
    );
    for number in [1, 2] {
        ground.fleet.session()?.batch_execute(&format!(
            "ALTER SERVER x{number} OPTIONS (ADD async_capable 'true');
             ALTER SERVER p{number} OPTIONS (ADD async_capable 'true')"
        ))?;
    }
    for &partitions in effort.choose(&[1, 10, 100][..], &[1, 10, 100, 1_000]) {
        curve.point(partitions);
        make(&ground, partitions)?;
        for work in &WORKS {
            let mut sessions = CONTENDERS
                .iter()
                .map(|contender| session(&ground, *contender, work))
                .collect::<Result<Vec<_>>>()?;
            let what = format!("{partitions} partitions, {}", work.figures[0].label);
            let repeat = (effort.choose(50, 500) / partitions).max(2);
            let measured = alternate(&what, rounds(effort), &mut sessions, |session| {
                let (client, pid, query) = session;
                let before = used_by_process(*pid)?;
                for _ in 0..repeat {
                    client.batch_execute(query)?;
                }
                let used = (used_by_process(*pid)? - before) / 1000.0 / repeat as f64;
                Ok(if work.per_partition { used / partitions as f64 } else { used })
            })?;
            for (figure, used) in work.figures.iter().zip(&measured) {
                curve.note(*figure, used);
            }
        }
    }
    Ok(vec![curve])
}

fn name(contender: Contender) -> char {
    contender.letter().unwrap_or('x')
}

/// Tables `xs` and `ps` with so many partitions of one row.
fn make(ground: &Ground, partitions: usize) -> Result<()> {
    for shard in ground.fleet.shards() {
        let mut session = shard.client()?;
        session.batch_execute("SET client_min_messages = error; DROP TABLE IF EXISTS one; CREATE TABLE one (id int, v text)")?;
    }
    let mut session = ground.fleet.session()?;
    session.batch_execute("SET client_min_messages = error")?;
    for contender in CONTENDERS {
        let letter = name(contender);
        session.batch_execute(&format!(
            "DROP TABLE IF EXISTS {letter}s;
             CREATE TABLE {letter}s (id int, v text) PARTITION BY RANGE (id);
             DO $$ BEGIN
                 FOR i IN 1 .. {partitions} LOOP
                     EXECUTE format('CREATE FOREIGN TABLE {letter}s%s PARTITION OF {letter}s
                         FOR VALUES FROM (%s) TO (%s) SERVER {letter}%s
                         OPTIONS (schema_name ''public'', table_name ''one'')', i, i * 10, i * 10 + 10, i % 2 + 1);
                 END LOOP;
             END $$"
        ))?;
    }
    Ok(())
}

/// A warm session with its process, and its query.
fn session(ground: &Ground, contender: Contender, work: &Work) -> Result<(Client, i32, String)> {
    let mut client = ground.fleet.session()?;
    client.batch_execute(work.settings)?;
    let query = work.query.replace("{}", &format!("{}s", name(contender)));
    for _ in 0..2 {
        client.batch_execute(&query)?;
    }
    let pid = client.query_one("SELECT pg_backend_pid()", &[])?.get(0);
    Ok((client, pid, query))
}
