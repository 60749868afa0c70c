//! How many waits for the network something has in sequence: its time on a slow network divided by
//! the round-trip time. The shortest of several attempts counts, because other work of the machine
//! can only add to it.

use std::time::{Duration, Instant};

use anyhow::Result;
use postgres::Client;

use crate::contender::Contender;
use crate::effort::Effort;
use crate::progress::say;
use crate::report::{Report, Table, Target, Unit};
use crate::stand::{Ids, Route, SHARDS, Stand};
use crate::statistics::Spread;

const ROUND_TRIP: Duration = Duration::from_millis(20);

/// Something to be timed. In the statements "{1}" is the foreign table of shard 1, and so on, and
/// "{id}" another number each time.
struct Probe {
    measure: String,
    /// The most waits it may have.
    target: u32,
    /// The same with `commit_wait = off`, where that is another number.
    without_wait: Option<u32>,
    /// The same with `write_behind`.
    behind: Option<u32>,
    /// Whether `parallel_commit` makes a difference.
    writes_on_many: bool,
    /// Run before, not timed.
    before: String,
    timed: String,
    /// Run after, not timed.
    after: String,
    /// Whether each attempt has a new session, which knows no connection yet.
    cold: bool,
}

fn probe(measure: &str, target: u32, timed: &str) -> Probe {
    Probe {
        measure: measure.to_owned(),
        target,
        without_wait: None,
        behind: None,
        writes_on_many: false,
        before: String::new(),
        timed: timed.to_owned(),
        after: String::new(),
        cold: false,
    }
}

impl Probe {
    /// Whether a contender may need another number of waits than the one before it in the table.
    fn differs(&self, contender: Contender) -> bool {
        match contender {
            Contender::OursWithoutWait => self.without_wait.is_some(),
            Contender::OursBehind => self.behind.is_some(),
            Contender::StockParallel => self.writes_on_many,
            _ => true,
        }
    }
}

/// `BEGIN`, an INSERT on each of the first `shards` shards, `COMMIT`.
fn transaction(shards: usize) -> String {
    let inserts: String = (1..=shards)
        .map(|shard| format!("INSERT INTO {{{shard}}} VALUES ({{id}}, 'value'); "))
        .collect();
    format!("BEGIN; {inserts}COMMIT")
}

fn probes() -> Vec<Probe> {
    vec![
        Probe {
            without_wait: Some(3),
            behind: Some(3),
            writes_on_many: true,
            ..probe("2 single-row inserts on 2 shards + commit", 4, &transaction(2))
        },
        probe("autocommit single-row INSERT", 1, "INSERT INTO {1} VALUES ({id}, 'value')"),
        probe("autocommit direct UPDATE", 1, "UPDATE {1} SET v = 'value' WHERE id = 0"),
        Probe {
            without_wait: Some(1),
            ..probe(
                "SELECT that fits one fetch, in its own transaction",
                2,
                "SELECT * FROM {1} WHERE id = 0",
            )
        },
        probe(
            "INSERT of 100 rows without `batch_size`, with commit",
            3,
            "INSERT INTO {1} SELECT -(1000 * {id} + i), 'value' FROM generate_series(1, 100) i",
        ),
        Probe {
            before: "BEGIN; INSERT INTO {1} VALUES ({id}, 'value')".to_owned(),
            after: "COMMIT".to_owned(),
            ..probe(
                "savepoint + statement + release",
                1,
                "SAVEPOINT s; UPDATE {1} SET v = 'value' WHERE id = 0; RELEASE s",
            )
        },
        Probe {
            behind: Some(3),
            writes_on_many: true,
            ..probe("one insert on each of 8 shards + commit", 10, &transaction(SHARDS))
        },
        Probe {
            after: "COMMIT".to_owned(),
            cold: true,
            ..probe(
                "first statement on a new connection (connecting takes 1)",
                2,
                "BEGIN; SELECT * FROM {1} WHERE id = 0",
            )
        },
    ]
}

/// The rows of the report on waits and turns.
pub fn measure(stand: &Stand, effort: Effort, report: &mut Report) -> Result<()> {
    let attempts = effort.choose(3, 5);
    let contenders: Vec<Contender> = stand
        .contenders()
        .into_iter()
        .filter(|contender| *contender != Contender::Application)
        .collect();
    let mut lines = Vec::new();
    for probe in probes() {
        let counts = contenders
            .iter()
            .map(|contender| match probe.differs(*contender) {
                true => waits(stand, *contender, &probe, attempts).map(Some),
                false => Ok(None),
            })
            .collect::<Result<Vec<Option<u32>>>>()?;
        let of = |wanted| contenders.iter().zip(&counts).find(|(c, _)| **c == wanted)?.1.as_ref();
        let mut remark = String::new();
        if let Some(stock) = of(Contender::Stock) {
            remark = format!("postgres_fdw {stock}");
        }
        if let Some(parallel) = of(Contender::StockParallel) {
            remark += &format!(", with parallel_commit {parallel}");
        }
        for (contender, target, setting) in [
            (Contender::Ours, Some(probe.target), ""),
            (Contender::OursWithoutWait, probe.without_wait, ", `commit_wait = off`"),
            (Contender::OursBehind, probe.behind, ", `write_behind = on`"),
        ] {
            if let Some((target, count)) = target.zip(of(contender)) {
                let measure = format!("waits: {}{setting}", probe.measure);
                add(report, &measure, target, *count, remark.clone());
            }
        }
        let counts = counts.into_iter().map(|count| Some(Spread::single(f64::from(count?))));
        lines.push((probe.measure, counts.collect()));
    }
    report.tables.push(Table {
        title: "Waits for the network, one after the other".to_owned(),
        condition: "statements".to_owned(),
        columns: contenders.iter().map(|contender| contender.label().to_owned()).collect(),
        lines,
        plot: None,
    });
    let [ours, stock] = [turns(stand, Contender::Ours)?, turns(stand, Contender::Stock)?];
    add(
        report,
        "turns per connection: 2 single-row inserts on 2 shards + commit",
        3,
        ours,
        format!("postgres_fdw {stock}"),
    );
    Ok(())
}

fn add(report: &mut Report, measure: &str, target: u32, figure: u32, remark: String) {
    let figure = Some(Spread::single(f64::from(figure)));
    report.row(measure, figure, Unit::Count, Some(Target::AtMost(f64::from(target))), remark);
}

/// How many waits `probe` has. More than `attempts` are made while a contender of this extension
/// seems to have more waits than it may.
fn waits(stand: &Stand, contender: Contender, probe: &Probe, attempts: usize) -> Result<u32> {
    let limit = match contender {
        Contender::Ours => probe.target,
        Contender::OursWithoutWait => probe.without_wait.unwrap_or(probe.target),
        Contender::OursBehind => probe.behind.unwrap_or(probe.target),
        _ => u32::MAX - 1,
    };
    say(&format!("waits: {}: {}", probe.measure, contender.label()));
    let ids = stand.ids();
    let mut session = stand.client(contender)?;
    stand.set_round_trip(Duration::ZERO);
    for _ in 0..3 {
        attempt(&mut session, contender, probe, &ids)?;
    }
    let mut best = Duration::MAX;
    let mut made = 0;
    // On a busy machine it takes more attempts until one is not disturbed.
    while made < attempts
        || (best.div_duration_f64(ROUND_TRIP) >= f64::from(limit + 1) && made < 4 * attempts)
    {
        made += 1;
        if probe.cold {
            session = stand.client(contender)?;
        } else {
            // Reads what is under way, so that it is not waited for below.
            stand.set_round_trip(Duration::ZERO);
            attempt(&mut session, contender, probe, &ids)?;
        }
        stand.set_round_trip(ROUND_TRIP);
        best = best.min(attempt(&mut session, contender, probe, &ids)?);
    }
    stand.set_round_trip(Duration::ZERO);
    Ok(best.div_duration_f64(ROUND_TRIP) as u32)
}

fn attempt(
    session: &mut Client,
    contender: Contender,
    probe: &Probe,
    ids: &Ids,
) -> Result<Duration> {
    let id = ids.next();
    session.batch_execute(&fill(&probe.before, contender, id)?)?;
    let timed = fill(&probe.timed, contender, id)?;
    let start = Instant::now();
    session.batch_execute(&timed)?;
    let time = start.elapsed();
    session.batch_execute(&fill(&probe.after, contender, id)?)?;
    Ok(time)
}

/// The most turns that a connection takes in a transaction on two shards.
fn turns(stand: &Stand, contender: Contender) -> Result<u32> {
    let mut session = stand.session(contender, Route::Linked, 2)?;
    let before = stand.turns();
    session.transaction(stand.ids().next())?;
    let turns = stand.turns().into_iter().zip(before).map(|(after, before)| after - before);
    Ok(u32::try_from(turns.max().unwrap_or(0))?)
}

/// Puts tables and `id` into `statements`.
fn fill(statements: &str, contender: Contender, id: i32) -> Result<String> {
    let mut text = statements.replace("{id}", &id.to_string());
    for shard in 1..=SHARDS {
        text =
            text.replace(&format!("{{{shard}}}"), &Stand::table(contender, Route::Linked, shard)?);
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::{fill, transaction};
    use crate::contender::Contender;

    #[test]
    fn statements_are_filled_in_for_a_contender() {
        assert_eq!(
            fill(&transaction(2), Contender::Stock, 7).expect("it has tables"),
            "BEGIN; INSERT INTO s1_link VALUES (7, 'value'); INSERT INTO s2_link VALUES (7, 'value'); COMMIT"
        );
        assert!(fill("", Contender::Application, 7).is_err());
    }
}
