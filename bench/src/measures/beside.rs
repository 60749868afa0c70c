//! Readers beside writers: what the ones cost the others, and how often readers have to begin
//! again.

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use postgres::error::SqlState;
use postgres::{Client, Error, SimpleQueryMessage};

use super::reads::{ACCOUNTS, DEPOSIT, Manner, open_accounts};
use crate::effort::{Effort, alternate};
use crate::report::{Report, Table, Target, Unit};
use crate::stand::{Route, SHARDS, Stand};
use crate::statistics::{Spread, ratio};

const WRITERS: usize = 16;

/// How many readers, and how they read.
const READERS: [(usize, Manner); 5] = [
    (0, Manner::Off),
    (4, Manner::Off),
    (4, Manner::On),
    (4, Manner::Fixed),
    (4, Manner::OneByOne),
];

/// Those who read in one way.
struct Readers {
    sessions: Vec<Client>,
    transaction: Vec<String>,
}

/// What came of a slice, per second or per read.
#[derive(Debug, Default, Clone, Copy)]
struct Figures {
    transactions: f64,
    reads: f64,
    torn: f64,
    refused: f64,
    rounds_per_cut: f64,
    windows: f64,
}

/// What was counted in a slice.
#[derive(Default)]
struct Counters {
    stop: AtomicBool,
    transactions: AtomicU64,
    reads: AtomicU64,
    torn: AtomicU64,
    refused: AtomicU64,
}

/// The rows of the report, and the table behind them.
pub fn measure(stand: &Stand, effort: Effort, report: &mut Report) -> Result<()> {
    open_accounts(stand)?;
    let mut writers =
        (0..WRITERS).map(|_| stand.fleet.session()).collect::<Result<Vec<Client>>>()?;
    let mut readers = READERS
        .iter()
        .map(|(count, manner)| {
            let session = |_| {
                let mut session = stand.fleet.session()?;
                session.batch_execute(manner.setting())?;
                Ok(session)
            };
            let sessions = (0..*count).map(session).collect::<Result<Vec<_>>>()?;
            let transaction = manner.transaction(Route::Direct, SHARDS)?;
            Ok(Readers { sessions, transaction })
        })
        .collect::<Result<Vec<_>>>()?;
    let what = format!("{WRITERS} writers beside readers");
    let length = effort.slice() * effort.choose(1, 3);
    // Connects.
    for readers in &mut readers {
        slice(stand, &mut writers, readers, effort.slice() / 4)?;
    }
    let measured = alternate(&what, effort.rounds(), &mut readers, |readers| {
        slice(stand, &mut writers, readers, length)
    })?;
    rows(&measured, report);
    let line = |(place, (count, manner)): (usize, &(usize, Manner))| {
        let label = match count {
            0 => "nobody".to_owned(),
            count => format!("{count}: {}", manner.label()),
        };
        let of = |figure: fn(&Figures) -> f64| Spread::of(&by_round(&measured[place], figure));
        let is_read = *count > 0;
        let is_cut = is_read && *manner != Manner::Off;
        let values = vec![
            of(|figures| figures.transactions),
            of(|figures| figures.reads).filter(|_| is_read),
            of(|figures| figures.torn).filter(|_| is_read),
            of(|figures| figures.refused).filter(|_| is_read),
            of(|figures| figures.rounds_per_cut).filter(|_| is_cut),
            of(|figures| figures.windows).filter(|_| is_cut),
        ];
        (label, values)
    };
    report.tables.push(Table {
        title: format!(
            "{WRITERS} writers of transfers between 2 of {SHARDS} shards, beside readers of the sum over all, without a delay"
        ),
        condition: "readers: consistent_reads".to_owned(),
        columns: ["transactions per s", "reads per s", "wrong per read", "40001 per read", "rounds per cut", "windows per s"]
            .map(str::to_owned)
            .to_vec(),
        lines: READERS.iter().enumerate().map(line).collect(),
        plot: None,
    });
    Ok(())
}

fn by_round(rounds: &[Figures], figure: fn(&Figures) -> f64) -> Vec<f64> {
    rounds.iter().map(figure).collect()
}

fn rows(measured: &[Vec<Figures>], report: &mut Report) {
    let of = |readers: (usize, Manner), figure: fn(&Figures) -> f64| {
        let place = READERS.iter().position(|other| *other == readers)?;
        Some(by_round(&measured[place], figure))
    };
    let transactions = |readers| of(readers, |figures| figures.transactions);
    for (other, beside) in [(0, "nobody"), (4, "4 with off")] {
        let figure = transactions((4, Manner::On)).zip(transactions((other, Manner::Off)));
        report.row(
            format!("consistent reads: throughput of {WRITERS} writers beside 4 with on, against {beside}"),
            figure.and_then(|(on, off)| ratio(&on, &off)),
            Unit::Ratio,
            None,
            "they share the processors",
        );
    }
    report.row(
        format!("consistent reads: 40001 per read of one query beside {WRITERS} writers"),
        of((4, Manner::On), |figures| figures.refused).and_then(|values| Spread::of(&values)),
        Unit::Ratio,
        Some(Target::AtMost(0.01)),
        "4 readers under READ COMMITTED",
    );
    report.row(
        format!("consistent reads: rounds per cut beside {WRITERS} writers"),
        of((4, Manner::On), |figures| figures.rounds_per_cut)
            .and_then(|values| Spread::of(&values)),
        Unit::Ratio,
        None,
        format!("4 readers of {SHARDS} servers"),
    );
}

/// All at once for `length`.
fn slice(
    stand: &Stand,
    writers: &mut [Client],
    readers: &mut Readers,
    length: Duration,
) -> Result<Figures> {
    let counters = Counters::default();
    let mut observer = stand.fleet.session()?;
    let before = statistics(&mut observer)?;
    let barrier = Barrier::new(writers.len() + readers.sessions.len() + 1);
    let seconds = std::thread::scope(|scope| {
        let (counters, barrier, transaction) = (&counters, &barrier, &readers.transaction);
        let mut threads = Vec::new();
        for (number, session) in writers.iter_mut().enumerate() {
            threads.push(scope.spawn(move || {
                barrier.wait();
                write(session, number, counters)
            }));
        }
        for session in &mut readers.sessions {
            threads.push(scope.spawn(move || {
                barrier.wait();
                read(session, transaction, counters)
            }));
        }
        barrier.wait();
        let start = Instant::now();
        std::thread::sleep(length);
        counters.stop.store(true, Ordering::Relaxed);
        for thread in threads {
            thread.join().map_err(|_| anyhow!("a client panicked"))??;
        }
        Ok::<_, anyhow::Error>(start.elapsed().as_secs_f64())
    })?;
    let after = statistics(&mut observer)?;
    let counted = |counter: &AtomicU64| counter.load(Ordering::Relaxed) as f64;
    let reads = counted(&counters.reads);
    let tried = (reads + counted(&counters.refused)).max(1.0);
    let [cuts, rounds, windows] = [0, 1, 2].map(|n| (after[n] - before[n]) as f64);
    Ok(Figures {
        transactions: counted(&counters.transactions) / seconds,
        reads: reads / seconds,
        torn: counted(&counters.torn) / reads.max(1.0),
        refused: counted(&counters.refused) / tried,
        rounds_per_cut: rounds / cuts.max(1.0),
        windows: windows / seconds,
    })
}

/// Cuts, rounds and windows so far.
fn statistics(session: &mut Client) -> Result<[i64; 3]> {
    let row =
        session.query_one("SELECT cuts, rounds, windows FROM pg_stat_fdw_xacts_reads", &[])?;
    Ok([row.get(0), row.get(1), row.get(2)])
}

/// Moves money between two shards, from an account of its own to another of its own, so that
/// nobody waits for anybody.
fn write(session: &mut Client, number: usize, counters: &Counters) -> Result<()> {
    let (account, mut turn) = (number + 1, number);
    while !counters.stop.load(Ordering::Relaxed) {
        let (from, to) = (turn % SHARDS + 1, (turn + 1) % SHARDS + 1);
        for statement in [
            "BEGIN",
            &format!("UPDATE x{from}_account SET balance = balance - 1 WHERE id = {account}"),
            &format!("UPDATE x{to}_account SET balance = balance + 1 WHERE id = {account}"),
            "COMMIT",
        ] {
            session.batch_execute(statement)?;
        }
        counters.transactions.fetch_add(1, Ordering::Relaxed);
        turn += 1;
    }
    Ok(())
}

fn read(session: &mut Client, transaction: &[String], counters: &Counters) -> Result<()> {
    while !counters.stop.load(Ordering::Relaxed) {
        match sum(session, transaction) {
            Ok(sum) => {
                counters.reads.fetch_add(1, Ordering::Relaxed);
                let is_wrong = sum != ACCOUNTS * DEPOSIT * SHARDS as i64;
                counters.torn.fetch_add(u64::from(is_wrong), Ordering::Relaxed);
            }
            Err(error) if error.code() == Some(&SqlState::T_R_SERIALIZATION_FAILURE) => {
                counters.refused.fetch_add(1, Ordering::Relaxed);
                session.batch_execute("ROLLBACK")?;
            }
            Err(error) => return Err(error).context("a reader"),
        }
    }
    Ok(())
}

/// The sum of all numbers that the transaction's queries give.
fn sum(session: &mut Client, transaction: &[String]) -> Result<i64, Error> {
    let mut sum = 0;
    for statement in transaction {
        for message in session.simple_query(statement)? {
            if let SimpleQueryMessage::Row(row) = message {
                sum += row.get(0).and_then(|text| text.parse::<i64>().ok()).unwrap_or(0);
            }
        }
    }
    Ok(sum)
}
