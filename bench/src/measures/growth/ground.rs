//! The servers of one subject: a coordinator, and shards that are databases of a few servers.
//!
//! Shard n is reached by foreign table `xn` of ours and `pn` of `postgres_fdw` with
//! `parallel_commit`, each on a server of the same name.

use std::time::Duration;

use anyhow::{Context, Result};
use pg_test::{Cluster, Fleet, FleetOptions, wait_until};
use postgres::Client;

use crate::contender::{Contender, Session};
use crate::measures::processor::used_by_process;
use crate::stand::Ids;

/// A setting of a server.
pub type Setting = (&'static str, &'static str);

/// How long to wait for something that grows: by then it has failed.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// Settings of all servers.
const SETTINGS: &[Setting] = &[
    ("log_statement", "none"),
    ("autovacuum", "off"),
    ("max_wal_size", "8GB"),
    ("checkpoint_timeout", "1h"),
];

/// What is not to happen while something else is measured.
const COORDINATOR_SETTINGS: &[Setting] =
    &[("pg_fdw_xacts.resolver_interval", "1h"), ("pg_fdw_xacts.forget_delay", "1h")];

/// Running servers.
pub struct Ground {
    /// A coordinator and the servers of the shards.
    pub fleet: Fleet,
    /// Numbers for rows.
    pub ids: Ids,
}

impl Ground {
    /// So many servers for shards, with these settings beside the usual ones.
    pub fn start(servers: usize, coordinator: &[Setting], shard: &[Setting]) -> Result<Self> {
        let fleet = Fleet::start_with(&FleetOptions {
            shards: servers,
            coordinator: [SETTINGS, COORDINATOR_SETTINGS, coordinator].concat(),
            shard: [SETTINGS, shard].concat(),
            ..FleetOptions::default()
        })?;
        Ok(Self { fleet, ids: Ids::default() })
    }

    /// Makes shards `from` to `to`. The first ones are the databases `postgres`.
    pub fn make_shards(&self, from: usize, to: usize) -> Result<()> {
        let mut session = self.fleet.session()?;
        for shard in from..=to {
            let server = self.server_of(shard);
            let database = self.database_of(shard);
            if database != "postgres" {
                let create = format!("CREATE DATABASE {database} STRATEGY file_copy");
                server.client()?.batch_execute(&create)?;
                server
                    .client_for(&database, "postgres")?
                    .batch_execute("CREATE TABLE t (id int PRIMARY KEY, v text)")?;
            }
            for contender in [Contender::Ours, Contender::StockParallel] {
                session.batch_execute(&self.foreign_objects(contender, shard)?)?;
            }
        }
        Ok(())
    }

    /// Server, mapping and table of a contender for a shard.
    pub fn foreign_objects(&self, contender: Contender, shard: usize) -> Result<String> {
        let table = Self::table(contender, shard)?;
        let (port, database) = (self.server_of(shard).port(), self.database_of(shard));
        let (wrapper, options) = match contender {
            Contender::StockParallel => ("postgres_fdw", ", parallel_commit 'true'"),
            _ => ("pg_fdw_xacts", ""),
        };
        Ok(format!(
            "CREATE SERVER {table} FOREIGN DATA WRAPPER {wrapper} OPTIONS
                 (host '127.0.0.1', port '{port}', dbname '{database}', sslmode 'disable'{options});
             CREATE USER MAPPING FOR CURRENT_USER SERVER {table} OPTIONS (user 'postgres');
             CREATE FOREIGN TABLE {table} (id int NOT NULL, v text) SERVER {table}
                 OPTIONS (table_name 't');"
        ))
    }

    /// The foreign table of a contender for a shard.
    pub fn table(contender: Contender, shard: usize) -> Result<String> {
        let letter = contender.letter().context("it has no foreign tables")?;
        Ok(format!("{letter}{shard}"))
    }

    /// The server of a shard.
    pub fn server_of(&self, shard: usize) -> &Cluster {
        self.fleet.shard((shard - 1) % self.fleet.shards().len() + 1)
    }

    /// The database of a shard.
    pub fn database_of(&self, shard: usize) -> String {
        match (shard - 1) / self.fleet.shards().len() {
            0 => "postgres".to_owned(),
            more => format!("d{more}"),
        }
    }

    /// A session that has written once on each of the first shards.
    pub fn session(&self, contender: Contender, shards: usize) -> Result<Session> {
        let client = self.fleet.session()?;
        self.warm(client, contender, shards)
    }

    /// The same, of a session that is there.
    pub fn warm(&self, client: Client, contender: Contender, shards: usize) -> Result<Session> {
        let tables = (1..=shards).map(|shard| Self::table(contender, shard));
        let mut session = Session::Coordinator {
            client: Box::new(client),
            tables: tables.collect::<Result<_>>()?,
        };
        for _ in 0..2 {
            session.transaction(self.ids.next())?;
        }
        Ok(session)
    }

    /// A transaction on the first shards, in a session of its own.
    pub fn first_transaction(&self, contender: Contender, shards: usize) -> Result<()> {
        let mut session = self.fleet.session()?;
        session.batch_execute("BEGIN")?;
        let id = self.ids.next();
        for shard in 1..=shards {
            let table = Self::table(contender, shard)?;
            session.batch_execute(&format!("INSERT INTO {table} VALUES ({id}, 'value')"))?;
        }
        Ok(session.batch_execute("COMMIT")?)
    }

    /// Waits until the resolver of the usual database has nothing to do, and returns its process.
    pub fn idle_resolver(&self) -> Result<i32> {
        let mut session = self.fleet.session()?;
        let mut idle = None;
        wait_until("the resolver has nothing to do", PATIENCE, || {
            let row = session.query_opt(
                "SELECT pid FROM pg_stat_activity WHERE backend_type = 'pg_fdw_xacts resolver'
                 AND datname = 'postgres' AND query LIKE 'waiting; 0 of %'",
                &[],
            )?;
            let Some(pid) = row.map(|row| row.get::<_, i32>(0)) else { return Ok(false) };
            // It may only be about to begin, or read a table.
            let before = used_by_process(pid)?;
            std::thread::sleep(Duration::from_millis(100));
            idle = (used_by_process(pid)? - before < 1e6).then_some(pid);
            Ok(idle.is_some())
        })?;
        idle.context("no resolver")
    }
}
