//! How much room decisions take: the table with its indexes, without a manual vacuum.

use std::time::Duration;

use anyhow::{Result, bail};
use pg_test::wait_until;
use postgres::Client;

use crate::contender::Contender;
use crate::effort::Effort;
use crate::measures::throughput;
use crate::progress::say;
use crate::report::{Report, Target, Unit};
use crate::stand::{Route, Stand};
use crate::statistics::Spread;

const CLIENTS: usize = 4;

/// The rows of the report on the decision table.
pub fn measure(stand: &Stand, effort: Effort, report: &mut Report) -> Result<()> {
    let length = Duration::from_secs(effort.choose(5, 15));
    say(&format!("decisions: transactions for {} s", length.as_secs()));
    let mut sessions = (0..CLIENTS)
        .map(|_| stand.session(Contender::Ours, Route::Direct, 2))
        .collect::<Result<Vec<_>>>()?;
    throughput::slice(&mut sessions, &stand.ids(), length)?;
    let mut session = stand.fleet.session()?;
    let decisions = count(&mut session)?;
    if decisions == 0 {
        bail!("there is no decision after transactions on two shards");
    }
    report.row(
        "decision table, per transaction of the last `forget_delay`",
        Some(Spread::single(size(&mut session)? / decisions as f64)),
        Unit::Bytes,
        Some(Target::AtMost(200.0)),
        format!("{decisions} transactions"),
    );
    say("decisions: until they are forgotten");
    session.batch_execute("ALTER SYSTEM SET pg_fdw_xacts.forget_delay = 0")?;
    stand.fleet.coordinator.reload()?;
    wait_until("decisions are forgotten", Duration::from_secs(180), || {
        // It need not wait until it looks by itself.
        session.batch_execute("SELECT FROM pg_fdw_xacts_resolve()")?;
        Ok(count(&mut session)? == 0)
    })?;
    session.batch_execute("ALTER SYSTEM RESET pg_fdw_xacts.forget_delay")?;
    stand.fleet.coordinator.reload()?;
    report.row(
        "decision table once `forget_delay` has passed",
        Some(Spread::single(size(&mut session)? / 1e6)),
        Unit::Megabytes,
        Some(Target::AtMost(20.0)),
        format!("after {decisions} transactions; the target is for 1,000,000"),
    );
    Ok(())
}

fn count(session: &mut Client) -> Result<i64> {
    Ok(session.query_one("SELECT count(*) FROM fdw_xacts.decision", &[])?.get(0))
}

/// In bytes.
fn size(session: &mut Client) -> Result<f64> {
    let sql = "SELECT pg_total_relation_size('fdw_xacts.decision')";
    Ok(session.query_one(sql, &[])?.get::<_, i64>(0) as f64)
}
