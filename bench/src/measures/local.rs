//! What the extension costs a transaction that touches no foreign table: the coordinator against a server that has not
//! loaded the library.

use std::time::Instant;

use anyhow::Result;
use postgres::Client;

use crate::effort::{Effort, alternate};
use crate::report::{Report, Target, Unit};
use crate::stand::Stand;
use crate::statistics::ratio;

/// One local transaction that writes.
const TRANSACTION: &str =
    "BEGIN; SELECT v FROM lt WHERE id = 7; UPDATE lt SET v = 'v' WHERE id = 7; COMMIT";

/// The row of the report on local transactions.
pub fn measure(stand: &Stand, effort: Effort, report: &mut Report) -> Result<()> {
    let mut sessions = [prepare(stand.fleet.session()?)?, prepare(stand.plain.client()?)?];
    let length = effort.slice() / 2;
    let measured =
        alternate("local transactions", effort.choose(10, 40), &mut sessions, |session| {
            let start = Instant::now();
            let mut count = 0;
            while start.elapsed() < length {
                for _ in 0..20 {
                    session.batch_execute(TRANSACTION)?;
                }
                count += 20;
            }
            Ok(start.elapsed().as_secs_f64() / f64::from(count))
        })?;
    report.row(
        "local transactions: time with the library loaded, against without",
        ratio(&measured[0], &measured[1]),
        Unit::Ratio,
        Some(Target::AtMost(1.01)),
        "without waiting for the disk (`synchronous_commit = off`), which would hide it",
    );
    Ok(())
}

fn prepare(mut session: Client) -> Result<Client> {
    session.batch_execute(
        "INSERT INTO lt SELECT i, 'v' FROM generate_series(1, 100) i;
         SET synchronous_commit = off",
    )?;
    for _ in 0..1000 {
        session.batch_execute(TRANSACTION)?;
    }
    Ok(session)
}
