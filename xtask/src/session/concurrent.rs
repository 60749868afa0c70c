//! The last steps of the demo: what other sessions see and do meanwhile.

use anyhow::{Context, Result, bail};
use pg_test::{Fault, Point, Proxy};
use postgres::error::SqlState;
use postgres::{Client, Error};

use super::{Stage, report};

const BOTH: &str = "SELECT count(*) FROM ft1 JOIN ft2 USING (id) WHERE id = 7";
const EITHER: &str = "SELECT count(*) FROM ft1 FULL JOIN ft2 USING (id) WHERE id = 7";

pub fn torn_read(stage: &mut Stage) -> Result<()> {
    stage.step(
        "A reader between two COMMIT PREPARED: half a transaction, or one snapshot of both shards",
        "With consistent_reads a query waits until it can show all of it.",
    );
    let port = stage.shards[0].port();
    let proxy = Proxy::start(port)?;
    stage.move_shard1(proxy.port())?;
    let hit = proxy.inject(Fault::hold(Point::Statement, "COMMIT PREPARED"));
    let mut writer = stage.coordinator.client()?;
    let write =
        "BEGIN; INSERT INTO ft1 VALUES (7, 'seven'); INSERT INTO ft2 VALUES (7, 'seven'); COMMIT";
    std::thread::scope(|scope| -> Result<()> {
        let commit = scope.spawn(move || writer.batch_execute(write));
        hit.wait()?;
        stage.say("     (another session commits; its COMMIT PREPARED is on its way to shard 1)");
        let half = stage.count(EITHER)? - stage.count(BOTH)?;
        stage.claim("row 7 is on shard 2 and not on shard 1", half == 1)?;
        let mut reader = stage.coordinator.client()?;
        let asked = scope.spawn(move || -> Result<i64, Error> {
            reader.batch_execute("SET pg_fdw_xacts.consistent_reads = on")?;
            Ok(reader.query_one(BOTH, &[])?.get(0))
        });
        stage.wait_until_one_waits("the reader")?;
        stage.say("     (a reader with consistent_reads waits; now the COMMIT PREPARED arrives)");
        hit.release();
        let seen = joined(asked.join())?;
        stage.beside(BOTH)?;
        stage.show("0", &format!("{seen}"));
        stage.claim("the reader has seen row 7 on both", seen == 1)?;
        joined(commit.join())
    })?;
    stage.move_shard1(port)
}

pub fn deadlock(stage: &mut Stage) -> Result<()> {
    stage.step(
        "Two sessions wait for each other on two shards: a deadlock that no shard sees",
        "The coordinator finds the cycle; the younger transaction gives way.",
    );
    let change = |table: &str| format!("UPDATE {table} SET v = 'changed' WHERE id = 2");
    stage.run("BEGIN")?;
    stage.run(&change("ft1"))?;
    let mut other = stage.coordinator.client()?;
    other.batch_execute(&format!("BEGIN; {}", change("ft2")))?;
    stage.say(
        "     (another session has changed the row on shard 2, and now wants that of shard 1)",
    );
    let wanted = change("ft1");
    let (own, theirs) = std::thread::scope(|scope| -> Result<_> {
        let theirs = scope.spawn(move || end(&mut other, &wanted));
        stage.wait_until_one_waits("the other session")?;
        let own = end(&mut stage.session, &change("ft2"));
        Ok((own, theirs.join()))
    })?;
    stage.beside(&change("ft2"))?;
    own.context("the older transaction was to go on")?;
    let refused = match theirs {
        Ok(Err(error)) if error.code() == Some(&SqlState::T_R_DEADLOCK_DETECTED) => error,
        other => bail!("the younger transaction was to get a deadlock, not {other:?}"),
    };
    stage.show("31", &refused.as_db_error().map_or_else(String::new, report));
    stage.claim("the other has given way, this one has committed", true)
}

/// Runs a last statement and commits.
fn end(session: &mut Client, statement: &str) -> Result<(), Error> {
    session.batch_execute(statement)?;
    session.batch_execute("COMMIT")
}

fn joined<T>(result: std::thread::Result<Result<T, Error>>) -> Result<T> {
    match result {
        Ok(result) => Ok(result?),
        Err(_) => bail!("another session's thread panicked"),
    }
}
