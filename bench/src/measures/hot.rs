//! Hot rows: clients that change the same few rows on two shards. What fails is tried again.

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use postgres::Client;
use postgres::error::SqlState;

use super::reads::open_accounts;
use crate::contender::Contender;
use crate::effort::{Effort, alternate};
use crate::report::{Report, Table, Target, Unit};
use crate::stand::Stand;
use crate::statistics::{Spread, ratio};

const CLIENTS: usize = 8;
const ROWS: usize = 8;

/// Who changes them, and what its sessions set.
const MANNERS: [(&str, Contender, &str); 3] = [
    ("pg_fdw_xacts, match", Contender::Ours, "SET pg_fdw_xacts.remote_isolation = 'match'"),
    (
        "pg_fdw_xacts, repeatable read",
        Contender::Ours,
        "SET pg_fdw_xacts.remote_isolation = 'repeatable read'",
    ),
    ("postgres_fdw", Contender::Stock, ""),
];
const MATCH: usize = 0;
const REPEATABLE_READ: usize = 1;
const STOCK: usize = 2;

/// What came of a slice: transactions per second, and the share of attempts that failed.
#[derive(Debug, Clone, Copy)]
struct Figures {
    rate: f64,
    failed: f64,
}

/// The rows of the report, and the table behind them.
pub fn measure(stand: &Stand, effort: Effort, report: &mut Report) -> Result<()> {
    open_accounts(stand)?;
    let mut all = MANNERS
        .iter()
        .map(|(_, contender, settings)| {
            let sessions = (0..CLIENTS).map(|_| {
                let mut session = stand.fleet.session()?;
                session.batch_execute(settings)?;
                Ok(session)
            });
            let letter = contender.letter().context("it has foreign tables")?;
            Ok((letter, sessions.collect::<Result<Vec<Client>>>()?))
        })
        .collect::<Result<Vec<_>>>()?;
    let length = effort.slice() * effort.choose(1, 2);
    let what = format!("{CLIENTS} clients on {ROWS} hot rows");
    let measured = alternate(&what, effort.rounds(), &mut all, |(letter, sessions)| {
        slice(*letter, sessions, length)
    })?;
    let of = |place: usize, figure: fn(&Figures) -> f64| -> Vec<f64> {
        measured[place].iter().map(figure).collect()
    };
    let (rate, failed) = (|figures: &Figures| figures.rate, |figures: &Figures| figures.failed);
    for (other, least) in [(REPEATABLE_READ, Some(Target::AtLeast(1.2))), (STOCK, None)] {
        report.row(
            format!("hot rows: throughput with match, against {}", MANNERS[other].0),
            ratio(&of(MATCH, rate), &of(other, rate)),
            Unit::Ratio,
            least,
            "what fails is tried again",
        );
    }
    report.row(
        "hot rows: attempts that fail with match".to_owned(),
        Spread::of(&of(MATCH, failed)),
        Unit::Ratio,
        Some(Target::AtMost(0.0)),
        "40001",
    );
    report.tables.push(Table {
        title: format!(
            "{CLIENTS} clients that each change one of {ROWS} rows on each of 2 shards, without a delay"
        ),
        condition: "who, and `remote_isolation`".to_owned(),
        columns: ["transactions per s", "failed per attempt"].map(str::to_owned).to_vec(),
        lines: (0..MANNERS.len())
            .map(|place| {
                let values = vec![Spread::of(&of(place, rate)), Spread::of(&of(place, failed))];
                (MANNERS[place].0.to_owned(), values)
            })
            .collect(),
        plot: None,
    });
    Ok(())
}

/// All at once for `length`.
fn slice(letter: char, sessions: &mut [Client], length: Duration) -> Result<Figures> {
    let (stop, done, failed) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let barrier = Barrier::new(sessions.len() + 1);
    let seconds = std::thread::scope(|scope| {
        let (stop, done, failed, barrier) = (&stop, &done, &failed, &barrier);
        let threads: Vec<_> = sessions
            .iter_mut()
            .enumerate()
            .map(|(number, session)| {
                scope.spawn(move || -> Result<()> {
                    barrier.wait();
                    let mut turn = number;
                    while !stop.load(Ordering::Relaxed) {
                        // Each has an order of its own, in which all rows come equally often.
                        turn = (turn * 5 + 3) % ROWS.pow(2);
                        let counter = if transfer(session, letter, turn)? { done } else { failed };
                        counter.fetch_add(1, Ordering::Relaxed);
                    }
                    Ok(())
                })
            })
            .collect();
        barrier.wait();
        let start = Instant::now();
        std::thread::sleep(length);
        stop.store(true, Ordering::Relaxed);
        for thread in threads {
            thread.join().map_err(|_| anyhow!("a client panicked"))??;
        }
        Ok::<_, anyhow::Error>(start.elapsed().as_secs_f64())
    })?;
    let (done, failed) = (done.into_inner() as f64, failed.into_inner() as f64);
    Ok(Figures { rate: done / seconds, failed: failed / (done + failed).max(1.0) })
}

/// Moves money from a row of the first shard to one of the second; whether it did.
fn transfer(session: &mut Client, letter: char, turn: usize) -> Result<bool> {
    let (from, to) = (turn % ROWS + 1, turn / ROWS + 1);
    for statement in [
        "BEGIN",
        &format!("UPDATE {letter}1_account SET balance = balance - 1 WHERE id = {from}"),
        &format!("UPDATE {letter}2_account SET balance = balance + 1 WHERE id = {to}"),
        "COMMIT",
    ] {
        match session.batch_execute(statement) {
            Err(error) if error.code() == Some(&SqlState::T_R_SERIALIZATION_FAILURE) => {
                session.batch_execute("ROLLBACK")?;
                return Ok(false);
            }
            result => result?,
        }
    }
    Ok(true)
}
