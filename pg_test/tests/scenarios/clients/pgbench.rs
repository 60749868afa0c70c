//! pgbench's own script, tpcb-like, on its own tables, each hash-partitioned over two shards.
//!
//! The shards' transactions are REPEATABLE READ, as `postgres_fdw`'s are: of two that update one
//! branch, the second fails and pgbench tries it again.

use pg_test::oracle::{assert_no_locks, assert_settled, one, statistic};
use pg_test::{Fleet, Installation};

use crate::support::Outcome;

/// pgbench's tables: name, columns, primary key. Each is partitioned by its first column.
const TABLES: [(&str, &str, &str); 4] = [
    ("pgbench_branches", "bid int NOT NULL, bbalance int, filler char(88)", ", PRIMARY KEY (bid)"),
    (
        "pgbench_tellers",
        "tid int NOT NULL, bid int, tbalance int, filler char(84)",
        ", PRIMARY KEY (tid)",
    ),
    (
        "pgbench_accounts",
        "aid int NOT NULL, bid int, abalance int, filler char(84)",
        ", PRIMARY KEY (aid)",
    ),
    (
        "pgbench_history",
        "tid int, bid int, aid int, delta int, mtime timestamp, filler char(22)",
        "",
    ),
];

const CLIENTS: i64 = 4;
const TRANSACTIONS: i64 = 50;

/// Runs pgbench on the coordinator with `options` to its end; returns its report.
fn pgbench(fleet: &Fleet, options: &[&str]) -> anyhow::Result<String> {
    let port = fleet.coordinator.port().to_string();
    let server = ["-h", "127.0.0.1", "-p", &port, "-U", "postgres"];
    Installation::from_env()?
        .run("pgbench", options.iter().chain(&server).chain(&["postgres"]).copied())
}

fn create_tables(fleet: &Fleet) -> Outcome {
    let mut coordinator = fleet.session()?;
    for (table, columns, key) in TABLES {
        let first = columns.split(' ').next().unwrap_or_default();
        coordinator.batch_execute(&format!(
            "CREATE TABLE {table} ({columns}) PARTITION BY HASH ({first})"
        ))?;
        for number in [1, 2] {
            fleet
                .shard(number)
                .client()?
                .batch_execute(&format!("CREATE TABLE {table} ({columns}{key})"))?;
            coordinator.batch_execute(&format!(
                "CREATE FOREIGN TABLE {table}_{number} PARTITION OF {table}
                     FOR VALUES WITH (MODULUS 2, REMAINDER {})
                     SERVER shard{number} OPTIONS (table_name '{table}')",
                number - 1
            ))?;
        }
    }
    Ok(())
}

/// The sum of `expression` over the rows of `table` on both shards, asked there.
fn on_shards(fleet: &Fleet, expression: &str, table: &str) -> anyhow::Result<i64> {
    let sql = format!("SELECT coalesce({expression}, 0)::bigint FROM {table}");
    fleet.shards().iter().map(|shard| one::<i64>(&mut shard.client()?, &sql)).sum()
}

#[test]
fn the_built_in_script_balances() -> Outcome {
    let fleet = Fleet::start()?;
    create_tables(&fleet)?;
    // Partitions, so that it does not ask for COPY FREEZE, which no partitioned table takes. From
    // 17 on it does all the same for the other tables: there the server makes the rows.
    let generate = if Installation::from_env()?.major() < 17 { "g" } else { "G" };
    pgbench(&fleet, &["-i", "-I", generate, "--partitions=2", "-s", "1", "-q"])?;
    for shard in fleet.shards() {
        let accounts: i64 = one(&mut shard.client()?, "SELECT count(*) FROM pgbench_accounts")?;
        assert!((40_000..60_000).contains(&accounts), "{accounts} on {}", shard.name());
    }
    assert_eq!(on_shards(&fleet, "count(*)", "pgbench_accounts")?, 100_000);

    let (clients, transactions) = (CLIENTS.to_string(), TRANSACTIONS.to_string());
    let total = CLIENTS * TRANSACTIONS;
    let mut balance = 0;
    for mode in ["simple", "extended", "prepared"] {
        let prepared_before = statistic(&fleet, 1, "prepared")?;
        let report = pgbench(
            &fleet,
            &["-c", &clients, "-t", &transactions, "-M", mode, "--max-tries=1000"],
        )?;
        let processed = format!("number of transactions actually processed: {total}/{total}\n");
        assert!(report.contains(&processed), "{mode}: {report}");
        assert!(report.contains("number of failed transactions: 0 "), "{mode}: {report}");
        let prepared = statistic(&fleet, 1, "prepared")? - prepared_before;
        assert!(prepared > total / 4, "{mode}: only {prepared} were of both shards");

        assert_settled(&fleet);
        // Each run has begun by emptying the history.
        assert_eq!(on_shards(&fleet, "count(*)", "pgbench_history")?, total, "{mode}");
        balance += on_shards(&fleet, "sum(delta)", "pgbench_history")?;
        for (column, table) in [
            ("abalance", "pgbench_accounts"),
            ("tbalance", "pgbench_tellers"),
            ("bbalance", "pgbench_branches"),
        ] {
            let sum = on_shards(&fleet, &format!("sum({column})"), table)?;
            assert_eq!(sum, balance, "{mode}: {column}");
        }
    }
    assert_no_locks(&fleet)
}
