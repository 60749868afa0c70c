//! Several foreign servers that lead to one place.

use pg_test::oracle::{assert_settled, one};
use pg_test::{DEADLINE, Fault, Fleet, Point, wait_until};

use crate::support::{Outcome, in_background};

/// What was written through one of them is missing in what is read through the other.
#[test]
fn what_is_in_doubt_at_one_server_is_missing_at_the_other() -> Outcome {
    let fleet = Fleet::start_proxied()?;
    let mut writer = fleet.session()?;
    writer.batch_execute(&format!(
        "CREATE SERVER same FOREIGN DATA WRAPPER pg_fdw_xacts
             OPTIONS (host '127.0.0.1', port '{}', dbname 'postgres');
         CREATE USER MAPPING FOR CURRENT_USER SERVER same OPTIONS (user 'postgres');
         CREATE FOREIGN TABLE ft_same (id int NOT NULL, v text) SERVER same OPTIONS (table_name 't')",
        fleet.shard(2).port()
    ))?;
    writer
        .batch_execute("BEGIN; INSERT INTO ft1 VALUES (1, 'x'); INSERT INTO ft2 VALUES (1, 'x')")?;
    let hit = fleet.proxy(2).inject(Fault::hold(Point::Statement, "COMMIT PREPARED"));
    let writer = in_background(writer, "COMMIT");
    hit.wait()?;
    wait_until("shard 1 has it", DEADLINE, || Ok(fleet.ids_on_shard(1)?.contains(&1)))?;
    let mut reader = fleet.session()?;
    reader.batch_execute("SET pg_fdw_xacts.consistent_reads = on")?;
    let both = "(SELECT count(*) FROM ft1) - (SELECT count(*) FROM ft_same)";
    let consistent = in_background(reader, &format!("DO $$ BEGIN ASSERT {both} = 0; END $$"));
    let mut observer = fleet.session()?;
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'DO%' AND wait_event_type = 'Extension'";
    wait_until("the reader waits", DEADLINE, || {
        Ok(consistent.is_finished() || one::<i64>(&mut observer, waits)? == 1)
    })?;
    hit.release();
    consistent.join().1?;
    writer.join().1?;
    assert_settled(&fleet);
    Ok(())
}
