//! The contenders, and a session of each that runs the same transaction: it inserts a row on each
//! of some shards.

use std::time::{Duration, Instant};

use anyhow::Result;
use postgres::Client;
use serde::Serialize;

use crate::application::Application;

/// A way to write on several shards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Contender {
    /// This extension.
    Ours,
    /// This extension, not waiting for the second phase.
    OursWithoutWait,
    /// This extension, not waiting for INSERTs.
    OursBehind,
    /// `postgres_fdw` as it is by default; not atomic.
    Stock,
    /// `postgres_fdw` with `parallel_commit`; not atomic.
    StockParallel,
    /// An application that commits in two phases itself.
    Application,
}

impl Contender {
    /// All contenders, in the order of tables.
    pub const ALL: [Self; 6] = [
        Self::Ours,
        Self::OursWithoutWait,
        Self::OursBehind,
        Self::Stock,
        Self::StockParallel,
        Self::Application,
    ];

    /// The name in tables and plots.
    pub fn label(self) -> &'static str {
        match self {
            Self::Ours => "pg_fdw_xacts",
            Self::OursWithoutWait => "pg_fdw_xacts, commit_wait off",
            Self::OursBehind => "pg_fdw_xacts, write_behind",
            Self::Stock => "postgres_fdw",
            Self::StockParallel => "postgres_fdw, parallel_commit",
            Self::Application => "application, two phases itself",
        }
    }

    /// The first letter of its foreign servers' names; the application has none.
    pub fn letter(self) -> Option<char> {
        match self {
            Self::Ours | Self::OursWithoutWait | Self::OursBehind => Some('x'),
            Self::Stock => Some('s'),
            Self::StockParallel => Some('p'),
            Self::Application => None,
        }
    }

    /// What its sessions on the coordinator set.
    pub fn settings(self) -> &'static str {
        match self {
            Self::OursWithoutWait => "SET pg_fdw_xacts.commit_wait = off",
            Self::OursBehind => "SET pg_fdw_xacts.write_behind = on",
            _ => "",
        }
    }
}

/// A session of a contender.
pub enum Session {
    /// Through foreign tables of the coordinator.
    Coordinator {
        /// The session there.
        client: Box<Client>,
        /// A foreign table for each shard.
        tables: Vec<String>,
    },
    /// Without the coordinator.
    Direct(Application),
}

/// How long a transaction took.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// From BEGIN to the answer to COMMIT.
    pub whole: Duration,
    /// COMMIT alone.
    pub commit: Duration,
}

impl Session {
    /// Inserts row `id`, which must be new, on each shard, and commits; each statement waits for
    /// its answer.
    pub fn transaction(&mut self, id: i32) -> Result<Timing> {
        let start = Instant::now();
        let commit = match self {
            Self::Coordinator { client, tables } => {
                client.batch_execute("BEGIN")?;
                for table in tables {
                    client.batch_execute(&format!("INSERT INTO {table} VALUES ({id}, 'value')"))?;
                }
                let commit = Instant::now();
                client.batch_execute("COMMIT")?;
                commit
            }
            Self::Direct(application) => {
                application.insert(id)?;
                let commit = Instant::now();
                application.commit(id)?;
                commit
            }
        };
        Ok(Timing { whole: start.elapsed(), commit: commit.elapsed() })
    }
}
