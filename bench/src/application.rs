//! An application without a coordinator: it speaks to the shards itself and commits in two phases
//! itself.
//!
//! It is the peer that does least: it keeps no record of its decision, so a crash between its two
//! phases leaves prepared transactions that nobody can settle.

use anyhow::{Context, Result};
use futures_util::future::try_join_all;
use tokio::runtime::Runtime;
use tokio_postgres::{Client, NoTls};

/// Connections to some shards.
pub struct Application {
    runtime: Runtime,
    shards: Vec<Client>,
}

impl Application {
    /// Connects to the servers at `ports` of this machine.
    pub fn connect(ports: &[u16]) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let shards = runtime.block_on(try_join_all(ports.iter().map(|port| async move {
            let parameters = format!("host=127.0.0.1 port={port} user=postgres dbname=postgres");
            let (client, connection) =
                tokio_postgres::connect(&parameters, NoTls).await.context("no shard")?;
            tokio::spawn(connection);
            anyhow::Ok(client)
        })))?;
        Ok(Self { runtime, shards })
    }

    /// Inserts row `id` into each shard, one after the other as the statements of a transaction
    /// come; each transaction starts with its statement, in one message.
    pub fn insert(&mut self, id: i32) -> Result<()> {
        let insert = format!("BEGIN; INSERT INTO t VALUES ({id}, 'value')");
        self.runtime.block_on(async {
            for shard in &self.shards {
                shard.batch_execute(&insert).await?;
            }
            Ok(())
        })
    }

    /// Commits on all shards: each phase on all at once. A single shard needs one phase. `id` names
    /// the transaction.
    pub fn commit(&mut self, id: i32) -> Result<()> {
        if let [shard] = self.shards.as_slice() {
            return Ok(self.runtime.block_on(shard.batch_execute("COMMIT"))?);
        }
        for phase in ["PREPARE TRANSACTION", "COMMIT PREPARED"] {
            let sql = format!("{phase} 'application_{id}'");
            self.runtime.block_on(try_join_all(
                self.shards.iter().map(|shard| shard.batch_execute(&sql)),
            ))?;
        }
        Ok(())
    }
}
