//! Connections to a server.

use std::time::Duration;

use anyhow::{Context, Result};
use postgres::{Client, Config, NoTls};

use super::Cluster;

impl Cluster {
    /// A connection as superuser to the database `postgres`.
    pub fn client(&self) -> Result<Client> {
        self.client_for("postgres", "postgres")
    }

    /// A connection to `database` as `user`.
    pub fn client_for(&self, database: &str, user: &str) -> Result<Client> {
        self.connect(self.config().dbname(database).user(user))
            .with_context(|| format!("cannot connect to {} as {user}", self.name))
    }

    /// Connects from the server's own host.
    pub fn connect(&self, config: &Config) -> Result<Client> {
        match &self.host {
            Some(host) => host.inside(|| Ok(config.connect(NoTls)?)),
            None => Ok(config.connect(NoTls)?),
        }
    }

    /// How to connect, for a test that wants more than [`client`](Self::client).
    pub fn config(&self) -> Config {
        Self::config_at(self.port())
    }

    /// How to connect as superuser by way of `port`, a server's or its proxy's.
    pub fn config_at(port: u16) -> Config {
        let mut config = Config::new();
        config
            .host("127.0.0.1")
            .port(port)
            .dbname("postgres")
            .user("postgres")
            .application_name("pg_test")
            .connect_timeout(Duration::from_secs(10));
        config
    }

    /// The command line that reaches this server.
    pub fn psql(&self) -> String {
        let psql = self.installation.bindir().join("psql");
        format!("{} -h 127.0.0.1 -p {} -U postgres postgres", psql.display(), self.port())
    }
}
