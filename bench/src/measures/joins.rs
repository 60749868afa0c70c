//! What a query over two servers that are not asked by one asynchronous node costs: a join here of
//! a table on each. Beside it the same table by itself, which shows what the second server adds.

use std::time::Duration;

use anyhow::Result;
use postgres::Client;

use super::reads::{open_accounts, slice};
use crate::contender::Contender;
use crate::effort::{Effort, alternate};
use crate::report::{Report, Target, Unit};
use crate::stand::{Route, Stand};
use crate::statistics::ratio;

const ROUND_TRIP: Duration = Duration::from_millis(1);

/// The readers: through postgres_fdw and through this extension, on two servers and on one.
const READERS: [(Contender, usize); 3] =
    [(Contender::Stock, 2), (Contender::Ours, 2), (Contender::Ours, 1)];

fn query(contender: Contender, servers: usize) -> Result<String> {
    let of = |shard| Stand::table(contender, Route::Linked, shard);
    let rows = format!("SELECT count(*) FROM (SELECT id FROM {}_account OFFSET 0) a", of(1)?);
    Ok(match servers {
        1 => rows,
        _ => format!("{rows} JOIN {}_account b USING (id)", of(2)?),
    })
}

/// How long it takes.
pub fn measure(stand: &Stand, effort: Effort, report: &mut Report) -> Result<()> {
    open_accounts(stand)?;
    stand.set_round_trip(Duration::ZERO);
    let mut readers = READERS
        .iter()
        .map(|&(contender, servers)| {
            let mut session = stand.fleet.session()?;
            let query = vec![query(contender, servers)?];
            for _ in 0..Stand::WARM_UP {
                session.batch_execute(&query[0])?;
            }
            Ok((session, query))
        })
        .collect::<Result<Vec<(Client, Vec<String>)>>>()?;
    stand.set_round_trip(ROUND_TRIP);
    let measured = alternate("joins", effort.rounds(), &mut readers, |(session, query)| {
        slice(session, query, effort.slice() / 2)
    });
    stand.set_round_trip(Duration::ZERO);
    let [stock, two, one] = &measured?[..] else { return Ok(()) };
    report.row(
        "join of a table on each of 2 shards at 1 ms: time against postgres_fdw",
        ratio(two, stock),
        Unit::Ratio,
        Some(Target::AtMost(0.3)),
        "32 rows each, a query by itself",
    );
    report.row(
        "the same join: time against reading 1 of the tables",
        ratio(two, one),
        Unit::Ratio,
        Some(Target::AtMost(1.5)),
        "2 if one shard were asked after the other",
    );
    Ok(())
}
