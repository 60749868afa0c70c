//! What the extension costs a transaction that touches no foreign table: the coordinator against a
//! server that has not loaded the library.

use std::time::Instant;

use anyhow::Result;
use postgres::Client;

use super::processor::used_by_process;
use crate::effort::{Effort, alternate};
use crate::report::{Report, Unit};
use crate::stand::Stand;
use crate::statistics::ratio_of_groups;

/// One local transaction that writes.
const TRANSACTION: &str =
    "BEGIN; SELECT v FROM lt WHERE id = 7; UPDATE lt SET v = 'v' WHERE id = 7; COMMIT";

/// Transactions in a slice: short, because a processor changes its speed all the time.
const SLICE: u32 = 50;
/// How many slices are run; their median counts.
const GROUP: usize = 20;

/// How long a slice takes, in seconds.
#[derive(Clone, Copy)]
struct Cost {
    /// By the clock.
    elapsed: f64,
    /// Processor time of the session's server process.
    processor: f64,
}

/// The rows of the report on local transactions.
pub fn measure(stand: &Stand, effort: Effort, report: &mut Report) -> Result<()> {
    let mut sessions =
        [Local::prepare(stand.fleet.session()?)?, Local::prepare(stand.plain.client()?)?];
    let rounds = effort.choose(5, 20) * GROUP;
    let measured = alternate("local transactions", rounds, &mut sessions, Local::slice)?;
    let compare = |figure: fn(&Cost) -> f64| {
        let figures = |costs: &[Cost]| costs.iter().map(figure).collect::<Vec<f64>>();
        ratio_of_groups(&figures(&measured[0]), &figures(&measured[1]), GROUP)
    };
    report.row(
        "local transactions: processor time with the library loaded, against without",
        compare(|cost| cost.processor),
        Unit::Ratio,
        None,
        "of the session's process, without waits for the disk",
    );
    report.row(
        "local transactions: time by the clock, the same",
        compare(|cost| cost.elapsed),
        Unit::Ratio,
        None,
        "with `synchronous_commit = off`",
    );
    Ok(())
}

/// A session and its server process.
struct Local {
    client: Client,
    pid: i32,
}

impl Local {
    fn prepare(mut client: Client) -> Result<Self> {
        client.batch_execute(
            "INSERT INTO lt SELECT i, 'v' FROM generate_series(1, 100) i;
             SET synchronous_commit = off",
        )?;
        let pid = client.query_one("SELECT pg_backend_pid()", &[])?.get(0);
        let mut local = Self { client, pid };
        local.run(1000)?;
        Ok(local)
    }

    fn run(&mut self, transactions: u32) -> Result<()> {
        (0..transactions).try_for_each(|_| Ok(self.client.batch_execute(TRANSACTION)?))
    }

    fn slice(&mut self) -> Result<Cost> {
        let (start, processor) = (Instant::now(), self.processor_time()?);
        self.run(SLICE)?;
        let elapsed = start.elapsed().as_secs_f64();
        Ok(Cost { elapsed, processor: self.processor_time()? - processor })
    }

    /// What the server process has used so far, in seconds.
    fn processor_time(&self) -> Result<f64> {
        Ok(used_by_process(self.pid)? / 1e9)
    }
}
