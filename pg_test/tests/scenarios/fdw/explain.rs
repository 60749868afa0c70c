//! EXPLAIN (ANALYZE, VERBOSE) tells of each foreign scan and modification which server it used and
//! how many round trips it waited for; any other EXPLAIN is postgres_fdw's.

use pg_test::Fleet;
use postgres::{Client, SimpleQueryMessage};

use crate::support::Outcome;

fn start() -> anyhow::Result<(Fleet, Client)> {
    let fleet = Fleet::start()?;
    let mut session = fleet.session()?;
    session.batch_execute("INSERT INTO ft1 SELECT i, 'x' FROM generate_series(1, 250) i")?;
    Ok((fleet, session))
}

fn explain(session: &mut Client, options: &str, query: &str) -> anyhow::Result<String> {
    let mut text = String::new();
    for message in session.simple_query(&format!("EXPLAIN ({options}) {query}"))? {
        if let SimpleQueryMessage::Row(row) = message {
            text += row.get(0).unwrap_or_default();
            text += "\n";
        }
    }
    Ok(text)
}

/// The servers and waits that a query's plan tells after its execution, in the order of its nodes.
fn waits(session: &mut Client, query: &str) -> anyhow::Result<Vec<(String, u32)>> {
    let text = explain(session, "ANALYZE, VERBOSE, COSTS OFF, TIMING OFF", query)?;
    let values = |label: &str| -> Vec<String> {
        let label = format!("{label}: ");
        text.lines()
            .filter_map(|line| line.trim().strip_prefix(&label))
            .map(str::to_owned)
            .collect()
    };
    let (servers, waits) = (values("Remote Server"), values("Remote Waits"));
    assert_eq!(servers.len(), waits.len(), "{text}");
    Ok(servers.into_iter().zip(waits.iter().map(|n| n.parse().expect("a number"))).collect())
}

fn on(server: &str, waits: u32) -> (String, u32) {
    (server.to_owned(), waits)
}

#[test]
fn scans_and_modifications_tell_their_server_and_its_waits() -> Outcome {
    let (_fleet, mut session) = start()?;
    // Has the join made there.
    session.batch_execute(
        "SET enable_hashjoin = off; SET enable_mergejoin = off; SET enable_nestloop = off",
    )?;
    let mut waits = |query: &str| waits(&mut session, query);
    assert_eq!(waits("SELECT * FROM ft1 WHERE id = 1")?, [on("shard1", 1)]);
    // 100 rows a FETCH.
    assert_eq!(waits("SELECT * FROM ft1")?, [on("shard1", 3)]);
    assert_eq!(waits("SELECT count(*) FROM ft1")?, [on("shard1", 1)]);
    assert_eq!(
        waits("SELECT * FROM ft1 a JOIN ft1 b USING (id) WHERE id < 50")?,
        [on("shard1", 1)]
    );
    assert_eq!(waits("UPDATE ft1 SET v = 'y'")?, [on("shard1", 1)]);
    assert_eq!(waits("INSERT INTO ft2 SELECT generate_series(1, 400), 'x'")?, [on("shard2", 2)]);
    // Row by row.
    let update = waits("UPDATE ft2 SET v = (random() + id)::text WHERE id <= 3 AND random() >= 0")?;
    assert_eq!(update, [on("shard2", 3), on("shard2", 1)]);
    assert_eq!(waits("SELECT * FROM ft1 WHERE (SELECT false) LIMIT 1")?, [on("shard1", 0)]);
    Ok(())
}

#[test]
fn partitions_that_are_fetched_at_once_tell_it_too() -> Outcome {
    let (_fleet, mut session) = start()?;
    session.batch_execute(
        "INSERT INTO ft2 SELECT i, 'x' FROM generate_series(1, 10) i;
         ALTER SERVER shard1 OPTIONS (ADD async_capable 'true');
         ALTER SERVER shard2 OPTIONS (ADD async_capable 'true')",
    )?;
    let both = waits(&mut session, "SELECT * FROM ft1 UNION ALL SELECT * FROM ft2")?;
    assert_eq!(
        both.iter().map(|(server, _)| server.as_str()).collect::<Vec<_>>(),
        ["shard1", "shard2"]
    );
    assert!((1..=3).contains(&both[0].1) && both[1].1 <= 1, "{both:?}");
    Ok(())
}

#[test]
fn any_other_explain_is_as_it_was() -> Outcome {
    let (_fleet, mut session) = start()?;
    for options in ["COSTS ON", "VERBOSE", "ANALYZE"] {
        for query in
            ["SELECT * FROM ft1", "UPDATE ft1 SET v = 'y'", "INSERT INTO ft1 VALUES (1000)"]
        {
            let text = explain(&mut session, options, query)?;
            assert!(!text.contains("Remote Server") && !text.contains("Remote Waits"), "{text}");
        }
        session.batch_execute("DELETE FROM ft1 WHERE id = 1000")?;
    }
    let json = explain(&mut session, "ANALYZE, VERBOSE, FORMAT JSON", "SELECT * FROM ft1")?;
    assert!(json.contains("\"Remote Server\": \"shard1\",\n      \"Remote Waits\": 3"), "{json}");
    Ok(())
}
