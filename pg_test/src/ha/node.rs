//! A server that Patroni runs: PostgreSQL and its Patroni are one node.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use postgres::{Client, Config, NoTls};

use crate::oracle::one;
use crate::port::PortLease;
use crate::process::{self, Frozen};
use crate::{Installation, place};

/// How long an answer of Patroni may take.
const ANSWER: Duration = Duration::from_secs(2);

/// What is at a node that no Patroni has been started for yet.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) name: String,
    home: PathBuf,
    installation: Installation,
    patroni: PathBuf,
    port: PortLease,
    rest: PortLease,
    running: Option<Child>,
}

/// The file in a node's home that tells Patroni's process.
const PID_FILE: &str = "patroni.pid";

impl Node {
    /// A node of the cluster `scope`, not started yet. `settings` is what the first node of a
    /// cluster puts into the configuration that Patroni keeps in etcd.
    pub(super) fn create(
        installation: &Installation,
        patroni: &Path,
        directory: &Path,
        (scope, letter): (&str, char),
        etcd: u16,
        settings: &str,
    ) -> Result<Self> {
        let name = format!("{scope}-{letter}");
        let home = directory.join(&name);
        place::make_data_directory(installation, &home)?;
        let node = Self {
            name,
            home,
            installation: installation.clone(),
            patroni: patroni.to_owned(),
            port: PortLease::take()?,
            rest: PortLease::take()?,
            running: None,
        };
        std::fs::write(node.home.join("patroni.yml"), node.configuration(scope, etcd, settings))?;
        Ok(node)
    }

    fn configuration(&self, scope: &str, etcd: u16, settings: &str) -> String {
        let settings: String = settings.lines().map(|line| format!("    {line}\n")).collect();
        let (home, bin) = (self.home.display(), self.installation.bindir().display());
        let (name, port, rest) = (&self.name, self.port(), self.rest.number());
        // What is not in the book only keeps the tests' servers small, and in one directory.
        format!(
            "scope: {scope}
name: {name}
restapi: {{listen: '127.0.0.1:{rest}', connect_address: '127.0.0.1:{rest}'}}
etcd3: {{hosts: '127.0.0.1:{etcd}'}}
bootstrap:
  dcs:
{settings}
  initdb: [{{encoding: UTF8}}, {{locale: C}}, {{auth: trust}}, no-sync]
postgresql:
  listen: '127.0.0.1:{port}'
  connect_address: '127.0.0.1:{port}'
  data_dir: '{home}/data'
  bin_dir: '{bin}'
  pgpass: '{home}/pgpass'
  pg_hba: [host all all 127.0.0.1/32 trust, host replication all 127.0.0.1/32 trust]
  authentication: {{superuser: {{username: postgres}}, replication: {{username: replicator}}}}
  basebackup: [{{checkpoint: fast}}, no-sync]
  parameters:
    unix_socket_directories: ''
    dynamic_shared_memory_type: mmap
    shared_buffers: 32MB
    fsync: 'off'
    log_line_prefix: '%m [%p] %a '
"
        )
    }

    /// The port of its PostgreSQL.
    pub(super) fn port(&self) -> u16 {
        self.port.number()
    }

    /// Starts Patroni, which starts PostgreSQL.
    pub(super) fn start(&mut self) -> Result<()> {
        let log = std::fs::File::options().create(true).append(true).open(self.home.join("log"))?;
        let mut command = crate::install::as_server_user(self.installation.user(), &self.patroni);
        command
            .arg(self.home.join("patroni.yml"))
            .env("LC_ALL", "C")
            .stdin(std::process::Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        // Asked to end, Patroni stops its PostgreSQL.
        let child = process::spawn_tied_by(Signal::SIGTERM, command, None)?;
        std::fs::write(self.home.join(PID_FILE), child.id().to_string())?;
        self.running = Some(child);
        Ok(())
    }

    /// What Patroni's log and PostgreSQL's say in the end.
    pub(super) fn last_words(&self) -> String {
        let text = std::fs::read_to_string(self.home.join("log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }

    /// Whether this is the primary, as Patroni and the server say themselves.
    pub(super) fn is_leader(&self) -> bool {
        self.ask("GET", "/primary", "").is_ok_and(|status| status == 200)
    }

    /// Whether this is a standby that follows the primary; if `is_synchronous`, a synchronous one.
    pub(super) fn is_standby(&self, is_synchronous: bool) -> bool {
        let path = if is_synchronous { "/synchronous" } else { "/replica?lag=0" };
        self.ask("GET", path, "").is_ok_and(|status| status == 200)
    }

    /// Whether the other node receives what this one writes. Patroni takes a standby for one that
    /// has everything although it has not connected yet, as long as nothing is written.
    pub(super) fn streams(&self) -> Result<bool> {
        let sql = "SELECT EXISTS (SELECT FROM pg_stat_replication WHERE state = 'streaming')";
        one(&mut self.client()?, sql)
    }

    /// Has Patroni make `candidate` the leader in place of this one.
    pub(super) fn switch_over(&self, candidate: &Self) -> Result<()> {
        let body = format!(r#"{{"leader": "{}", "candidate": "{}"}}"#, self.name, candidate.name);
        let status = self.ask("POST", "/switchover", &body)?;
        ensure!(status == 200, "Patroni answers {status} to a switchover");
        Ok(())
    }

    /// Asks Patroni's API; returns the status.
    fn ask(&self, method: &str, path: &str, body: &str) -> Result<u16> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.rest.number()));
        let mut stream = TcpStream::connect_timeout(&address, ANSWER)?;
        // A switchover is answered when it is done.
        let patience = if method == "GET" { ANSWER } else { crate::DEADLINE };
        stream.set_read_timeout(Some(patience))?;
        write!(
            stream,
            "{method} {path} HTTP/1.0\r\nContent-Length: {}\r\nContent-Type: application/json\r\n\r\n{body}",
            body.len()
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let status = answer.split(' ').nth(1).context("no status")?;
        Ok(status.parse()?)
    }

    /// A session with a deadline for each thing that may hang, since its host may.
    pub(super) fn client(&self) -> Result<Client> {
        let (sender, receiver) = std::sync::mpsc::channel();
        let mut config = Config::new();
        config.host("127.0.0.1").port(self.port()).user("postgres").dbname("postgres");
        std::thread::spawn(move || {
            let _ = sender.send(config.connect(NoTls));
        });
        let session = receiver.recv_timeout(Duration::from_secs(5)).context("no answer")?;
        Ok(session?)
    }

    /// Whether somebody could write here.
    pub(super) fn can_be_written(&self) -> bool {
        let is_standby = |mut session| one(&mut session, "SELECT pg_is_in_recovery()");
        self.client().and_then(is_standby).is_ok_and(|is_standby: bool| !is_standby)
    }

    /// The postmaster, if it runs.
    fn postmaster(&self) -> Option<Pid> {
        process_of(&self.home.join("data/postmaster.pid"), &self.home)
    }

    /// Patroni and PostgreSQL end at once, as if the host had lost its power.
    pub(super) fn kill9(&mut self) -> Result<()> {
        let mut patroni = self.running.take().context("Patroni does not run")?;
        patroni.kill()?;
        patroni.wait()?;
        process::kill_server_of_others(self.postmaster().context("no postmaster")?)
    }

    /// Halts Patroni, but not PostgreSQL.
    pub(super) fn freeze_patroni(&self) -> Result<Vec<Frozen>> {
        let patroni = self.running.as_ref().context("Patroni does not run")?;
        Ok(vec![process::freeze(process::pid_of(patroni)?)?])
    }

    /// Halts both.
    pub(super) fn freeze(&self) -> Result<Vec<Frozen>> {
        let mut frozen = self.freeze_patroni()?;
        frozen.push(process::freeze(self.postmaster().context("no postmaster")?)?);
        Ok(frozen)
    }

    /// Halts what sends WAL to the standby.
    pub(super) fn freeze_sender(&self) -> Result<Frozen> {
        let pid: i32 = one(&mut self.client()?, "SELECT pid FROM pg_stat_replication")?;
        process::freeze(Pid::from_raw(pid))
    }

    /// What `query` finds in the data of a server that does not run, in single-user mode: nothing
    /// is connected to, and nothing settled.
    pub(super) fn ask_stopped(&self, query: &str) -> Result<String> {
        let mut command = self.installation.command("postgres");
        command.args(["--single", "-D"]).arg(self.home.join("data")).arg("postgres");
        command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
        command.stderr(std::process::Stdio::null());
        let mut child = command.spawn()?;
        let mut input = child.stdin.take().context("no input")?;
        writeln!(input, "{query}")?;
        drop(input);
        Ok(String::from_utf8_lossy(&child.wait_with_output()?.stdout).into_owned())
    }

    /// Its PostgreSQL's and Patroni's log.
    pub(super) fn log(&self) -> PathBuf {
        self.home.join("log")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        end(&self.home);
        if let Some(mut patroni) = self.running.take() {
            let _ = patroni.wait();
        }
    }
}

/// Ends what runs in a node's home, also if another process has started it.
pub(super) fn end(home: &Path) {
    if let Some(patroni) = process_of(&home.join(PID_FILE), home) {
        let _ = kill(patroni, Signal::SIGKILL);
    }
    if let Some(postmaster) = process_of(&home.join("data/postmaster.pid"), home) {
        let _ = process::kill_server_of_others(postmaster);
    }
}

/// The process whose number is in the first line of `file`, if its command line names `home`.
fn process_of(file: &Path, home: &Path) -> Option<Pid> {
    let pid: i32 = std::fs::read_to_string(file).ok()?.lines().next()?.trim().parse().ok()?;
    let command = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    String::from_utf8_lossy(&command).contains(&*home.to_string_lossy()).then(|| Pid::from_raw(pid))
}
