//! Queries over several shards at once: how often they wait shows in their time.

use std::time::Duration;

use anyhow::Result;
use postgres::Client;

use super::reads::open_accounts;
use crate::contender::Contender;
use crate::effort::{Effort, alternate, repeated};
use crate::report::{Report, Table, Unit};
use crate::stand::{Route, SHARDS, Stand};
use crate::statistics::{Spread, ratio};

const ROUND_TRIP: Duration = Duration::from_millis(1);

/// A table with a partition on each shard.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reader {
    Stock,
    InTurn,
    AtOnce,
}

impl Reader {
    const ALL: [Self; 3] = [Self::Stock, Self::InTurn, Self::AtOnce];

    /// The name in tables.
    fn label(self) -> &'static str {
        match self {
            Self::Stock => "postgres_fdw, async_capable",
            Self::InTurn => "pg_fdw_xacts",
            Self::AtOnce => "pg_fdw_xacts, async_capable",
        }
    }

    /// Its name in SQL.
    fn table(self) -> &'static str {
        match self {
            Self::Stock => "stock_accounts",
            Self::InTurn => "accounts_in_turn",
            Self::AtOnce => "accounts_at_once",
        }
    }

    fn create(self, session: &mut Client) -> Result<()> {
        let (table, is_capable) = (self.table(), self != Self::InTurn);
        let contender = if self == Self::Stock { Contender::Stock } else { Contender::Ours };
        session.batch_execute(&format!(
            "CREATE TABLE {table} (id int NOT NULL, balance int8) PARTITION BY LIST (id)"
        ))?;
        for shard in 1..=SHARDS {
            let server = Stand::table(contender, Route::Linked, shard)?;
            session.batch_execute(&format!(
                "CREATE FOREIGN TABLE {table}{shard} PARTITION OF {table} FOR VALUES IN ({shard})
                     SERVER {server} OPTIONS (table_name 'account', async_capable '{is_capable}')"
            ))?;
        }
        Ok(())
    }
}

/// The queries, with the table's name for "{}".
fn queries() -> [(String, &'static str); 3] {
    [
        (format!("sum over {SHARDS} shards"), "SELECT sum(balance) FROM {}"),
        (format!("sorted rows of {SHARDS} shards"), "SELECT balance FROM {} ORDER BY balance"),
        ("FULL JOIN of 2 shards".to_owned(), "SELECT FROM {}1 a FULL JOIN {}2 b USING (id)"),
    ]
}

/// The table of the report, and its rows.
pub fn measure(stand: &Stand, effort: Effort, report: &mut Report) -> Result<()> {
    open_accounts(stand)?;
    let mut session = stand.fleet.session()?;
    for reader in Reader::ALL {
        session.batch_execute(&format!("DROP TABLE IF EXISTS {}", reader.table()))?;
        reader.create(&mut session)?;
    }
    let queries = queries();
    let measured = queries
        .iter()
        .map(|(name, query)| run(stand, effort, name, query))
        .collect::<Result<Vec<_>>>()?;
    for ((name, _), times) in queries.iter().zip(&measured) {
        let [_, in_turn, at_once] = &times[..] else { continue };
        report.row(
            format!("{name} at 1 ms: pg_fdw_xacts, async_capable, against without"),
            ratio(at_once, in_turn),
            Unit::Ratio,
            None,
            "in a transaction of its own",
        );
    }
    let line = |(place, reader): (usize, &Reader)| {
        let values = measured.iter().map(|times| Spread::of(&times[place]));
        (reader.label().to_owned(), values.collect())
    };
    report.tables.push(Table {
        title: "Time of a query over several shards at a round trip of 1 ms, in ms".to_owned(),
        condition: "the whole transaction".to_owned(),
        columns: queries.iter().map(|(name, _)| name.clone()).collect(),
        lines: Reader::ALL.iter().enumerate().map(line).collect(),
        plot: None,
    });
    Ok(())
}

/// Medians of each slice in ms, by reader and round.
fn run(stand: &Stand, effort: Effort, name: &str, query: &str) -> Result<Vec<Vec<f64>>> {
    stand.set_round_trip(Duration::ZERO);
    let mut sessions = Reader::ALL
        .iter()
        .map(|reader| {
            let mut session = stand.fleet.session()?;
            // What is sorted, the shards sort.
            session.batch_execute("SET enable_sort = off")?;
            let query = query.replace("{}", reader.table());
            for _ in 0..Stand::WARM_UP {
                session.batch_execute(&query)?;
            }
            Ok((session, query))
        })
        .collect::<Result<Vec<_>>>()?;
    stand.set_round_trip(ROUND_TRIP);
    let measured = alternate(name, effort.rounds(), &mut sessions, |(session, query)| {
        repeated(effort.slice() / 2, || Ok(session.batch_execute(query)?))
    });
    stand.set_round_trip(Duration::ZERO);
    measured
}
