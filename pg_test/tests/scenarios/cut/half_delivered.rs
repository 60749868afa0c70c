//! A transaction that has reached one shard and not the other.

use pg_test::oracle::{assert_settled, expect_error, one};
use pg_test::{Fault, Fleet, Point, wait_until};
use postgres::Client;

use super::held::wait_until_query_waits;
use crate::support::{Background, Outcome, begin_everywhere, in_background};

const BOTH: &str = "SELECT (SELECT count(*) FROM ft1) - (SELECT count(*) FROM ft2)";

fn reader(fleet: &Fleet, mode: &str) -> anyhow::Result<Client> {
    let mut reader = fleet.session()?;
    reader.batch_execute(&format!("SET pg_fdw_xacts.consistent_reads = {mode}"))?;
    Ok(reader)
}

/// A session that commits on both shards, and is held before it tells the second.
fn half_delivered(fleet: &Fleet) -> anyhow::Result<(pg_test::proxy::Hit, Background)> {
    let mut writer = fleet.session()?;
    begin_everywhere(&mut writer, 1)?;
    let hit = fleet.proxy(2).inject(Fault::hold(Point::Statement, "COMMIT PREPARED"));
    let writer = in_background(writer, "COMMIT");
    hit.wait()?;
    wait_until("shard 1 has it", pg_test::DEADLINE, || {
        Ok(one::<i64>(&mut fleet.shard(1).client()?, "SELECT count(*) FROM t")? == 1)
    })?;
    Ok((hit, writer))
}

#[test]
fn it_is_waited_for() -> Outcome {
    let fleet = Fleet::start_proxied()?;
    let mut plain = reader(&fleet, "off")?;
    let (hit, writer) = half_delivered(&fleet)?;
    assert_eq!(one::<i64>(&mut plain, BOTH)?, 1, "without consistent reads it shows half");
    let consistent = in_background(
        reader(&fleet, "on")?,
        &format!("DO $$ BEGIN ASSERT ({BOTH}) = 0 AND (SELECT count(*) FROM ft1) = 1; END $$"),
    );
    wait_until_query_waits(&mut plain, "DO")?;
    assert!(!consistent.is_finished());
    hit.release();
    consistent.join().1?;
    writer.join().1?;
    assert_settled(&fleet);
    Ok(())
}

/// Each server by itself shows what it has.
#[test]
fn one_server_is_read_without_waiting() -> Outcome {
    let fleet = Fleet::start_proxied()?;
    let (hit, writer) = half_delivered(&fleet)?;
    let mut reader = reader(&fleet, "on")?;
    assert_eq!(one::<i64>(&mut reader, "SELECT count(*) FROM ft1")?, 1);
    hit.release();
    writer.join().1?;
    Ok(())
}

/// What stays in doubt is told with its gid.
#[test]
fn what_stays_in_doubt_is_told() -> Outcome {
    let fleet = Fleet::start_proxied()?;
    let (hit, writer) = half_delivered(&fleet)?;
    let mut reader = reader(&fleet, "on")?;
    reader.batch_execute("SET pg_fdw_xacts.commit_timeout = '300ms'")?;
    let refused = expect_error(reader.query(BOTH, &[]), "55000");
    assert!(refused.detail().unwrap_or_default().contains("'px_"), "{refused:#?}");
    // The session goes on, and reads one server.
    assert_eq!(one::<i64>(&mut reader, "SELECT count(*) FROM ft1")?, 1);
    hit.release();
    writer.join().1?;
    assert_eq!(one::<i64>(&mut reader, BOTH)?, 0);
    Ok(())
}

/// With commit_wait = off the client was told before any shard was: whoever reads later sees it.
#[test]
fn what_was_acknowledged_is_seen() -> Outcome {
    let fleet = Fleet::start_proxied()?;
    let mut writer = fleet.session()?;
    writer.batch_execute("SET pg_fdw_xacts.commit_wait = off")?;
    begin_everywhere(&mut writer, 1)?;
    let hit = fleet.proxy(2).inject(Fault::hold(Point::Statement, "COMMIT PREPARED"));
    writer.batch_execute("COMMIT")?;
    hit.wait()?;
    let sum = "SELECT (SELECT count(*) FROM ft1) + (SELECT count(*) FROM ft2)";
    let consistent =
        in_background(reader(&fleet, "on")?, &format!("DO $$ BEGIN ASSERT ({sum}) = 2; END $$"));
    let mut observer = fleet.session()?;
    wait_until_query_waits(&mut observer, "DO")?;
    hit.release();
    consistent.join().1?;
    // An idle session does not note that it was confirmed.
    drop(writer);
    assert_settled(&fleet);
    Ok(())
}

/// A reader that comes first after a crash of the coordinator, which had told one shard.
#[test]
fn after_a_restart_nothing_is_half_seen() -> Outcome {
    let mut fleet = Fleet::start_proxied()?;
    let (hit, writer) = half_delivered(&fleet)?;
    fleet.coordinator.kill9()?;
    drop(writer.join());
    fleet.coordinator.start()?;
    let mut reader = reader(&fleet, "on")?;
    assert_eq!(one::<i64>(&mut reader, BOTH)?, 0);
    assert_eq!(one::<i64>(&mut reader, "SELECT count(*) FROM ft2")?, 1);
    hit.release();
    assert_settled(&fleet);
    Ok(())
}
