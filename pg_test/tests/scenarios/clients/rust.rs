//! A Rust application on tokio-postgres: prepared statements, and statements sent without waiting
//! for the answers of those before them.

use futures_util::SinkExt;
use futures_util::future::{try_join, try_join_all};
use pg_test::Fleet;
use pg_test::oracle::{assert_settled, statistic};
use tokio::runtime::{Builder, Runtime};
use tokio_postgres::{Client, NoTls};

use crate::support::{Outcome, assert_commits};

const INSERTS: [&str; 2] = ["INSERT INTO ft1 VALUES ($1, $2)", "INSERT INTO ft2 VALUES ($1, $2)"];

fn runtime() -> anyhow::Result<Runtime> {
    Ok(Builder::new_current_thread().enable_all().build()?)
}

async fn connect(fleet: &Fleet) -> anyhow::Result<Client> {
    let conninfo =
        format!("host=127.0.0.1 port={} dbname=postgres user=postgres", fleet.coordinator.port());
    let (client, connection) = tokio_postgres::connect(&conninfo, NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

fn assert_on_both_shards(fleet: &Fleet, ids: &[i32]) -> Outcome {
    assert_eq!([fleet.ids_on_shard(1)?, fleet.ids_on_shard(2)?], [ids, ids]);
    Ok(())
}

#[test]
fn a_transaction_of_prepared_statements() -> Outcome {
    let fleet = Fleet::start()?;
    runtime()?.block_on(async {
        let mut client = connect(&fleet).await?;
        let [left, right] = [client.prepare(INSERTS[0]).await?, client.prepare(INSERTS[1]).await?];
        // More often than PostgreSQL plans one anew before it takes a generic plan.
        for id in 1..=10 {
            let transaction = client.transaction().await?;
            transaction.execute(&left, &[&id, &"x"]).await?;
            transaction.execute(&right, &[&id, &"x"]).await?;
            if id % 5 == 0 {
                transaction.rollback().await?;
            } else {
                transaction.commit().await?;
            }
        }
        anyhow::Ok(())
    })?;
    assert_on_both_shards(&fleet, &[1, 2, 3, 4, 6, 7, 8, 9])?;
    assert_eq!([statistic(&fleet, 1, "prepared")?, statistic(&fleet, 2, "prepared")?], [8, 8]);
    assert_settled(&fleet);
    Ok(())
}

#[test]
fn statements_sent_side_by_side() -> Outcome {
    let fleet = Fleet::start()?;
    runtime()?.block_on(async {
        let mut client = connect(&fleet).await?;
        let [left, right] = [client.prepare(INSERTS[0]).await?, client.prepare(INSERTS[1]).await?];
        let transaction = client.transaction().await?;
        let ids: Vec<i32> = (1..=50).collect();
        let (in_it, left, right) = (&transaction, &left, &right);
        try_join_all(ids.iter().map(|id| async move {
            try_join(in_it.execute(left, &[id, &"x"]), in_it.execute(right, &[id, &"x"])).await
        }))
        .await?;
        transaction.commit().await?;
        anyhow::Ok(())
    })?;
    assert_on_both_shards(&fleet, &(1..=50).collect::<Vec<_>>())?;
    assert_eq!([statistic(&fleet, 1, "prepared")?, statistic(&fleet, 2, "prepared")?], [1, 1]);
    assert_settled(&fleet);
    Ok(())
}

/// BEGIN, both writes and COMMIT are on the wire before the first is answered; the second write
/// fails, so that what follows it, COMMIT, rolls back.
#[test]
fn a_failure_among_statements_sent_ahead() -> Outcome {
    let fleet = Fleet::start()?;
    fleet.shard(2).client()?.batch_execute("INSERT INTO t VALUES (2, 'there')")?;
    runtime()?.block_on(async {
        let client = connect(&fleet).await?;
        for (id, commits) in [(1, true), (2, false), (3, true)] {
            let [left, right] =
                INSERTS.map(|sql| sql.replace("$1", &id.to_string()).replace("$2", "'x'"));
            let outcome = try_join_all(
                ["BEGIN", left.as_str(), right.as_str(), "COMMIT"]
                    .map(|sql| client.batch_execute(sql)),
            )
            .await;
            match outcome {
                Ok(_) => assert!(commits, "row {id}"),
                Err(error) => {
                    assert!(!commits, "row {id}: {error}");
                    assert_eq!(error.code().map(|code| code.code()), Some("23505"), "{error}");
                }
            }
        }
        anyhow::Ok(())
    })?;
    assert_eq!(fleet.ids_on_shard(1)?, [1, 3]);
    assert_eq!(fleet.ids_on_shard(2)?, [1, 2, 3]);
    assert_settled(&fleet);
    assert_commits(&fleet, &mut fleet.session()?, 1000)
}

/// COPY into two foreign tables in one transaction.
#[test]
fn rows_copied_into_both() -> Outcome {
    let fleet = Fleet::start()?;
    runtime()?.block_on(async {
        let mut client = connect(&fleet).await?;
        let transaction = client.transaction().await?;
        for table in ["ft1", "ft2"] {
            let sink = transaction.copy_in(&format!("COPY {table} FROM STDIN")).await?;
            let mut sink = std::pin::pin!(sink);
            for id in 1..=250 {
                sink.send(std::io::Cursor::new(format!("{id}\tx\n").into_bytes())).await?;
            }
            sink.as_mut().finish().await?;
        }
        transaction.commit().await?;
        anyhow::Ok(())
    })?;
    assert_on_both_shards(&fleet, &(1..=250).collect::<Vec<_>>())?;
    assert_settled(&fleet);
    Ok(())
}
