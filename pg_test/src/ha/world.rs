//! The servers of a run: etcd, a coordinator and a shard of two nodes each, and a shard by itself.

use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use nix::sys::signal::{Signal, kill};
use postgres::Client;

use super::node::{self, Node};
use crate::install::{DIRECTORY_VARIABLE, as_server_user};
use crate::oracle::one;
use crate::port::PortLease;
use crate::{Cluster, DEADLINE, Installation, place, process, wait_until};

/// The environment variable that names etcd's program.
pub const ETCD_VARIABLE: &str = "PG_TEST_ETCD";

/// The environment variable that names Patroni's program.
pub const PATRONI_VARIABLE: &str = "PG_TEST_PATRONI";

/// The page whose settings are used.
const CHAPTER: &str = include_str!("../../../docs/src/high-availability.md");

/// How long it may take until a cluster has a leader and a standby.
const READY: Duration = Duration::from_secs(180);

/// How often Patroni is asked.
pub(super) const PAUSE: Duration = Duration::from_millis(200);

/// Accounts at each place.
pub(super) const ACCOUNTS: u64 = 20;

/// What is on each at first.
pub(super) const DEPOSIT: i64 = 1_000_000;

/// Which of the clusters of two nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Coordinator,
    Shard,
}

/// Two nodes, of which one is the leader.
#[derive(Debug)]
pub(super) struct Pair {
    pub(super) nodes: [Node; 2],
}

impl Pair {
    /// The number of the leader.
    pub(super) fn leader(&self) -> Option<usize> {
        self.nodes.iter().position(Node::is_leader)
    }

    /// The number of the leader, which there will be soon: a busy machine may be late to say so.
    pub(super) fn wait_for_leader(&self) -> Result<usize> {
        let mut leader = None;
        wait_until("there is a leader", DEADLINE, || {
            leader = self.leader();
            Ok(leader.is_some())
        })?;
        leader.context("there is no leader")
    }

    /// The ports of both, the leader's wherever it is.
    pub(super) fn ports(&self) -> [u16; 2] {
        [self.nodes[0].port(), self.nodes[1].port()]
    }

    /// Waits until one is the leader and the other follows it.
    fn wait_until_ready(&self, is_synchronous: bool) -> Result<()> {
        let what = format!("{} and {} are a pair", self.nodes[0].name, self.nodes[1].name);
        wait_until(&what, READY, || {
            std::thread::sleep(PAUSE);
            let leader = self.leader();
            Ok(leader.is_some_and(|leader| {
                let (leader, other) = (&self.nodes[leader], &self.nodes[1 - leader]);
                other.is_standby(is_synchronous)
                    && other.is_standby(false)
                    && leader.streams().unwrap_or(false)
            }))
        })
        .with_context(|| {
            self.nodes
                .iter()
                .map(|node| format!("{}:\n{}\n", node.name, node.last_words()))
                .collect::<String>()
        })
    }
}

/// All servers.
pub(super) struct World {
    pub(super) coordinator: Pair,
    pub(super) shard: Pair,
    pub(super) plain: Cluster,
    is_synchronous: bool,
    etcd: Child,
    _ports: [PortLease; 2],
}

impl World {
    /// Starts all of them, and puts the money on the accounts.
    pub(super) fn start(is_synchronous: bool) -> Result<Self> {
        let installation = Installation::from_env()?;
        let directory = home()?;
        let ports = [PortLease::take()?, PortLease::take()?];
        let etcd = start_etcd(&installation, &directory, [ports[0].number(), ports[1].number()])?;
        let patroni = program(PATRONI_VARIABLE)?;
        let pair = |scope: &str, number: usize| -> Result<Pair> {
            let settings = settings(number, is_synchronous)?;
            let node = |letter| {
                let etcd = ports[0].number();
                Node::create(&installation, &patroni, &directory, (scope, letter), etcd, &settings)
            };
            Ok(Pair { nodes: [node('a')?, node('b')?] })
        };
        let mut plain = Cluster::create(&installation, "shard2")?;
        plain.start()?;
        let mut world = Self {
            coordinator: pair("coordinator", 0)?,
            shard: pair("shard1", 1)?,
            plain,
            is_synchronous,
            etcd,
            _ports: ports,
        };
        for pair in [&mut world.coordinator, &mut world.shard] {
            pair.nodes[0].start()?;
        }
        for pair in [&world.coordinator, &world.shard] {
            wait_until("the first node is the leader", READY, || Ok(pair.leader() == Some(0)))
                .with_context(|| pair.nodes[0].last_words())?;
        }
        world.create_tables()?;
        for pair in [&mut world.coordinator, &mut world.shard] {
            pair.nodes[1].start()?;
        }
        world.wait_until_ready()?;
        Ok(world)
    }

    /// Waits until both pairs are what they should be.
    pub(super) fn wait_until_ready(&self) -> Result<()> {
        self.coordinator.wait_until_ready(self.is_synchronous)?;
        self.shard.wait_until_ready(self.is_synchronous)
    }

    pub(super) fn pair(&self, side: Side) -> &Pair {
        match side {
            Side::Coordinator => &self.coordinator,
            Side::Shard => &self.shard,
        }
    }

    pub(super) fn node_mut(&mut self, side: Side, number: usize) -> &mut Node {
        match side {
            Side::Coordinator => &mut self.coordinator.nodes[number],
            Side::Shard => &mut self.shard.nodes[number],
        }
    }

    /// A session on the leader.
    pub(super) fn leader_of(&self, side: Side) -> Result<Client> {
        let pair = self.pair(side);
        pair.nodes[pair.wait_for_leader()?].client()
    }

    /// A session at each place: on the coordinator, and on the shards.
    pub(super) fn places(&self) -> Result<[Client; 3]> {
        let coordinator = self.leader_of(Side::Coordinator)?;
        Ok([coordinator, self.leader_of(Side::Shard)?, self.plain.client()?])
    }

    fn create_tables(&self) -> Result<()> {
        let [mut coordinator, mut shard, mut plain] = self.places()?;
        for session in [&mut coordinator, &mut shard, &mut plain] {
            session.batch_execute(&format!(
                "CREATE TABLE account (id int PRIMARY KEY, balance bigint NOT NULL);
                 CREATE TABLE ledger (transfer bigint PRIMARY KEY, account int, amount bigint NOT NULL);
                 INSERT INTO account SELECT i, {DEPOSIT} FROM generate_series(0, {ACCOUNTS} - 1) i"
            ))?;
        }
        coordinator.batch_execute("CREATE EXTENSION pg_fdw_xacts CASCADE")?;
        coordinator.batch_execute(&self.servers()?)?;
        for number in 1..=2 {
            coordinator.batch_execute(&format!(
                "CREATE USER MAPPING FOR CURRENT_USER SERVER shard{number} OPTIONS (user 'postgres');
                 CREATE FOREIGN TABLE account{number} (id int, balance bigint) SERVER shard{number}
                     OPTIONS (table_name 'account');
                 CREATE FOREIGN TABLE ledger{number} (transfer bigint, account int, amount bigint)
                     SERVER shard{number} OPTIONS (table_name 'ledger')"
            ))?;
        }
        Ok(())
    }

    /// The statement of the page that makes the shard of two nodes a foreign server, with the ports
    /// of this run; and one for the other shard.
    fn servers(&self) -> Result<String> {
        let [a, b] = self.shard.ports();
        let statement = block("text", 0)?
            .replace("shard1-a.example,shard1-b.example", "127.0.0.1,127.0.0.1")
            .replace("5432,5432", &format!("{a},{b}"))
            .replace("dbname 'app'", "dbname 'postgres'");
        let port = self.plain.port();
        Ok(format!(
            "{statement};
             CREATE SERVER shard2 FOREIGN DATA WRAPPER pg_fdw_xacts
                 OPTIONS (host '127.0.0.1', port '{port}', dbname 'postgres',
                          options '-c lock_timeout=5s')"
        ))
    }

    /// What is left of any transaction, on any server.
    pub(super) fn left(&self) -> Result<String> {
        let mut left = String::new();
        let [mut coordinator, mut shard, mut plain] = self.places()?;
        for row in coordinator.query("SELECT * FROM pg_fdw_xacts", &[])? {
            left += &format!("pg_fdw_xacts shows {row:?}\n");
        }
        for (name, session) in
            [("coordinator", &mut coordinator), ("shard1", &mut shard), ("shard2", &mut plain)]
        {
            for row in session.query("SELECT gid FROM pg_prepared_xacts", &[])? {
                left += &format!("{name} has prepared '{}'\n", row.get::<_, String>(0));
            }
        }
        Ok(left)
    }

    /// Outcomes that somebody else has decided, since the coordinator's start.
    pub(super) fn heuristic(&self) -> Result<i64> {
        one(
            &mut self.leader_of(Side::Coordinator)?,
            "SELECT coalesce(sum(heuristic), 0)::bigint FROM pg_stat_fdw_xacts",
        )
    }

    /// Where to read on.
    pub(super) fn logs(&self) -> Vec<PathBuf> {
        let nodes = self.coordinator.nodes.iter().chain(&self.shard.nodes);
        nodes.map(Node::log).collect()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = process::pid_of(&self.etcd).map(|pid| kill(pid, Signal::SIGTERM));
        let _ = self.etcd.wait();
    }
}

/// An empty directory. What an earlier run has left there is ended and removed; what this run
/// leaves can be read until the next.
fn home() -> Result<PathBuf> {
    let directory =
        std::env::var_os(DIRECTORY_VARIABLE).map_or_else(std::env::temp_dir, PathBuf::from);
    let home = directory.join("ha");
    place::make_directory(&home)?;
    for entry in std::fs::read_dir(&home)? {
        let path = entry?.path();
        node::end(&path);
        std::fs::remove_dir_all(&path)?;
    }
    Ok(home)
}

fn program(variable: &str) -> Result<PathBuf> {
    let path = std::env::var_os(variable)
        .ok_or_else(|| anyhow!("{variable} is not set: run this with `cargo xtask ha`"))?;
    Ok(path.into())
}

fn start_etcd(
    installation: &Installation,
    home: &Path,
    [clients, peers]: [u16; 2],
) -> Result<Child> {
    let data = home.join("etcd");
    place::make_data_directory(installation, &data)?;
    let log = std::fs::File::create(data.join("log"))?;
    let [clients, peers] = [clients, peers].map(|port| format!("http://127.0.0.1:{port}"));
    let mut command = as_server_user(installation.user(), &program(ETCD_VARIABLE)?);
    command
        .arg("--data-dir")
        .arg(data.join("data"))
        .args(["--listen-client-urls", &clients, "--advertise-client-urls", &clients])
        .args(["--listen-peer-urls", &peers, "--initial-advertise-peer-urls", &peers])
        .args(["--initial-cluster", &format!("default={peers}")])
        .stdin(std::process::Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    process::spawn_tied_by(Signal::SIGTERM, command, None)
}

/// The settings of the page: of the coordinator, or of a shard.
fn settings(number: usize, is_synchronous: bool) -> Result<String> {
    const MODE: &str = "synchronous_mode: true";
    let settings = block("yaml", number)?;
    anyhow::ensure!(settings.contains(MODE), "the page's settings are not synchronous");
    Ok(match is_synchronous {
        true => settings.to_owned(),
        false => settings.replace(MODE, "synchronous_mode: false"),
    })
}

/// Block `number` of the page in this language.
fn block(language: &str, number: usize) -> Result<&'static str> {
    let begin = format!("```{language}\n");
    let text = CHAPTER.split(&begin).nth(number + 1);
    text.and_then(|text| text.split("```").next())
        .map(str::trim_end)
        .with_context(|| format!("the page has no block {number} in {language}"))
}

#[cfg(test)]
mod tests {
    use super::{block, settings};

    #[test]
    fn the_page_has_what_is_run() {
        for number in 0..2 {
            assert_ne!(settings(number, true).unwrap(), settings(number, false).unwrap());
        }
        let statement = block("text", 0).unwrap();
        for part in [
            "CREATE SERVER shard1 ",
            "'shard1-a.example,shard1-b.example'",
            "'5432,5432'",
            "dbname 'app'",
        ] {
            assert!(statement.contains(part), "{part}");
        }
    }
}
