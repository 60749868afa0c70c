//! Long statements in constant memory.

use pg_test::Fleet;
use pg_test::oracle::one;
use postgres::Client;

use crate::support::Outcome;

/// By how many bytes the peak of a backend's memory grows during `sql`.
pub fn growth(session: &mut Client, sql: &str) -> anyhow::Result<i64> {
    let pid: i32 = one(session, "SELECT pg_backend_pid()")?;
    let peak = || -> anyhow::Result<i64> {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kilobytes = line.and_then(|rest| rest.split_whitespace().next()?.parse::<i64>().ok());
        Ok(kilobytes.unwrap_or_default() * 1024)
    };
    // The peak begins anew from what is used now (`man 5 proc_pid_clear_refs`).
    std::fs::write(format!("/proc/{pid}/clear_refs"), "5")?;
    let before = peak()?;
    session.batch_execute(sql)?;
    Ok(peak()? - before)
}

/// What is collected for a COPY, up to 1 MB, is there several times on its way; less than half of
/// what the statements move.
const FEW_MEGABYTES: i64 = 10 << 20;

#[test]
fn long_scans_and_inserts_take_no_more_memory_than_short_ones() -> Outcome {
    let fleet = Fleet::start()?;
    let mut session = fleet.session()?;
    // What is allocated once, caches of the catalog included, is not meant.
    session.batch_execute(
        "INSERT INTO ft1 SELECT -i, repeat('x', 100) FROM generate_series(1, 5000) i;
         SELECT count(*) FROM ft1 WHERE random() >= 0",
    )?;
    let insert = "INSERT INTO ft1 SELECT i, repeat('x', 100) FROM generate_series(1, 200000) i";
    let grown = growth(&mut session, insert)?;
    assert!(grown < FEW_MEGABYTES, "an INSERT of 200,000 rows took {grown} bytes more");
    let scan = "SELECT count(*) FROM ft1 WHERE random() >= 0";
    let grown = growth(&mut session, scan)?;
    assert!(grown < FEW_MEGABYTES, "a scan of 200,000 rows took {grown} bytes more");
    let update = "UPDATE ft1 SET v = v || 'y' WHERE random() >= 0 AND id BETWEEN 1 AND 20000";
    let grown = growth(&mut session, update)?;
    assert!(grown < FEW_MEGABYTES, "an UPDATE of 20,000 rows took {grown} bytes more");
    Ok(())
}
