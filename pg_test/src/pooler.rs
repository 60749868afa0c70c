//! PgBouncer in front of one server.

use std::path::PathBuf;
use std::process::Child;

use anyhow::{Context, Result, anyhow};
use nix::sys::signal::{Signal, kill};
use postgres::NoTls;
use tempfile::TempDir;

use crate::install::as_server_user;
use crate::port::PortLease;
use crate::{Cluster, DEADLINE, Installation, place, process, wait_until};

/// The environment variable that names the program.
pub const PGBOUNCER_VARIABLE: &str = "PG_TEST_PGBOUNCER";

/// A running PgBouncer, which ends when this is dropped.
#[derive(Debug)]
pub struct Pooler {
    port: PortLease,
    home: TempDir,
    child: Child,
}

impl Pooler {
    /// Starts one in front of `server`. `mode` is its `pool_mode`; it keeps at most `size` server
    /// processes.
    pub fn start(server: &Cluster, mode: &str, size: usize) -> Result<Self> {
        let program = std::env::var_os(PGBOUNCER_VARIABLE).map(PathBuf::from).ok_or_else(|| {
            anyhow!("{PGBOUNCER_VARIABLE} is not set: run the scenarios with `cargo xtask test`")
        })?;
        let (port, home) = (PortLease::take()?, place::temporary_home("pgbouncer")?);
        let (own, target) = (port.number(), server.port());
        let settings = home.path().join("pgbouncer.ini");
        std::fs::write(
            &settings,
            format!(
                "[databases]\n* = host=127.0.0.1 port={target} user=postgres\n\
                 [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {own}\nunix_socket_dir =\n\
                 auth_type = any\npool_mode = {mode}\ndefault_pool_size = {size}\n\
                 max_client_conn = 2000\nignore_startup_parameters = extra_float_digits\n"
            ),
        )?;
        let log = std::fs::File::create(home.path().join("log"))?;
        let mut command = as_server_user(Installation::from_env()?.user(), &program);
        command.arg(settings).stdout(log.try_clone()?).stderr(log);
        let child = process::spawn_tied(command, None)
            .with_context(|| format!("cannot run {}", program.display()))?;
        let pooler = Self { port, home, child };
        let ready = wait_until("the pooler accepts connections", DEADLINE, || {
            Ok(Cluster::config_at(own).connect(NoTls).is_ok())
        });
        ready.with_context(|| {
            std::fs::read_to_string(pooler.home.path().join("log")).unwrap_or_default()
        })?;
        Ok(pooler)
    }

    /// The port that clients connect to.
    pub fn port(&self) -> u16 {
        self.port.number()
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        if let Ok(pid) = process::pid_of(&self.child) {
            let _ = kill(pid, Signal::SIGKILL);
        }
        let _ = self.child.wait();
    }
}
