//! How many times a transaction waits for the network, one after the other, counted by the clock on
//! a slow network, and how often it speaks to each shard.

use std::time::{Duration, Instant};

use pg_test::link::Link;
use pg_test::{Fleet, FleetOptions};
use postgres::Client;

use crate::support::Outcome;

const ROUND_TRIP: Duration = Duration::from_millis(40);

/// On a busy machine: what that adds to the time is less than one wait of such a network.
const SLOWER: Duration = Duration::from_millis(200);

/// On one that is so busy that many waits together are late by more than that.
const SLOWEST: Duration = Duration::from_millis(800);

/// Shards behind links.
struct Network {
    // Links end before the servers.
    links: Vec<Link>,
    session: Client,
    _fleet: Fleet,
}

impl Network {
    fn start(shards: usize) -> anyhow::Result<Self> {
        let fleet = Fleet::start_with(&FleetOptions { shards, ..FleetOptions::default() })?;
        let mut session = fleet.session()?;
        let mut links = Vec::new();
        for number in 1..=shards {
            let link = Link::start(fleet.shard(number).port(), Duration::ZERO)?;
            session.batch_execute(&format!(
                "ALTER SERVER shard{number} OPTIONS (SET port '{}')",
                link.port()
            ))?;
            session.batch_execute(&format!(
                "INSERT INTO ft{number} VALUES (0, 'warm'), (-1, 'warm')"
            ))?;
            links.push(link);
        }
        Ok(Self { links, session, _fleet: fleet })
    }

    fn let_both_be_asked_at_once(&mut self) -> Outcome {
        Ok(self.session.batch_execute(
            "ALTER SERVER shard1 OPTIONS (ADD async_capable 'true');
             ALTER SERVER shard2 OPTIONS (ADD async_capable 'true')",
        )?)
    }

    /// A transaction waits so many times when everything is warm. `sql` is run often, with `{}`
    /// another number each time: what the machine does besides only ever adds to its time.
    fn assert_waits(&mut self, sql: &str, expected: u32) -> Outcome {
        let run = |session: &mut Client, number: i32| {
            session.batch_execute(&sql.replace("{}", &number.to_string()))
        };
        self.assert_waits_of(sql, run, expected)
    }

    /// The same of what `run` does with a session and a number.
    fn assert_waits_of(
        &mut self,
        name: &str,
        run: impl Fn(&mut Client, i32) -> Result<(), postgres::Error>,
        expected: u32,
    ) -> Outcome {
        let mut fewest = u32::MAX;
        for attempt in 0..30 {
            let round_trip = match attempt {
                // Until everything is warm.
                0..3 => Duration::ZERO,
                3..20 => ROUND_TRIP,
                20..25 => SLOWER,
                _ => SLOWEST,
            };
            for link in &self.links {
                link.set_round_trip(round_trip);
            }
            let start = Instant::now();
            run(&mut self.session, 100 + 1000 * attempt)?;
            let waits = start.elapsed().as_nanos().checked_div(round_trip.as_nanos());
            fewest = waits.map_or(fewest, |waits| fewest.min(waits as u32));
            if fewest <= expected {
                break;
            }
            let clean = "DELETE FROM ft1 WHERE id > 0; DELETE FROM ft2 WHERE id > 0";
            self.session.batch_execute(clean)?;
        }
        assert_eq!(fewest, expected, "{name}");
        Ok(())
    }
}

#[test]
fn two_inserts_on_two_shards_and_their_commit_take_four_waits() -> Outcome {
    let mut network = Network::start(2)?;
    let sql = "BEGIN; INSERT INTO ft1 VALUES ({}, 'x'); INSERT INTO ft2 VALUES ({}, 'x'); COMMIT";
    network.assert_waits(sql, 4)?;
    // What is sent at once may arrive in two parts, with an answer in between: that only ever adds
    // a turn.
    let mut fewest = [u64::MAX; 2];
    for attempt in 0..10 {
        let before: Vec<u64> = network.links.iter().map(Link::turns).collect();
        network.session.batch_execute(&sql.replace("{}", &(50_000 + attempt).to_string()))?;
        for (fewest, (link, before)) in fewest.iter_mut().zip(network.links.iter().zip(before)) {
            *fewest = (*fewest).min(link.turns() - before);
        }
    }
    assert_eq!(fewest, [3, 3]);
    Ok(())
}

#[test]
fn without_waiting_for_the_commit_of_the_shards_they_take_three() -> Outcome {
    let mut network = Network::start(2)?;
    network.session.batch_execute("SET pg_fdw_xacts.commit_wait = off")?;
    let sql = "BEGIN; INSERT INTO ft1 VALUES ({}, 'x'); INSERT INTO ft2 VALUES ({}, 'x'); COMMIT";
    network.assert_waits(sql, 3)
}

#[test]
fn a_statement_that_is_the_whole_transaction_takes_one_wait() -> Outcome {
    let mut network = Network::start(2)?;
    network.assert_waits("INSERT INTO ft1 VALUES ({}, 'x')", 1)?;
    network.assert_waits("UPDATE ft1 SET v = 'y' WHERE id = 0", 1)?;
    network.assert_waits("DELETE FROM ft1 WHERE id = -5", 1)?;
    // Something may have been executed before it, and more may follow.
    let insert = network.session.prepare("INSERT INTO ft1 VALUES ($1, 'x')")?;
    let execute =
        |session: &mut Client, number: i32| session.execute(&insert, &[&number]).map(drop);
    network.assert_waits_of("a prepared INSERT", execute, 2)?;
    // Something could still fail behind these.
    network.assert_waits("INSERT INTO ft1 VALUES ({}, 'x') RETURNING id", 2)?;
    network.assert_waits("INSERT INTO ft1 VALUES ({}, 'x'); SELECT 1", 2)?;
    network.assert_waits("DO $$ BEGIN INSERT INTO ft1 VALUES ({}, 'x'); END $$", 2)?;
    // A transaction that has only read need not wait for its end.
    network.assert_waits("SELECT * FROM ft1", 1)?;
    Ok(())
}

#[test]
fn writes_behind_are_waited_for_at_the_end() -> Outcome {
    let mut network = Network::start(2)?;
    network.session.batch_execute("SET pg_fdw_xacts.write_behind = on")?;
    let many: String =
        (0..20).map(|n| format!("INSERT INTO ft1 VALUES ({{}} + {n}, 'x');")).collect();
    network.assert_waits(&format!("BEGIN; {many} COMMIT"), 2)?;
    network.assert_waits("INSERT INTO ft1 VALUES ({}, 'x')", 1)?;
    let two = "BEGIN; INSERT INTO ft1 VALUES ({}, 'x'); INSERT INTO ft2 VALUES ({}, 'x'); COMMIT";
    network.assert_waits(two, 3)?;
    network.session.batch_execute("SET pg_fdw_xacts.commit_wait = off")?;
    network.assert_waits(two, 2)
}

#[test]
fn a_savepoint_costs_no_wait() -> Outcome {
    let mut network = Network::start(2)?;
    let sql = "BEGIN; INSERT INTO ft1 VALUES ({}, 'x'); SAVEPOINT s; UPDATE ft1 SET v = 'z' WHERE id = 0; RELEASE s; COMMIT";
    network.assert_waits(sql, 3)
}

#[test]
fn a_hundred_rows_are_one_statement() -> Outcome {
    let mut network = Network::start(2)?;
    let sql = "INSERT INTO ft1 SELECT {} + i, 'x' FROM generate_series(1, 100) i";
    network.assert_waits(sql, 2)
}

/// On 0.2.0 they wait once for each scan.
#[test]
fn a_query_that_reads_both_shards_in_any_case_takes_one_wait() -> Outcome {
    let mut network = Network::start(2)?;
    network.let_both_be_asked_at_once()?;
    network.session.batch_execute(
        "CREATE TABLE pt (id int, v text) PARTITION BY LIST (id); SET enable_sort = off",
    )?;
    for number in 1..=8 {
        network.session.batch_execute(&format!(
            "CREATE FOREIGN TABLE p{number} PARTITION OF pt FOR VALUES IN ({number})
                 SERVER shard{} OPTIONS (table_name 't')",
            2 - number % 2
        ))?;
    }
    network.assert_waits("SELECT FROM ft1 a FULL JOIN ft2 b USING (id) WHERE a IS NULL", 1)?;
    network.assert_waits("SELECT id FROM pt WHERE id < {} ORDER BY v", 1)
}

/// The second scan's question does not wait until the second shard has told its snapshot.
#[test]
fn one_snapshot_of_both_shards_takes_no_wait_more() -> Outcome {
    let mut network = Network::start(2)?;
    network.let_both_be_asked_at_once()?;
    network.session.batch_execute("SET pg_fdw_xacts.consistent_reads = on")?;
    let both = "SELECT id FROM ft1 UNION ALL SELECT id FROM ft2 WHERE id < {}";
    network.assert_waits(both, 1)?;
    network.assert_waits(&format!("BEGIN ISOLATION LEVEL REPEATABLE READ; {both}; COMMIT"), 1)
}

#[test]
fn the_commit_of_eight_shards_takes_two_waits() -> Outcome {
    let mut network = Network::start(8)?;
    let inserts: Vec<String> =
        (1..=8).map(|number| format!("INSERT INTO ft{number} VALUES ({{}}, 'x')")).collect();
    network.assert_waits(&format!("BEGIN; {}; COMMIT", inserts.join("; ")), 10)
}
