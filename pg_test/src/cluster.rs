//! One PostgreSQL server with its own data directory: made, started, stopped, killed, restarted.
//!
//! Invariants: a cluster keeps its TCP port from start to end, also while it is down; a cluster of
//! a test leaves no process, no file and no shared memory when it is dropped.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::install::{Installation, finish};
use crate::log::{LINE_PREFIX, Log};
use crate::network::Host;
use crate::port::PortLease;
use crate::process::Frozen;
use crate::{place, process, valgrind, wait_until};

mod archive;
mod clients;
mod standby;

/// How a server is asked to stop; the signals of `pg_ctl stop -m`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopMode {
    /// Ends sessions, writes a shutdown checkpoint: a clean stop.
    Fast,
    /// Ends at once without a checkpoint; the next start goes through crash recovery.
    Immediate,
}

/// The environment variable that has the directories of ended clusters kept, with data and log.
pub const KEEP_VARIABLE: &str = "PG_TEST_KEEP";

/// Where a cluster lives, and so for how long.
#[derive(Debug)]
enum Home {
    /// A directory that goes with the cluster; the server goes with this process.
    Temporary(TempDir),
    /// A directory that stays, with a server that outlives this process.
    Kept(PathBuf),
}

/// One PostgreSQL server.
#[derive(Debug)]
pub struct Cluster {
    name: String,
    installation: Installation,
    home: Home,
    port: PortLease,
    postmaster: Option<Child>,
    /// Where it runs; `None`: where this process does.
    host: Option<Host>,
}

/// Settings of every cluster. The log shows all statements. Dynamic shared memory as files in the
/// data directory, so that a killed server leaves nothing in /dev/shm.
const SETTINGS: &[(&str, &str)] = &[
    ("listen_addresses", "127.0.0.1"),
    ("unix_socket_directories", ""),
    ("max_prepared_transactions", "50"),
    ("shared_buffers", "32MB"),
    ("dynamic_shared_memory_type", "mmap"),
    ("log_statement", "all"),
    ("log_line_prefix", LINE_PREFIX),
    ("log_timezone", "UTC"),
    ("timezone", "UTC"),
];

/// Settings of a test's cluster only. Without fsync it is faster, and nothing is lost by it: what
/// the kernel has been given survives the death of every process, and these tests do not cut the
/// power.
const TEST_SETTINGS: &[(&str, &str)] = &[("fsync", "off")];

impl Cluster {
    /// A cluster for one test, not started yet, in a directory that disappears with it. Clusters of
    /// one `name` share their system identifier, those of different names never do.
    pub fn create(installation: &Installation, name: &str) -> Result<Self> {
        let template = place::template(installation, name)?;
        let cluster = Self::in_temporary_home(installation, name)?;
        // With the same owner and modes, by cp because it knows the file system's fast ways.
        finish(
            std::process::Command::new("cp")
                .args(["-a", "--reflink=auto"])
                .arg(template)
                .arg(cluster.data()),
        )?;
        cluster.write_settings(SETTINGS)?;
        cluster.write_settings(TEST_SETTINGS)?;
        Ok(cluster)
    }

    /// A streaming standby of `primary`, not started yet, made with pg_basebackup.
    pub fn standby_of(primary: &Self, name: &str) -> Result<Self> {
        let standby = Self::in_temporary_home(&primary.installation, name)?;
        place::make_data_directory(&primary.installation, &standby.data())?;
        let data = standby.data();
        let port = primary.port().to_string();
        primary.installation.run(
            "pg_basebackup",
            ["-h", "127.0.0.1", "-p", &port, "-U", "postgres", "--write-recovery-conf"]
                .into_iter()
                .chain(["--no-sync", "--checkpoint=fast", "-D"])
                .map(std::ffi::OsStr::new)
                .chain([data.as_os_str()]),
        )?;
        standby.write_settings(&[("port", &standby.port().to_string())])?;
        Ok(standby)
    }

    /// A physical copy of `original`, which must not be running: the same in everything but the
    /// port.
    pub fn copy_of(original: &mut Self, name: &str) -> Result<Self> {
        if original.is_running() {
            bail!("{} is running", original.name);
        }
        let copy = Self::in_temporary_home(&original.installation, name)?;
        finish(
            std::process::Command::new("cp")
                .args(["-a", "--reflink=auto"])
                .arg(original.data())
                .arg(copy.data()),
        )?;
        Ok(copy)
    }

    /// A new cluster under `home`, which must not exist yet, not started. The directory stays when
    /// this is dropped, and so does the server.
    pub fn create_kept(installation: &Installation, name: &str, home: &Path) -> Result<Self> {
        place::make_directory(home)?;
        let cluster = Self {
            name: name.to_owned(),
            installation: installation.clone(),
            home: Home::Kept(home.to_owned()),
            port: PortLease::take()?,
            postmaster: None,
            host: None,
        };
        place::initdb(installation, &cluster.data())?;
        cluster.write_settings(&[("port", &cluster.port().to_string())])?;
        cluster.write_settings(SETTINGS)?;
        Ok(cluster)
    }

    fn in_temporary_home(installation: &Installation, name: &str) -> Result<Self> {
        Ok(Self {
            name: name.to_owned(),
            installation: installation.clone(),
            home: Home::Temporary(place::temporary_home(name)?),
            port: PortLease::take()?,
            postmaster: None,
            host: None,
        })
    }

    /// From its next start on it runs on `host`, where every host can reach it.
    pub fn move_to(&mut self, host: &Host) -> Result<()> {
        self.write_settings(&[("listen_addresses", "*")])?;
        let rules = self.data().join("pg_hba.conf");
        let mut rules = OpenOptions::new().append(true).open(rules)?;
        writeln!(rules, "host all all all trust")?;
        self.host = Some(host.clone());
        Ok(())
    }

    /// The name given at its creation.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The TCP port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// The data directory.
    pub fn data(&self) -> PathBuf {
        self.home().join("data")
    }

    /// The server's log.
    pub fn log(&self) -> Log {
        Log::new(self.home().join("log"))
    }

    fn home(&self) -> &Path {
        match &self.home {
            Home::Temporary(directory) => directory.path(),
            Home::Kept(path) => path,
        }
    }

    /// Changes settings; they hold from the next start or [`reload`](Self::reload).
    pub fn configure(&self, settings: &[(&str, &str)]) -> Result<()> {
        self.write_settings(settings)
    }

    fn write_settings(&self, settings: &[(&str, &str)]) -> Result<()> {
        let path = self.data().join("postgresql.conf");
        let mut file = OpenOptions::new().append(true).open(&path)?;
        for (name, value) in settings {
            writeln!(file, "{name} = '{}'", value.replace('\'', "''"))?;
        }
        Ok(())
    }

    /// Starts the server and waits until it accepts connections.
    pub fn start(&mut self) -> Result<()> {
        if self.is_running() {
            bail!("{} runs already", self.name);
        }
        let log = File::options().create(true).append(true).open(self.log().path())?;
        let mut command = valgrind::server(&self.installation, &self.name);
        command
            .arg("-D")
            .arg(self.data())
            .args(["-p", &self.port().to_string()])
            .stdout(log.try_clone()?)
            .stderr(log);
        let child = match self.home {
            Home::Temporary(_) => process::spawn_tied(command, self.host.clone())?,
            Home::Kept(_) => process::spawn_detached(command)?,
        };
        let child = self.postmaster.insert(child);
        let pid = child.id().to_string();
        let pid_file = match &self.home {
            Home::Temporary(directory) => directory.path().join("data/postmaster.pid"),
            Home::Kept(path) => path.join("data/postmaster.pid"),
        };
        let what = format!("{} accepts connections", self.name);
        let outcome = wait_until(&what, Duration::from_secs(60), || {
            if let Some(status) = child.try_wait()? {
                bail!("it ended at once: {status}");
            }
            // What `pg_ctl -w` looks at: our pid in the first line, the state in the eighth.
            let text = std::fs::read_to_string(&pid_file).unwrap_or_default();
            let mut lines = text.lines();
            Ok(lines.next() == Some(pid.as_str())
                && matches!(lines.nth(6).map(str::trim_end), Some("ready" | "standby")))
        });
        outcome.with_context(|| {
            let tail = self.log().tail(15).unwrap_or_default();
            format!("{} does not start; the end of its log:\n{tail}", self.name)
        })
    }

    /// Whether the postmaster runs.
    pub fn is_running(&mut self) -> bool {
        self.postmaster.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// Stops the server and waits for its end.
    pub fn stop(&mut self, mode: StopMode) -> Result<()> {
        let mut postmaster = self.take_postmaster()?;
        let pid = process::pid_of(&postmaster)?;
        kill(
            pid,
            match mode {
                StopMode::Fast => Signal::SIGINT,
                StopMode::Immediate => Signal::SIGQUIT,
            },
        )?;
        let ended = wait_until(&format!("{} stops", self.name), Duration::from_secs(60), || {
            Ok(postmaster.try_wait()?.is_some())
        });
        if ended.is_ok() {
            return Ok(());
        }
        let left = process::titles_of_children(pid);
        process::kill_server(&mut postmaster)?;
        let said = self.log().tail(15).unwrap_or_default();
        ended.with_context(|| format!("these had not ended:\n{left}\n{said}"))
    }

    /// SIGKILL for the postmaster and all its processes at one moment: a crash.
    pub fn kill9(&mut self) -> Result<()> {
        process::kill_server(&mut self.take_postmaster()?)
    }

    /// Stops the server cleanly and starts it again.
    pub fn restart(&mut self) -> Result<()> {
        self.stop(StopMode::Fast)?;
        self.start()
    }

    /// Halts the server and all its processes until the value returned is dropped: it keeps its
    /// connections and answers nothing.
    pub fn freeze(&self) -> Result<Frozen> {
        process::freeze_server(self.postmaster.as_ref().context("the server is not running")?)
    }

    /// Has the server read its configuration again.
    pub fn reload(&self) -> Result<()> {
        self.client()?.batch_execute("SELECT pg_reload_conf()")?;
        Ok(())
    }

    /// SIGKILL for the one backend with this process id (`pg_backend_pid()`); the server then
    /// restarts all its processes by itself.
    pub fn kill9_backend(&self, pid: i32) -> Result<()> {
        let postmaster = self.postmaster.as_ref().context("the server is not running")?;
        let pid = Pid::from_raw(pid);
        if !process::children_of(process::pid_of(postmaster)?)?.contains(&pid) {
            bail!("{pid} is no process of {}", self.name);
        }
        Ok(kill(pid, Signal::SIGKILL)?)
    }

    fn take_postmaster(&mut self) -> Result<Child> {
        self.postmaster.take().ok_or_else(|| anyhow!("{} is not running", self.name))
    }

    /// Moves the directory to where no later run removes it, and says where. Not by `eprintln!`,
    /// which nobody sees of a test that passes.
    fn keep(&mut self) {
        let kept = place::kept(self.home());
        let said = match std::fs::rename(self.home(), &kept) {
            Ok(()) => format!("{}: kept in {}", self.name, kept.display()),
            Err(error) => format!("{}: cannot keep {}: {error}", self.name, kept.display()),
        };
        let _ = writeln!(std::io::stderr(), "{said}");
    }

    /// Ends the server however that works, and frees what a killed postmaster leaves in the kernel.
    fn end(&mut self) {
        let pid_file = self.data().join("postmaster.pid");
        if self.is_running() {
            let _ = self.stop(StopMode::Immediate);
        }
        // Only a killed postmaster leaves this file; its seventh line ends with the id of a System
        // V shared memory segment, which the next start would have removed.
        if let Ok(text) = std::fs::read_to_string(pid_file)
            && let Some(id) = text.lines().nth(6).and_then(|line| line.split_whitespace().nth(1))
        {
            let _ = finish(std::process::Command::new("ipcrm").args(["-m", id]));
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if matches!(self.home, Home::Kept(_)) {
            return;
        }
        if std::thread::panicking() {
            let tail = self.log().tail(40).unwrap_or_default();
            eprintln!("---- end of the log of {}:\n{tail}", self.name);
        }
        let faults = self.log().faults();
        self.end();
        if std::env::var_os(KEEP_VARIABLE).is_some() {
            self.keep();
        }
        if let Ok(faults) = faults
            && !faults.is_empty()
            && !std::thread::panicking()
        {
            panic!("{} has tripped over itself:\n{}", self.name, faults.join("\n"));
        }
    }
}
