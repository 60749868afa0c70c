//! PgBouncer in front of one server.

use std::path::PathBuf;
use std::process::Child;

use anyhow::{Context, Result, anyhow};
use nix::sys::signal::{Signal, kill};
use postgres::{Client, Config, NoTls};
use tempfile::TempDir;

use crate::install::as_server_user;
use crate::port::PortLease;
use crate::{Cluster, DEADLINE, Installation, place, process, wait_until};

/// The environment variable that names the program.
pub const PGBOUNCER_VARIABLE: &str = "PG_TEST_PGBOUNCER";

/// The name of its settings in its directory.
const SETTINGS: &str = "pgbouncer.ini";

/// A PgBouncer, which ends when this is dropped. It keeps its port while it is stopped.
#[derive(Debug)]
pub struct Pooler {
    program: PathBuf,
    port: PortLease,
    home: TempDir,
    child: Option<Child>,
}

impl Pooler {
    /// Starts one in front of `server`. `mode` is its `pool_mode`; it keeps at most `size` server
    /// processes.
    pub fn start(server: &Cluster, mode: &str, size: usize) -> Result<Self> {
        Self::start_with(server, mode, size, "")
    }

    /// The same with more lines of settings.
    pub fn start_with(server: &Cluster, mode: &str, size: usize, settings: &str) -> Result<Self> {
        let program = std::env::var_os(PGBOUNCER_VARIABLE).map(PathBuf::from).ok_or_else(|| {
            anyhow!("{PGBOUNCER_VARIABLE} is not set: run the scenarios with `cargo xtask test`")
        })?;
        let (port, home) = (PortLease::take()?, place::temporary_home("pgbouncer")?);
        let (own, target) = (port.number(), server.port());
        std::fs::write(
            home.path().join(SETTINGS),
            format!(
                "[databases]\n* = host=127.0.0.1 port={target} user=postgres\n\
                 [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {own}\nunix_socket_dir =\n\
                 auth_type = any\npool_mode = {mode}\ndefault_pool_size = {size}\n\
                 max_client_conn = 200\nignore_startup_parameters = extra_float_digits\n\
                 {settings}\n"
            ),
        )?;
        let mut pooler = Self { program, port, home, child: None };
        pooler.start_again()?;
        Ok(pooler)
    }

    /// Ends it as a crash does: its clients and its servers lose their connections.
    pub fn kill9(&mut self) {
        if let Some(mut child) = self.child.take() {
            if let Ok(pid) = process::pid_of(&child) {
                let _ = kill(pid, Signal::SIGKILL);
            }
            let _ = child.wait();
        }
    }

    /// Starts it at the port that it had.
    pub fn start_again(&mut self) -> Result<()> {
        let log = std::fs::File::create(self.home.path().join("log"))?;
        let mut command = as_server_user(Installation::from_env()?.user(), &self.program);
        command.arg(self.home.path().join(SETTINGS)).stdout(log.try_clone()?).stderr(log);
        let child = process::spawn_tied(command, None)
            .with_context(|| format!("cannot run {}", self.program.display()))?;
        self.child = Some(child);
        let ready = wait_until("the pooler accepts connections", DEADLINE, || {
            Ok(self.config().connect(NoTls).is_ok())
        });
        ready.with_context(|| {
            std::fs::read_to_string(self.home.path().join("log")).unwrap_or_default()
        })
    }

    /// How a superuser connects through it, as with [`Cluster::config`].
    pub fn config(&self) -> Config {
        Cluster::config_at(self.port())
    }

    /// A session through it, as superuser.
    pub fn client(&self) -> Result<Client> {
        Ok(self.config().connect(NoTls)?)
    }

    /// The port that clients connect to.
    pub fn port(&self) -> u16 {
        self.port.number()
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        self.kill9();
    }
}
