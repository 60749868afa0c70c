//! How many transactions on two shards several clients commit in a second, without a delay in
//! between.

use std::sync::Barrier;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

use crate::contender::{Contender, Session, Timing};
use crate::effort::{Effort, alternate};
use crate::report::{Headline, Report, Table, Target, Unit};
use crate::stand::{Ids, Route, Stand};
use crate::statistics::{Spread, ratio};

const CLIENTS: [usize; 2] = [1, 16];
/// Ours, the peer, and the least ratio.
const COMPARISONS: [(Contender, Contender, f64); 3] = [
    (Contender::Ours, Contender::StockParallel, 0.8),
    (Contender::OursWithoutWait, Contender::StockParallel, 1.0),
    (Contender::Ours, Contender::Application, 0.8),
];

/// The rows of the report on throughput, and the table behind them.
pub fn measure(stand: &Stand, effort: Effort, report: &mut Report) -> Result<()> {
    let contenders = stand.contenders();
    let mut lines: Vec<(String, Vec<Option<Spread>>)> =
        contenders.iter().map(|contender| (contender.label().to_owned(), Vec::new())).collect();
    for clients in CLIENTS {
        let mut sessions = contenders
            .iter()
            .map(|contender| {
                (0..clients)
                    .map(|_| stand.session(*contender, Route::Direct, 2))
                    .collect::<Result<Vec<_>>>()
            })
            .collect::<Result<Vec<_>>>()?;
        let ids = stand.ids();
        let length = effort.slice() * effort.choose(1, 2);
        let what = format!("throughput, {clients} clients");
        let measured = alternate(&what, effort.rounds(), &mut sessions, |sessions| {
            slice(sessions, &ids, length)
        })?;
        for ((_, values), rates) in lines.iter_mut().zip(&measured) {
            values.push(Spread::of(rates));
        }
        let rates = |contender| {
            let place = contenders.iter().position(|other| *other == contender)?;
            Some(&measured[place])
        };
        for (ours, theirs, least) in COMPARISONS {
            let figure = rates(ours).zip(rates(theirs)).and_then(|(a, b)| ratio(a, b));
            if (clients, ours, theirs) == (16, Contender::Ours, Contender::StockParallel) {
                report.headline(Headline::Throughput, figure);
            }
            report.row(
                format!(
                    "throughput, {}: {}, against {}",
                    if clients == 1 { "1 client".to_owned() } else { format!("{clients} clients") },
                    ours.label(),
                    theirs.label()
                ),
                figure,
                Unit::Ratio,
                Some(Target::AtLeast(least)),
                "",
            );
        }
    }
    report.tables.push(Table {
        title: "Transactions on 2 shards per second, without a delay".to_owned(),
        condition: "clients".to_owned(),
        columns: CLIENTS.map(|clients| clients.to_string()).to_vec(),
        lines,
        plot: None,
    });
    Ok(())
}

/// All `sessions` at once for `length`; transactions per second.
pub fn slice(sessions: &mut [Session], ids: &Ids, length: Duration) -> Result<f64> {
    let start = Instant::now();
    let count = timed_slice(sessions, ids, length)?.len();
    Ok(count as f64 / start.elapsed().as_secs_f64())
}

/// All `sessions` at once for `length`: what each transaction took.
pub fn timed_slice(sessions: &mut [Session], ids: &Ids, length: Duration) -> Result<Vec<Timing>> {
    let barrier = Barrier::new(sessions.len());
    std::thread::scope(|scope| {
        let threads: Vec<_> = sessions
            .iter_mut()
            .map(|session| {
                let barrier = &barrier;
                scope.spawn(move || -> Result<Vec<Timing>> {
                    barrier.wait();
                    let start = Instant::now();
                    let mut timings = Vec::new();
                    while start.elapsed() < length {
                        timings.push(session.transaction(ids.next())?);
                    }
                    Ok(timings)
                })
            })
            .collect();
        let mut all = Vec::new();
        for thread in threads {
            all.extend(thread.join().map_err(|_| anyhow!("a client panicked"))??);
        }
        Ok(all)
    })
}
