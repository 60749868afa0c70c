//! The coordinator's own tables under REPEATABLE READ.

use pg_test::oracle::{expect_error, one};
use pg_test::proxy::Hit;
use pg_test::{Fault, Fleet, Point};
use postgres::Client;

use super::held::wait_until_query_waits;
use crate::support::{Background, Outcome, in_background};

/// A session that has committed here and is held before it tells shard 1.
fn half_delivered(fleet: &Fleet) -> anyhow::Result<(Hit, Background)> {
    let mut writer = fleet.session()?;
    writer
        .batch_execute("BEGIN; INSERT INTO lt VALUES (1, 'x'); INSERT INTO ft1 VALUES (1, 'x')")?;
    let hit = fleet.proxy(1).inject(Fault::hold(Point::Statement, "COMMIT PREPARED"));
    let writer = in_background(writer, "COMMIT");
    hit.wait()?;
    Ok((hit, writer))
}

fn reader(fleet: &Fleet) -> anyhow::Result<Client> {
    let mut reader = fleet.session()?;
    reader.batch_execute("SET pg_fdw_xacts.consistent_reads = auto")?;
    Ok(reader)
}

/// What is visible here is waited for there.
#[test]
fn what_is_seen_here_is_seen_there() -> Outcome {
    let fleet = Fleet::start_proxied()?;
    let (hit, writer) = half_delivered(&fleet)?;
    let difference = "SELECT (SELECT count(*) FROM lt) - (SELECT count(*) FROM ft1)";
    let mut plain = fleet.session()?;
    assert_eq!(one::<i64>(&mut plain, difference)?, 1, "without consistent reads");
    let reader = in_background(
        reader(&fleet)?,
        &format!(
            "BEGIN ISOLATION LEVEL REPEATABLE READ;
             DO $$ BEGIN ASSERT ({difference}) = 0 AND (SELECT count(*) FROM lt) = 1; END $$; COMMIT"
        ),
    );
    wait_until_query_waits(&mut plain, "BEGIN ISO")?;
    hit.release();
    reader.join().1?;
    writer.join().1?;
    Ok(())
}

/// What is not visible here cannot be made so.
#[test]
fn what_is_not_seen_here_is_an_error_when_it_is_seen_there() -> Outcome {
    let fleet = Fleet::start_proxied()?;
    let mut reader = reader(&fleet)?;
    let mut writer = fleet.session()?;
    reader.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ")?;
    assert_eq!(one::<i64>(&mut reader, "SELECT count(*) FROM lt")?, 0);
    writer.batch_execute(
        "BEGIN; INSERT INTO lt VALUES (1, 'x'); INSERT INTO ft1 VALUES (1, 'x'); COMMIT",
    )?;
    expect_error(reader.query("SELECT count(*) FROM ft1", &[]), "40001");
    reader.batch_execute("ROLLBACK; BEGIN ISOLATION LEVEL REPEATABLE READ")?;
    assert_eq!(one::<i64>(&mut reader, "SELECT count(*) FROM lt")?, 1);
    // What has only written on shards is no matter of ours.
    writer.batch_execute(
        "BEGIN; INSERT INTO ft1 VALUES (2, 'x'); INSERT INTO ft2 VALUES (2, 'x'); COMMIT",
    )?;
    assert_eq!(one::<i64>(&mut reader, "SELECT count(*) FROM ft1")?, 2);
    assert_eq!(one::<i64>(&mut reader, "SELECT count(*) FROM ft2")?, 1);
    reader.batch_execute("COMMIT")?;
    Ok(())
}
