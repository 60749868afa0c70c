//! A coordinator and its shards: real servers, with foreign tables between them.
//!
//! | object | where |
//! |---|---|
//! | `t(id int primary key, v text)` | on each shard |
//! | `shard1`, `shard2`, … | foreign servers on the coordinator |
//! | `ft1`, `ft2`, … | foreign tables on the coordinator, `t` of the shard |
//! | `lt(id int primary key, v text)` | local table of the coordinator |

use anyhow::{Context, Result, anyhow};
use postgres::Client;

use crate::network::{Cable, Host, Loss};
use crate::{Cluster, Installation, Proxy};

/// How a fleet is to be set up; start from [`FleetOptions::default`].
#[derive(Debug, Clone)]
pub struct FleetOptions {
    /// Number of shards.
    pub shards: usize,
    /// Whether the coordinator reaches each shard through a [`Proxy`].
    pub proxied: bool,
    /// Whether each server is a host of its own, with a [`Cable`] between the coordinator and each
    /// shard; a proxy is on the shard's host.
    pub hosts: bool,
    /// Settings of the coordinator, beside those of every fleet.
    pub coordinator: Vec<(&'static str, &'static str)>,
    /// Settings of all shards.
    pub shard: Vec<(&'static str, &'static str)>,
}

impl Default for FleetOptions {
    fn default() -> Self {
        Self { shards: 2, proxied: false, hosts: false, coordinator: Vec::new(), shard: Vec::new() }
    }
}

/// A running coordinator with running shards.
#[derive(Debug)]
pub struct Fleet {
    /// The server that holds the foreign tables.
    pub coordinator: Cluster,
    shards: Vec<Cluster>,
    proxies: Vec<Proxy>,
    cables: Vec<Cable>,
}

/// Settings of every coordinator. The resolver looks often, so that tests need not wait for its
/// default of a minute where nothing wakes it.
const COORDINATOR_SETTINGS: &[(&str, &str)] = &[
    ("shared_preload_libraries", "pg_fdw_xacts"),
    ("pg_fdw_xacts.resolver_interval", "1s"),
    ("pg_fdw_xacts.resolver_retry_min", "200ms"),
    ("pg_fdw_xacts.resolver_retry_max", "1s"),
];

impl Fleet {
    /// Two shards, no proxies, no special settings.
    pub fn start() -> Result<Self> {
        Self::start_with(&FleetOptions::default())
    }

    /// Two shards behind proxies.
    pub fn start_proxied() -> Result<Self> {
        Self::start_with(&FleetOptions { proxied: true, ..FleetOptions::default() })
    }

    /// Makes and starts all servers and sets up what the module's table lists.
    pub fn start_with(options: &FleetOptions) -> Result<Self> {
        let installation = Installation::from_env()?;
        let mut coordinator = Cluster::create(&installation, "coordinator")?;
        coordinator.configure(COORDINATOR_SETTINGS)?;
        coordinator.configure(&options.coordinator)?;
        let mut cables = Vec::new();
        if options.hosts {
            let host = Host::new()?;
            coordinator.move_to(&host)?;
            for number in 1..=options.shards {
                cables.push(Cable::lay(&host, number)?);
            }
        }
        let mut servers = vec![coordinator];
        for number in 1..=options.shards {
            let mut shard = Cluster::create(&installation, &format!("shard{number}"))?;
            shard.configure(&options.shard)?;
            if let Some(cable) = cables.get(number - 1) {
                shard.move_to(cable.shard())?;
            }
            servers.push(shard);
        }
        start_all(&mut servers)?;
        let coordinator = servers.remove(0);
        let proxy = |(index, shard): (usize, &Cluster)| match cables.get(index) {
            Some(cable) => Proxy::start_on(cable.shard(), shard.port()),
            None => Proxy::start(shard.port()),
        };
        let proxies = if options.proxied {
            servers.iter().enumerate().map(proxy).collect::<Result<_>>()?
        } else {
            Vec::new()
        };
        let fleet = Self { coordinator, shards: servers, proxies, cables };
        set_up(&fleet.coordinator, &fleet.shards, |index| fleet.port_of_shard(index + 1))?;
        for (number, cable) in (1..).zip(&fleet.cables) {
            let address = cable.shard_address();
            fleet.session()?.batch_execute(&format!(
                "ALTER SERVER shard{number} OPTIONS (SET host '{address}')"
            ))?;
        }
        Ok(fleet)
    }

    /// Another coordinator over the same shards, running, with objects of the same names.
    pub fn another_coordinator(&self, name: &str, settings: &[(&str, &str)]) -> Result<Cluster> {
        let mut coordinator = Cluster::create(&Installation::from_env()?, name)?;
        coordinator.configure(COORDINATOR_SETTINGS)?;
        coordinator.configure(settings)?;
        coordinator.start()?;
        set_up(&coordinator, &self.shards, |index| self.port_of_shard(index + 1))?;
        Ok(coordinator)
    }

    /// Database `name` of the coordinator, with the extension and the objects of the module's table
    /// in it. It is created unless it is there.
    pub fn connect_database(&self, name: &str) -> Result<Client> {
        let mut session = self.session()?;
        if session.query_opt("SELECT FROM pg_database WHERE datname = $1", &[&name])?.is_none() {
            session.batch_execute(&format!("CREATE DATABASE {name}"))?;
        }
        let mut session = self.coordinator.client_for(name, "postgres")?;
        create_extension(&mut session)?;
        self.connect_shards(&mut session)?;
        Ok(session)
    }

    /// Creates servers, user mappings and foreign tables where `session` is.
    pub fn connect_shards(&self, session: &mut Client) -> Result<()> {
        (1..=self.shards.len())
            .try_for_each(|number| connect_shard(session, number, self.port_of_shard(number)))
    }

    /// All shards.
    pub fn shards(&self) -> &[Cluster] {
        &self.shards
    }

    /// Shard `number`, counted from 1 as in its name.
    pub fn shard(&self, number: usize) -> &Cluster {
        &self.shards[number - 1]
    }

    /// Shard `number`, to stop and start it.
    pub fn shard_mut(&mut self, number: usize) -> &mut Cluster {
        &mut self.shards[number - 1]
    }

    /// The coordinator and all shards.
    pub fn servers(&self) -> impl Iterator<Item = &Cluster> {
        std::iter::once(&self.coordinator).chain(&self.shards)
    }

    /// The coordinator and all shards, to stop and start them.
    pub fn servers_mut(&mut self) -> impl Iterator<Item = &mut Cluster> {
        std::iter::once(&mut self.coordinator).chain(&mut self.shards)
    }

    /// Puts `cluster` in the place of shard `number`; returns the one that was there.
    pub fn replace_shard(&mut self, number: usize, cluster: Cluster) -> Cluster {
        std::mem::replace(&mut self.shards[number - 1], cluster)
    }

    /// The proxy in front of shard `number` of a proxied fleet.
    pub fn proxy(&self, number: usize) -> &Proxy {
        &self.proxies[number - 1]
    }

    /// The cable between the coordinator and shard `number` of a fleet of hosts.
    pub fn cable(&self, number: usize) -> &Cable {
        &self.cables[number - 1]
    }

    /// The coordinator's host dies: nothing of it is heard any more. Its data, not started yet, are
    /// on a new host with the same addresses.
    pub fn coordinator_host_dies(&mut self) -> Result<()> {
        for cable in &self.cables {
            cable.lose(Loss::Both)?;
        }
        self.coordinator.kill9()?;
        let host = Host::new()?;
        for cable in &mut self.cables {
            cable.replug(&host)?;
            cable.mend()?;
        }
        self.coordinator.move_to(&host)
    }

    /// The port by which the coordinator reaches shard `number`.
    pub fn port_of_shard(&self, number: usize) -> u16 {
        self.proxies.get(number - 1).map_or_else(|| self.shard(number).port(), Proxy::port)
    }

    /// A session on the coordinator, as superuser.
    pub fn session(&self) -> Result<Client> {
        self.coordinator.client()
    }

    /// The ids in table `t` of shard `number`, asked there directly.
    pub fn ids_on_shard(&self, number: usize) -> Result<Vec<i32>> {
        ids(&mut self.shard(number).client()?, "t")
    }

    /// The ids in the coordinator's local table.
    pub fn ids_in_lt(&self) -> Result<Vec<i32>> {
        ids(&mut self.session()?, "lt")
    }
}

/// The `id`s in `table`, in order.
pub fn ids(session: &mut Client, table: &str) -> Result<Vec<i32>> {
    let rows = session.query(&format!("SELECT id FROM {table} ORDER BY id"), &[])?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Starts servers side by side.
pub fn start_all(servers: &mut [Cluster]) -> Result<()> {
    std::thread::scope(|scope| {
        let threads: Vec<_> =
            servers.iter_mut().map(|server| scope.spawn(|| server.start())).collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().map_err(|_| anyhow!("start panicked"))?)
    })
}

/// Creates the extension and the objects of the module's table on running servers; `port` tells by
/// which port the coordinator reaches the shard of that index.
pub fn set_up(
    coordinator: &Cluster,
    shards: &[Cluster],
    port: impl Fn(usize) -> u16,
) -> Result<()> {
    let mut session = coordinator.client()?;
    create_extension(&mut session)?;
    for (index, shard) in shards.iter().enumerate() {
        shard
            .client()?
            .batch_execute("CREATE TABLE IF NOT EXISTS t (id int PRIMARY KEY, v text)")?;
        connect_shard(&mut session, index + 1, port(index))?;
    }
    Ok(())
}

/// The extension and the local table.
fn create_extension(session: &mut Client) -> Result<()> {
    session
        .batch_execute(
            "CREATE EXTENSION pg_fdw_xacts CASCADE;
             CREATE TABLE lt (id int PRIMARY KEY, v text)",
        )
        .context("the extension cannot be created; is it installed there?")
}

/// Server, user mapping and foreign table for shard `number`, which is reached at `port`.
fn connect_shard(session: &mut Client, number: usize, port: u16) -> Result<()> {
    Ok(session.batch_execute(&format!(
        "CREATE SERVER shard{number} FOREIGN DATA WRAPPER pg_fdw_xacts
             OPTIONS (host '127.0.0.1', port '{port}', dbname 'postgres');
         CREATE USER MAPPING FOR CURRENT_USER SERVER shard{number} OPTIONS (user 'postgres');
         CREATE FOREIGN TABLE ft{number} (id int NOT NULL, v text) SERVER shard{number}
             OPTIONS (table_name 't')"
    ))?)
}

/// Inserts row `id` into lt, ft1 and ft2 in a transaction that stays open.
pub fn begin_everywhere(session: &mut Client, id: i32) -> Result<(), postgres::Error> {
    session.batch_execute("BEGIN")?;
    for table in ["lt", "ft1", "ft2"] {
        session.batch_execute(&format!("INSERT INTO {table} VALUES ({id}, 'x')"))?;
    }
    Ok(())
}
