//! A query goes on although a function of it has caught why its servers have no common snapshot.

use pg_test::oracle::{assert_settled, expect_error, one};
use pg_test::{DEADLINE, Fleet, wait_until};

use super::held::{half_delivered, reader};
use crate::support::{Outcome, in_background};

/// What its scans were asked before cannot become part of a later snapshot. Seen red: XX000, the
/// answers had been given up for another snapshot, which a further scan had taken.
#[test]
fn the_query_is_told_that_it_has_none() -> Outcome {
    let fleet = Fleet::start_proxied()?;
    let mut holder = fleet.session()?;
    holder.batch_execute(
        "ALTER SERVER shard1 OPTIONS (ADD async_capable 'true');
         ALTER SERVER shard2 OPTIONS (ADD async_capable 'true');
         CREATE FOREIGN TABLE in_turn (id int) SERVER shard1
             OPTIONS (table_name 't', async_capable 'false');
         CREATE FUNCTION catches() RETURNS int LANGUAGE plpgsql AS $$
         BEGIN
             RETURN count(*) FROM ft1;
         EXCEPTION WHEN object_not_in_prerequisite_state THEN
             PERFORM pg_advisory_lock(1);
             RETURN 0;
         END $$;
         SELECT pg_advisory_lock(1)",
    )?;
    let mut reader = reader(&fleet)?;
    reader.batch_execute("SET pg_fdw_xacts.commit_timeout = '300ms'")?;
    let (hit, writer) = half_delivered(&fleet, fleet.session()?, 1, "COMMIT")?;
    let reader = in_background(
        reader,
        "DO $$ BEGIN
             ASSERT (SELECT count(*) FROM (
                 SELECT id FROM ft1 UNION ALL SELECT id FROM ft2
                 UNION ALL SELECT id FROM (SELECT catches() AS n OFFSET 0) c,
                     LATERAL (SELECT id FROM in_turn WHERE id > n) i
             ) a WHERE id = 1) = 3;
         END $$",
    );
    let waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted";
    let mut observer = fleet.session()?;
    wait_until("the error is caught", DEADLINE, || Ok(one::<i64>(&mut observer, waiting)? == 1))?;
    hit.release();
    writer.join().1?;
    holder.batch_execute("SELECT pg_advisory_unlock(1)")?;
    let (mut reader, result) = reader.join();
    expect_error(result, "40001");
    assert_eq!(one::<i64>(&mut reader, "SELECT count(*) FROM ft1 a JOIN ft2 b USING (id)")?, 1);
    assert_settled(&fleet);
    Ok(())
}
