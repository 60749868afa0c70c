//! What consistent reads cost those who read: a key on one server, and a sum over several, in a
//! transaction of its own.

use std::time::Duration;

use anyhow::Result;
use postgres::Client;

use crate::contender::Contender;
use crate::effort::{Effort, alternate, repeated};
use crate::report::{Headline, Report, Table, Target, Unit};
use crate::stand::{Route, SHARDS, Stand};
use crate::statistics::{Spread, ratio};

/// On each shard, and how much is on each.
pub const ACCOUNTS: i64 = 32;
pub const DEPOSIT: i64 = 1000;

const ROUND_TRIPS: [f64; 2] = [0.0, 1.0];
/// How many servers are read.
const SERVERS: [usize; 3] = [1, 2, 8];

/// How somebody reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// Through postgres_fdw.
    Stock,
    /// `pg_fdw_xacts.consistent_reads = off`.
    Off,
    /// The setting on, under READ COMMITTED.
    On,
    /// The same under REPEATABLE READ.
    Repeatable,
    /// The same behind `pg_fdw_xacts_snapshot()`.
    Fixed,
    /// Under REPEATABLE READ, a query for each server.
    OneByOne,
}

impl Manner {
    /// All that read with one query.
    const ALL: [Self; 5] = [Self::Stock, Self::Off, Self::On, Self::Repeatable, Self::Fixed];

    /// The name in tables.
    pub fn label(self) -> &'static str {
        match self {
            Self::Stock => "postgres_fdw",
            Self::Off => "off",
            Self::On => "on, READ COMMITTED",
            Self::Repeatable => "on, REPEATABLE READ",
            Self::Fixed => "on, REPEATABLE READ, pg_fdw_xacts_snapshot()",
            Self::OneByOne => "on, REPEATABLE READ, server by server",
        }
    }

    /// What its session sets.
    pub fn setting(self) -> &'static str {
        match self {
            Self::Stock | Self::Off => "SET pg_fdw_xacts.consistent_reads = off",
            _ => "SET pg_fdw_xacts.consistent_reads = on",
        }
    }

    /// The foreign table of accounts, by its route and its shard counted from 1.
    fn table(self, route: Route, shard: usize) -> Result<String> {
        let contender = if self == Self::Stock { Contender::Stock } else { Contender::Ours };
        Ok(format!("{}_account", Stand::table(contender, route, shard)?))
    }

    /// A transaction that reads on the first `servers`: its statements, the last of which ends it.
    /// The numbers that its queries give add up to what was asked for.
    pub fn transaction(self, route: Route, servers: usize) -> Result<Vec<String>> {
        let begin = match self {
            Self::Stock | Self::Off | Self::On => "BEGIN",
            _ => "BEGIN ISOLATION LEVEL REPEATABLE READ",
        };
        let mut statements = vec![begin.to_owned()];
        let numbers = 1..=servers;
        if self == Self::Fixed {
            let names = numbers
                .clone()
                .map(|shard| Ok(format!("'{}'", Stand::table(Contender::Ours, route, shard)?)))
                .collect::<Result<Vec<_>>>()?;
            statements.push(format!("SELECT pg_fdw_xacts_snapshot({})", names.join(", ")));
        }
        let tables = numbers.map(|shard| self.table(route, shard)).collect::<Result<Vec<_>>>()?;
        let sum = |from: &str| format!("SELECT sum(balance)::int8 FROM {from}");
        match tables.as_slice() {
            [table] => statements.push(format!("SELECT balance FROM {table} WHERE id = 7")),
            tables if self == Self::OneByOne => {
                statements.extend(tables.iter().map(|table| sum(table)));
            }
            tables => {
                let all: Vec<String> =
                    tables.iter().map(|table| format!("SELECT balance FROM {table}")).collect();
                statements.push(sum(&format!("({}) a", all.join(" UNION ALL "))));
            }
        }
        statements.push("COMMIT".to_owned());
        Ok(statements)
    }
}

/// Creates the accounts, unless they are there.
pub fn open_accounts(stand: &Stand) -> Result<()> {
    let mut session = stand.fleet.session()?;
    let known = session.query_one("SELECT to_regclass('x1_account') IS NOT NULL", &[])?;
    if known.get(0) {
        return Ok(());
    }
    for shard in stand.fleet.shards() {
        shard.client()?.batch_execute(&format!(
            "CREATE TABLE account (id int PRIMARY KEY, balance int8);
             INSERT INTO account SELECT n, {DEPOSIT} FROM generate_series(1, {ACCOUNTS}) n;
             ANALYZE account"
        ))?;
    }
    for manner in [Manner::Stock, Manner::On] {
        for (route, shard) in [Route::Direct, Route::Linked]
            .into_iter()
            .flat_map(|route| (1..=SHARDS).map(move |shard| (route, shard)))
        {
            let table = manner.table(route, shard)?;
            let server = table.trim_end_matches("_account");
            session.batch_execute(&format!(
                "CREATE FOREIGN TABLE {table} (id int NOT NULL, balance int8) SERVER {server}
                     OPTIONS (table_name 'account', async_capable 'true')"
            ))?;
        }
    }
    Ok(())
}

/// How long a transaction that reads takes.
pub fn latency(stand: &Stand, effort: Effort, report: &mut Report) -> Result<()> {
    open_accounts(stand)?;
    let mut columns = Vec::new();
    let mut measured: Vec<Vec<Vec<f64>>> = Vec::new();
    for round_trip in ROUND_TRIPS {
        for servers in SERVERS {
            let figures = run(stand, effort, round_trip, servers)?;
            let of =
                |manner| Manner::ALL.iter().position(|other| *other == manner).map(|n| &figures[n]);
            let what = match servers {
                1 => "a key on 1 server".to_owned(),
                servers => format!("a sum over {servers} servers"),
            };
            let bound = (servers == 1).then_some(Target::AtMost(1.1));
            let figure = of(Manner::On).zip(of(Manner::Off)).and_then(|(on, off)| ratio(on, off));
            if (servers, round_trip) == (2, 1.0) {
                report.headline(Headline::Reads, figure);
            }
            report.row(
                format!("consistent reads, {what} at {round_trip} ms: time with on against off"),
                figure,
                Unit::Ratio,
                bound,
                "in a transaction of its own",
            );
            columns.push(format!("{servers}, at {round_trip} ms"));
            measured.push(figures);
        }
    }
    let line = |(n, manner): (usize, &Manner)| {
        let values = measured.iter().map(|column| Spread::of(&column[n])).collect();
        (manner.label().to_owned(), values)
    };
    report.tables.push(Table {
        title: "Time of a transaction that reads a key on 1 server, or a sum over several, in ms"
            .to_owned(),
        condition: "consistent_reads; servers, round trip".to_owned(),
        columns,
        lines: Manner::ALL.iter().enumerate().map(line).collect(),
        plot: None,
    });
    Ok(())
}

/// Medians of each slice in ms, by manner and round.
fn run(stand: &Stand, effort: Effort, round_trip: f64, servers: usize) -> Result<Vec<Vec<f64>>> {
    let route = if round_trip == 0.0 { Route::Direct } else { Route::Linked };
    stand.set_round_trip(Duration::ZERO);
    let mut readers = Manner::ALL
        .iter()
        .map(|manner| {
            let mut session = stand.fleet.session()?;
            session.batch_execute(manner.setting())?;
            let transaction = manner.transaction(route, servers)?;
            for _ in 0..Stand::WARM_UP {
                once(&mut session, &transaction)?;
            }
            Ok((session, transaction))
        })
        .collect::<Result<Vec<_>>>()?;
    stand.set_round_trip(Duration::from_secs_f64(round_trip / 1000.0));
    let what = format!("reads at {round_trip} ms, {servers} servers");
    let measured = alternate(&what, effort.rounds(), &mut readers, |(session, transaction)| {
        repeated(effort.slice() / 2, || once(session, transaction))
    });
    stand.set_round_trip(Duration::ZERO);
    measured
}

fn once(session: &mut Client, transaction: &[String]) -> Result<()> {
    transaction.iter().try_for_each(|statement| Ok(session.batch_execute(statement)?))
}
