//! Starting and ending server processes.
//!
//! A server started for a test must not outlive it, however the test process ends. The kernel sees
//! to it: the postmaster gets SIGQUIT (immediate shutdown) when the thread that started it dies, and
//! other programs a signal of their own.
//! Test threads come and go, so one thread that lives as long as the process starts them all.

use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::network::Host;
use crate::{DEADLINE, wait_until};

type Order = (Command, Option<Host>, Sender<Result<Child>>);

/// Starts `command` so that it gets SIGQUIT when this process ends; on a `host` if there is one.
pub(crate) fn spawn_tied(command: Command, host: Option<Host>) -> Result<Child> {
    spawn_tied_by(Signal::SIGQUIT, command, host)
}

/// Starts `command` so that it gets `last` when this process ends; on a `host` if there is one.
pub(crate) fn spawn_tied_by(
    last: Signal,
    mut command: Command,
    host: Option<Host>,
) -> Result<Child> {
    // SAFETY: the closure runs between fork and exec; prctl and setpgid are plain system calls that
    // neither allocate nor lock. It runs after the change of user, which would clear the setting.
    unsafe {
        command.pre_exec(move || {
            nix::sys::prctl::set_pdeathsig(last)?;
            // Away from the terminal's Ctrl-C, which is for the test process to handle.
            nix::unistd::setpgid(Pid::from_raw(0), Pid::from_raw(0))?;
            Ok(())
        });
    }
    static STARTER: OnceLock<Mutex<Sender<Order>>> = OnceLock::new();
    let starter = STARTER.get_or_init(|| {
        let (sender, orders) = channel::<Order>();
        std::thread::spawn(move || {
            for (command, host, answer) in orders {
                let _ = answer.send(spawn_on(command, host.as_ref()));
            }
        });
        Mutex::new(sender)
    });
    let (answer, child) = channel();
    starter
        .lock()
        .map_err(|_| anyhow!("the starter thread is gone"))?
        .send((command, host, answer))
        .context("the starter thread is gone")?;
    child.recv()?
}

/// A process is on the host of the thread that starts it.
fn spawn_on(mut command: Command, host: Option<&Host>) -> Result<Child> {
    let Some(host) = host else { return Ok(command.spawn()?) };
    let home = Host::current()?;
    host.enter()?;
    let child = command.spawn();
    home.enter()?;
    Ok(child?)
}

/// Starts `command` in a session of its own, to live on when this process ends.
pub(crate) fn spawn_detached(mut command: Command) -> Result<Child> {
    // SAFETY: setsid is a plain system call, allowed between fork and exec.
    unsafe {
        command.pre_exec(|| {
            nix::unistd::setsid()?;
            Ok(())
        });
    }
    Ok(command.spawn()?)
}

/// What the children of a server call themselves, a line each.
pub(crate) fn titles_of_children(parent: Pid) -> String {
    let title = |pid: &Pid| std::fs::read_to_string(format!("/proc/{pid}/cmdline")).ok();
    let children = children_of(parent).unwrap_or_default();
    let titles: Vec<String> = children.iter().filter_map(title).collect();
    titles.join("\n").replace('\0', " ")
}

/// The processes whose parent is `parent`.
pub(crate) fn children_of(parent: Pid) -> Result<Vec<Pid>> {
    let mut children = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        if let Some((_, Some(found))) = stat(pid)
            && found == parent.as_raw()
        {
            children.push(Pid::from_raw(pid));
        }
    }
    Ok(children)
}

/// SIGKILLs `postmaster` and every process of its server at one moment, and waits until all are
/// gone.
///
/// All are stopped before any is killed: the postmaster forks no more and does not clean up after
/// the first child it sees die, and no child sees the postmaster die and still says something to
/// its client.
pub(crate) fn kill_server(postmaster: &mut Child) -> Result<()> {
    let pid = pid_of(postmaster)?;
    let children = kill_with_children(pid)?;
    postmaster.wait()?;
    wait_for_end(&children)
}

/// The same for a server that somebody else has started.
pub(crate) fn kill_server_of_others(postmaster: Pid) -> Result<()> {
    let mut all = kill_with_children(postmaster)?;
    all.push(postmaster);
    wait_for_end(&all)
}

fn kill_with_children(pid: Pid) -> Result<Vec<Pid>> {
    stop(pid).context("the server is not running")?;
    let children = children_of(pid)?;
    for signal in [Signal::SIGSTOP, Signal::SIGKILL] {
        for child in &children {
            // It may have ended by itself meanwhile.
            let _ = kill(*child, signal);
        }
    }
    kill(pid, Signal::SIGKILL)?;
    Ok(children)
}

fn wait_for_end(processes: &[Pid]) -> Result<()> {
    wait_until("the killed server's processes are gone", Duration::from_secs(30), || {
        Ok(processes.iter().all(|pid| !alive(*pid)))
    })
}

/// Sends SIGSTOP and waits until it is obeyed: until then the process may be about to fork, and that
/// child would be missing among those that are found next.
fn stop(pid: Pid) -> Result<()> {
    kill(pid, Signal::SIGSTOP)?;
    wait_until("the process has stopped", DEADLINE, || {
        Ok(matches!(stat(pid.as_raw()), None | Some(('T' | 't' | 'Z' | 'X', _))))
    })
}

/// Processes that SIGSTOP has halted; they go on when this is dropped.
#[derive(Debug)]
#[must_use = "the processes go on as soon as this is dropped"]
pub struct Frozen(Vec<Pid>);

/// Halts `postmaster` and every process of its server: it stays connected and says nothing any
/// more.
pub(crate) fn freeze_server(postmaster: &Child) -> Result<Frozen> {
    freeze(pid_of(postmaster)?)
}

/// Halts a process and all its children.
pub(crate) fn freeze(pid: Pid) -> Result<Frozen> {
    let mut frozen = Frozen(vec![pid]);
    stop(pid).context("it is not running")?;
    frozen.0.extend(children_of(pid)?);
    for child in &frozen.0[1..] {
        // It may have ended by itself meanwhile.
        let _ = kill(*child, Signal::SIGSTOP);
    }
    Ok(frozen)
}

impl Drop for Frozen {
    fn drop(&mut self) {
        for pid in &self.0 {
            let _ = kill(*pid, Signal::SIGCONT);
        }
    }
}

/// Whether the process runs: a zombie that nobody has waited for yet does not.
pub(crate) fn alive(pid: Pid) -> bool {
    !matches!(stat(pid.as_raw()), None | Some(('Z' | 'X', _)))
}

/// The pid of a child process.
pub(crate) fn pid_of(child: &Child) -> Result<Pid> {
    Ok(Pid::from_raw(i32::try_from(child.id())?))
}

/// State and parent from `/proc/<pid>/stat`; the command name before them may hold anything but
/// ends with the last parenthesis.
fn stat(pid: i32) -> Option<(char, Option<i32>)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = text.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.next().and_then(|parent| parent.parse().ok())))
}
