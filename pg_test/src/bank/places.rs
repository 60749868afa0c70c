//! The bank's servers, the places where it keeps money, and what must be true of them when nothing
//! is under way.

use std::fmt::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use postgres::Client;

use super::plan::Plan;
use super::sights::{OWN, Places, Sums};
use super::slips::SLIP;
use crate::oracle::{one, prepared_gids};
use crate::{Cluster, DEADLINE, Fleet, FleetOptions, wait_until};

/// Shards.
pub(super) const SHARDS: usize = 3;
/// What is on each account at first.
pub(super) const DEPOSIT: i64 = 1000;

/// Where accounts are. In this order transfers lock them, unless they are to be disorderly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Place {
    /// In a coordinator's own tables; only its own customers reach them.
    Local(usize),
    /// On a shard.
    Shard(usize),
    /// On shard 2, behind foreign tables of shard 1.
    Deep,
}

impl Place {
    /// The table there of that `kind`, as customers call it.
    pub(super) fn table(self, kind: &str) -> String {
        match self {
            Self::Local(_) => kind.to_owned(),
            Self::Shard(number) => format!("{kind}{number}"),
            Self::Deep => format!("{kind}_deep"),
        }
    }

    /// Its bit in a set of places.
    pub(super) fn bit(self) -> Places {
        match self {
            Self::Local(_) => 1,
            Self::Shard(number) => 1 << number,
            Self::Deep => 1 << (SHARDS + 1),
        }
    }

    /// The table's name where it really is.
    pub(super) fn real_table(self, kind: &str) -> String {
        if self == Self::Deep { self.table(kind) } else { kind.to_owned() }
    }
}

/// All servers of a run.
pub(super) struct Bank {
    pub(super) fleet: Fleet,
    second: Option<Cluster>,
    pub(super) standby: Option<Cluster>,
    /// The coordinator whose standby was promoted; for its log.
    lost: Option<Cluster>,
    places: Vec<Place>,
    /// Servers that settle transactions of their own.
    nested: bool,
}

const ACCOUNT: &str = "(id int, balance bigint)";
const LEDGER: &str = "(transfer bigint, account int, amount bigint, places int)";
const LIST: &str = "(id int, items bigint[])";
const REGISTER: &str = "(id int, value bigint)";

impl Bank {
    /// Starts the servers and puts the money on the accounts.
    pub(super) fn open(plan: &Plan) -> Result<Self> {
        let resolver = vec![
            ("pg_fdw_xacts.commit_timeout", plan.commit_timeout),
            ("pg_fdw_xacts.resolver_interval", plan.resolver_interval),
            ("pg_fdw_xacts.resolver_retry_max", plan.resolver_retry_max),
        ];
        let common = [
            ("deadlock_timeout", "100ms"),
            ("max_prepared_transactions", "200"),
            ("wal_retrieve_retry_interval", "200ms"),
            // Whatever a standby misses while it is away.
            ("wal_keep_size", "256MB"),
        ];
        let timeout = plan.lock_timeout.then_some(("lock_timeout", "3s"));
        let coordinator: Vec<_> = resolver.iter().copied().chain(common).chain(timeout).collect();
        let mut shard: Vec<_> = common.into_iter().chain(timeout).collect();
        if plan.nested {
            shard.push(("shared_preload_libraries", "pg_fdw_xacts"));
            shard.extend(resolver);
        }
        let fleet = Fleet::start_with(&FleetOptions {
            shards: SHARDS,
            proxied: true,
            hosts: false,
            coordinator: coordinator.clone(),
            shard,
        })?;
        let second = match plan.two_coordinators {
            true => Some(fleet.another_coordinator("coordinator2", &coordinator)?),
            false => None,
        };
        let places = (0..plan.coordinators())
            .map(Place::Local)
            .chain((1..=SHARDS).map(Place::Shard))
            .chain(plan.nested.then_some(Place::Deep))
            .collect();
        let mut bank =
            Self { fleet, second, standby: None, lost: None, places, nested: plan.nested };
        bank.create_tables(plan)?;
        if plan.standby {
            let mut standby = Cluster::standby_of(&bank.fleet.coordinator, "standby")?;
            standby.start()?;
            bank.standby = Some(standby);
            bank.fleet.coordinator.configure(&[("synchronous_standby_names", "*")])?;
            bank.fleet.coordinator.reload()?;
        }
        Ok(bank)
    }

    fn create_tables(&self, plan: &Plan) -> Result<()> {
        for place in &self.places {
            let (account, ledger) = (place.real_table("account"), place.real_table("ledger"));
            let slip = place.real_table("slip");
            self.server_of(*place).client()?.batch_execute(&format!(
                "CREATE TABLE {account} (id int PRIMARY KEY, balance bigint NOT NULL);
                 CREATE TABLE {ledger} (transfer bigint PRIMARY KEY, account int, amount bigint NOT NULL, places int);
                 CREATE TABLE {slip} {SLIP};
                 INSERT INTO {account} SELECT i, {DEPOSIT} FROM generate_series(0, {} - 1) i",
                plan.accounts
            ))?;
            if *place != Place::Deep {
                self.server_of(*place).client()?.batch_execute(
                    "CREATE TABLE list (id int PRIMARY KEY, items bigint[] NOT NULL);
                     CREATE TABLE register (id int PRIMARY KEY, value bigint)",
                )?;
            }
        }
        if plan.nested {
            self.fleet.shard(1).client()?.batch_execute(&format!(
                "CREATE EXTENSION pg_fdw_xacts CASCADE;
                 CREATE SERVER deep FOREIGN DATA WRAPPER pg_fdw_xacts
                     OPTIONS (host '127.0.0.1', port '{}', dbname 'postgres');
                 CREATE USER MAPPING FOR CURRENT_USER SERVER deep OPTIONS (user 'postgres');
                 CREATE FOREIGN TABLE account_deep {ACCOUNT} SERVER deep;
                 CREATE FOREIGN TABLE ledger_deep {LEDGER} SERVER deep;
                 CREATE FOREIGN TABLE slip_deep {SLIP} SERVER deep",
                self.fleet.port_of_shard(2)
            ))?;
        }
        for coordinator in self.coordinators() {
            let mut session = coordinator.client()?;
            for place in &self.places {
                let server = match place {
                    Place::Local(_) => continue,
                    Place::Shard(number) => format!("shard{number}"),
                    Place::Deep => "shard1".to_owned(),
                };
                let kinds = [
                    ("account", ACCOUNT),
                    ("ledger", LEDGER),
                    ("slip", SLIP),
                    ("list", LIST),
                    ("register", REGISTER),
                ];
                // Nothing is recorded behind a shard.
                let used = if *place == Place::Deep { 3 } else { kinds.len() };
                for (kind, columns) in &kinds[..used] {
                    let behind = place.real_table(kind);
                    session.batch_execute(&format!(
                        "CREATE FOREIGN TABLE {} {columns} SERVER {server}
                             OPTIONS (table_name '{behind}')",
                        place.table(kind)
                    ))?;
                }
            }
        }
        Ok(())
    }

    /// All coordinators.
    pub(super) fn coordinators(&self) -> impl Iterator<Item = &Cluster> {
        std::iter::once(&self.fleet.coordinator).chain(&self.second)
    }

    /// Coordinator `number`.
    pub(super) fn coordinator(&self, number: usize) -> &Cluster {
        self.second.as_ref().filter(|_| number == 1).unwrap_or(&self.fleet.coordinator)
    }

    /// Coordinator `number`, to stop and start it.
    pub(super) fn coordinator_mut(&mut self, number: usize) -> &mut Cluster {
        match &mut self.second {
            Some(second) if number == 1 => second,
            _ => &mut self.fleet.coordinator,
        }
    }

    /// Kills the coordinator and promotes its synchronous standby, if that runs and has caught up;
    /// whether it has. What a cancelled session did not wait for is lost otherwise, as it may be.
    /// From then on there is no standby.
    pub(super) fn fail_over(&mut self) -> Result<bool> {
        let Some(mut standby) = self.standby.take() else { return Ok(false) };
        let is_ready = standby.is_running()
            && self.fleet.coordinator.client().is_ok()
            && self.fleet.coordinator.wait_for_standby(&standby).is_ok();
        if !is_ready {
            self.standby = Some(standby);
            return Ok(false);
        }
        self.fleet.coordinator.kill9()?;
        standby.promote()?;
        self.lost = Some(std::mem::replace(&mut self.fleet.coordinator, standby));
        Ok(true)
    }

    /// All servers but the standby.
    pub(super) fn servers(&self) -> impl Iterator<Item = &Cluster> {
        self.coordinators().chain(self.fleet.shards())
    }

    pub(super) fn server_of(&self, place: Place) -> &Cluster {
        match place {
            Place::Local(number) => self.coordinator(number),
            Place::Shard(number) => self.fleet.shard(number),
            Place::Deep => self.fleet.shard(2),
        }
    }

    /// Each place with a session there.
    pub(super) fn books(&self) -> Result<Vec<(Place, Client)>> {
        let open = |place: &Place| Ok((*place, self.server_of(*place).client()?));
        self.places.iter().map(open).collect()
    }

    /// The sums of the balances, as the customers of each coordinator see them.
    pub(super) fn balances(&self) -> Result<Vec<Sums>> {
        let sum = |server: &Cluster| {
            one::<i64>(&mut server.client()?, "SELECT sum(balance)::bigint FROM account")
        };
        let mut sums = Sums::default();
        for (shard, there) in self.fleet.shards().iter().zip(&mut sums[OWN..]) {
            *there = sum(shard)?;
        }
        let of = |coordinator: &Cluster| {
            sums[0] = sum(coordinator)?;
            Ok(sums)
        };
        self.coordinators().map(of).collect()
    }

    /// Waits until every server accepts sessions.
    pub(super) fn wait_for_servers(&self) -> Result<()> {
        for server in self.servers() {
            wait_until(&format!("{} accepts a session", server.name()), DEADLINE, || {
                Ok(server.client().is_ok())
            })?;
        }
        Ok(())
    }

    /// Waits until nothing is left of any transaction anywhere: prepared, shown in a view, or by
    /// its locks.
    pub(super) fn settled_until(&self, deadline: Instant) -> Result<()> {
        let mut left = String::new();
        let within = deadline.saturating_duration_since(Instant::now());
        wait_until("nothing is left of any transaction", within, || {
            left = self.left()?;
            Ok(left.is_empty())
        })
        .with_context(|| format!("left behind:\n{left}"))
    }

    fn left(&self) -> Result<String> {
        let mut left = String::new();
        for server in self.servers() {
            let name = server.name();
            for gid in prepared_gids(server)? {
                writeln!(left, "{name} has prepared '{gid}'")?;
            }
            let locks: i64 = one(
                &mut server.client()?,
                "SELECT count(*) FROM pg_locks l LEFT JOIN pg_stat_activity a USING (pid)
                 WHERE l.locktype NOT IN ('advisory', 'virtualxid') AND l.pid IS DISTINCT FROM pg_backend_pid()
                     AND (a.backend_type IS NULL OR a.backend_type = 'client backend')",
            )?;
            if locks > 0 {
                writeln!(left, "{name}: {locks} locks are held")?;
            }
        }
        let middle = self.nested.then(|| self.fleet.shard(1));
        for server in self.coordinators().chain(middle) {
            for row in server.client()?.query("SELECT * FROM pg_fdw_xacts", &[])? {
                writeln!(left, "pg_fdw_xacts of {} shows {row:?}", server.name())?;
            }
        }
        Ok(left)
    }

    /// What all servers are doing, for the report of a failure.
    pub(super) fn describe(&self) -> String {
        let mut text = String::new();
        for server in self.servers() {
            let _ = writeln!(text, "---- {}", server.name());
            if let Err(error) = describe(server, &mut text) {
                let _ = writeln!(text, "{error:#}");
            }
        }
        text
    }

    /// Copies the servers' logs into `directory`.
    pub(super) fn keep_logs(&self, directory: &Path) -> Result<()> {
        std::fs::create_dir_all(directory)?;
        for server in self.servers().chain(&self.standby).chain(&self.lost) {
            std::fs::copy(server.log().path(), directory.join(server.name()))?;
        }
        Ok(())
    }
}

fn describe(server: &Cluster, text: &mut String) -> Result<()> {
    const QUESTIONS: &[&str] = &[
        "SELECT concat_ws(' ', 'prepared', gid, prepared, transaction) FROM pg_prepared_xacts ORDER BY 1",
        "SELECT concat_ws(' ', pid, application_name, state, wait_event_type, wait_event, now() - state_change,
             'blocked by', pg_blocking_pids(pid), left(query, 150))
         FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname IS NOT NULL ORDER BY 1",
        "SELECT concat_ws(' ', 'lock', pid, locktype, mode, granted, relation::regclass, transactionid, classid, objid,
             virtualtransaction)
         FROM pg_locks WHERE pid IS DISTINCT FROM pg_backend_pid() ORDER BY 1",
    ];
    let mut session =
        server.config().connect_timeout(Duration::from_secs(2)).connect(postgres::NoTls)?;
    session.batch_execute("SET statement_timeout = '5s'")?;
    for question in QUESTIONS {
        for row in session.query(*question, &[])? {
            writeln!(text, "{}", row.get::<_, String>(0))?;
        }
    }
    let shown: bool = one(&mut session, "SELECT to_regclass('pg_fdw_xacts') IS NOT NULL")?;
    for view in ["pg_fdw_xacts", "pg_stat_fdw_xacts"].iter().filter(|_| shown) {
        for row in session.query(&format!("SELECT x::text FROM {view} x"), &[])? {
            writeln!(text, "{view}: {}", row.get::<_, String>(0))?;
        }
    }
    Ok(())
}
