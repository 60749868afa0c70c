//! How long transactions of one statement take over a network, and one of many single-row INSERTs.

use std::time::Duration;

use anyhow::Result;
use postgres::Client;

use super::processor::STATEMENTS;
use crate::contender::Contender;
use crate::effort::{Effort, alternate, repeated};
use crate::report::{Report, Table, Target, Unit};
use crate::stand::{Ids, Route, Stand};
use crate::statistics::{Spread, ratio};

const ROUND_TRIP: Duration = Duration::from_millis(1);

const INSERTS: usize = 100;

/// What a session runs, by the foreign table and a number of a row; each statement waits for its
/// answer.
type Work = Box<dyn Fn(&str, &Ids) -> Vec<String>>;

/// The table of the report, and the row on many INSERTs.
pub fn measure(stand: &Stand, effort: Effort, report: &mut Report) -> Result<()> {
    let runs = [Contender::Ours, Contender::OursBehind, Contender::Stock];
    let contenders: Vec<Contender> =
        stand.contenders().into_iter().filter(|contender| runs.contains(contender)).collect();
    let works = works();
    let measured = works
        .iter()
        .map(|(name, work)| run(stand, effort, &contenders, name, work))
        .collect::<Result<Vec<_>>>()?;
    let of_many = |contender| {
        let place = contenders.iter().position(|other| *other == contender)?;
        Some(&measured.last()?[place])
    };
    let figure = of_many(Contender::OursBehind).zip(of_many(Contender::Stock));
    report.row(
        format!(
            "{INSERTS} single-row INSERTs at 1 ms: pg_fdw_xacts, write_behind, against postgres_fdw"
        ),
        figure.and_then(|(ours, theirs)| ratio(ours, theirs)),
        Unit::Ratio,
        Some(Target::AtMost(0.35)),
        "time from BEGIN to COMMIT, one shard",
    );
    let line = |(place, contender): (usize, &Contender)| {
        let values = measured.iter().map(|times| Spread::of(&times[place]));
        (contender.label().to_owned(), values.collect())
    };
    report.tables.push(Table {
        title: "Time of a transaction on one shard at a round trip of 1 ms, in ms".to_owned(),
        condition: "the whole transaction".to_owned(),
        columns: works.iter().map(|(name, _)| name.clone()).collect(),
        lines: contenders.iter().enumerate().map(line).collect(),
        plot: None,
    });
    Ok(())
}

/// Those of one statement, then the one of many.
fn works() -> Vec<(String, Work)> {
    let single = STATEMENTS.map(|(name, text)| {
        let work: Work = Box::new(move |table, ids| vec![text(table, ids.next())]);
        (name.to_owned(), work)
    });
    let many: Work = Box::new(|table, ids| {
        let insert = |_| format!("INSERT INTO {table} VALUES ({}, 'value')", ids.next());
        let begin = std::iter::once("BEGIN".to_owned());
        begin.chain((0..INSERTS).map(insert)).chain(["COMMIT".to_owned()]).collect()
    });
    single.into_iter().chain([(format!("{INSERTS} single-row INSERTs"), many)]).collect()
}

/// Medians of each slice in ms, by contender and round.
fn run(
    stand: &Stand,
    effort: Effort,
    contenders: &[Contender],
    name: &str,
    work: &Work,
) -> Result<Vec<Vec<f64>>> {
    let ids = stand.ids();
    stand.set_round_trip(Duration::ZERO);
    let mut sessions = contenders
        .iter()
        .map(|contender| {
            let mut client = stand.client(*contender)?;
            let table = Stand::table(*contender, Route::Linked, 1)?;
            for _ in 0..Stand::WARM_UP {
                once(&mut client, &work(&table, &ids))?;
            }
            Ok((client, table))
        })
        .collect::<Result<Vec<_>>>()?;
    stand.set_round_trip(ROUND_TRIP);
    let measured = alternate(name, effort.rounds(), &mut sessions, |(client, table)| {
        repeated(effort.slice() / 2, || once(client, &work(table, &ids)))
    });
    stand.set_round_trip(Duration::ZERO);
    measured
}

fn once(client: &mut Client, statements: &[String]) -> Result<()> {
    statements.iter().try_for_each(|statement| Ok(client.batch_execute(statement)?))
}
