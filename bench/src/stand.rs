//! The servers that everything is measured on: a coordinator, eight shards, and a plain server
//! without the extension.
//!
//! The coordinator has foreign servers of each contender for each shard, by two routes: direct
//! ("x1", "s1", "p1", …), and over a link whose delay can be set ("x1_link", …). Each has one
//! foreign table of its own name, which is table `t` of the shard.

use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use pg_test::link::Link;
use pg_test::{Cluster, Fleet, FleetOptions, Installation};
use postgres::Client;

use crate::application::Application;
use crate::contender::{Contender, Session};
use crate::progress::say;

/// Number of shards.
pub const SHARDS: usize = 8;

/// How a contender reaches the shards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// Without anything in between.
    Direct,
    /// With the delay of [`Stand::set_round_trip`].
    Linked,
}

/// Running servers.
pub struct Stand {
    // Links end before the servers.
    links: Vec<Link>,
    /// The coordinator and its shards.
    pub fleet: Fleet,
    /// A server like the coordinator that does not load the library.
    pub plain: Cluster,
    /// Whether the extension can commit without waiting for the second phase.
    commit_wait: bool,
    /// Whether it can go on without waiting for INSERTs.
    write_behind: bool,
    ids: Ids,
}

/// Numbers for rows, each used once.
#[derive(Debug, Clone, Default)]
pub struct Ids(Arc<AtomicI32>);

impl Ids {
    /// The next one.
    pub fn next(&self) -> i32 {
        self.0.fetch_add(1, Ordering::Relaxed) + 1
    }
}

/// Settings of all servers: durable, without logging of statements, and without a checkpoint in the
/// middle.
const SETTINGS: &[(&str, &str)] = &[
    ("fsync", "on"),
    ("log_statement", "none"),
    ("max_connections", "300"),
    ("max_prepared_transactions", "300"),
    ("shared_buffers", "128MB"),
    ("max_wal_size", "8GB"),
    ("checkpoint_timeout", "1h"),
];

/// Defaults where tests of the coordinator use something else.
const COORDINATOR_SETTINGS: &[(&str, &str)] =
    &[("pg_fdw_xacts.resolver_interval", "1min"), ("pg_fdw_xacts.resolver_retry_max", "30s")];

impl Stand {
    /// How many transactions warm up a [`session`](Self::session).
    pub const WARM_UP: u32 = 5;

    /// Starts all servers and creates what the module's text lists.
    pub fn start() -> Result<Self> {
        say(&format!("starting a coordinator, {SHARDS} shards and a server without the extension"));
        let fleet = Fleet::start_with(&FleetOptions {
            shards: SHARDS,
            coordinator: [SETTINGS, COORDINATOR_SETTINGS].concat(),
            shard: SETTINGS.to_vec(),
            ..FleetOptions::default()
        })?;
        let mut plain = Cluster::create(&Installation::from_env()?, "coordinator")?;
        plain.configure(SETTINGS)?;
        plain.start()?;
        plain.client()?.batch_execute("CREATE TABLE lt (id int PRIMARY KEY, v text)")?;
        // Threads of links sleep for half a round trip; the kernel would round it up by 50
        // microseconds.
        nix::sys::prctl::set_timerslack(1)?;
        let links = fleet
            .shards()
            .iter()
            .map(|shard| Link::start(shard.port(), Duration::ZERO))
            .collect::<Result<_>>()?;
        let mut session = fleet.session()?;
        let settings = session.query_one(
            "SELECT current_setting('pg_fdw_xacts.commit_wait', true),
                 current_setting('pg_fdw_xacts.write_behind', true)",
            &[],
        )?;
        let has = |setting| settings.get::<_, Option<String>>(setting).is_some();
        let (commit_wait, write_behind) = (has(0), has(1));
        let stand = Self { links, fleet, plain, commit_wait, write_behind, ids: Ids::default() };
        stand.create_servers(&mut session)?;
        Ok(stand)
    }

    fn create_servers(&self, session: &mut Client) -> Result<()> {
        for contender in [Contender::Ours, Contender::Stock, Contender::StockParallel] {
            let (wrapper, options) = match contender {
                Contender::Ours => ("pg_fdw_xacts", ""),
                Contender::StockParallel => ("postgres_fdw", ", parallel_commit 'true'"),
                _ => ("postgres_fdw", ""),
            };
            for (route, shard) in [Route::Direct, Route::Linked]
                .into_iter()
                .flat_map(|route| (1..=SHARDS).map(move |shard| (route, shard)))
            {
                let name = Self::table(contender, route, shard)?;
                let port = self.port(route, shard);
                // Without the question for TLS, connecting takes exactly one round trip.
                session.batch_execute(&format!(
                    "CREATE SERVER {name} FOREIGN DATA WRAPPER {wrapper} OPTIONS
                         (host '127.0.0.1', port '{port}', dbname 'postgres', sslmode 'disable'{options});
                     CREATE USER MAPPING FOR CURRENT_USER SERVER {name} OPTIONS (user 'postgres');
                     CREATE FOREIGN TABLE {name} (id int NOT NULL, v text) SERVER {name}
                         OPTIONS (table_name 't')"
                ))?;
            }
        }
        for shard in self.fleet.shards() {
            shard.client()?.batch_execute("INSERT INTO t VALUES (0, 'value')")?;
        }
        Ok(())
    }

    /// The foreign table, and server, of `contender` for a shard counted from 1.
    pub fn table(contender: Contender, route: Route, shard: usize) -> Result<String> {
        let letter = contender.letter().context("the application has no foreign tables")?;
        Ok(match route {
            Route::Direct => format!("{letter}{shard}"),
            Route::Linked => format!("{letter}{shard}_link"),
        })
    }

    /// The port of a shard counted from 1, or of its link.
    pub fn port(&self, route: Route, shard: usize) -> u16 {
        match route {
            Route::Direct => self.fleet.shard(shard).port(),
            Route::Linked => self.links[shard - 1].port(),
        }
    }

    /// Sets the delay of a round trip over each link.
    pub fn set_round_trip(&self, round_trip: Duration) {
        for link in &self.links {
            link.set_round_trip(round_trip);
        }
    }

    /// Whether the servers wait for their disks, from the next transactions on.
    pub fn set_fsync(&self, on: bool) -> Result<()> {
        for server in std::iter::once(&self.fleet.coordinator).chain(self.fleet.shards()) {
            server.client()?.batch_execute(&format!("ALTER SYSTEM SET fsync = {on}"))?;
            server.reload()?;
        }
        Ok(())
    }

    /// How often the client side of each link has spoken after an answer.
    pub fn turns(&self) -> Vec<u64> {
        self.links.iter().map(Link::turns).collect()
    }

    /// The contenders that this build of the extension can run.
    pub fn contenders(&self) -> Vec<Contender> {
        let runs = |contender: &Contender| match contender {
            Contender::OursWithoutWait => self.commit_wait,
            Contender::OursBehind => self.write_behind,
            _ => true,
        };
        Contender::ALL.into_iter().filter(runs).collect()
    }

    /// Numbers for rows.
    pub fn ids(&self) -> Ids {
        self.ids.clone()
    }

    /// A session of `contender` on the coordinator.
    pub fn client(&self, contender: Contender) -> Result<Client> {
        let mut client = self.fleet.session()?;
        client.batch_execute(contender.settings())?;
        Ok(client)
    }

    /// A warm session that writes on the first `shards` shards.
    pub fn session(&self, contender: Contender, route: Route, shards: usize) -> Result<Session> {
        let numbers = 1..=shards;
        let mut session = match contender {
            Contender::Application => {
                let ports: Vec<u16> = numbers.map(|shard| self.port(route, shard)).collect();
                Session::Direct(Application::connect(&ports)?)
            }
            _ => Session::Coordinator {
                client: Box::new(self.client(contender)?),
                tables: numbers
                    .map(|shard| Self::table(contender, route, shard))
                    .collect::<Result<_>>()?,
            },
        };
        for _ in 0..Self::WARM_UP {
            session.transaction(self.ids.next())?;
        }
        Ok(session)
    }
}
