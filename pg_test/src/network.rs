//! Hosts with a network between them that loses packets and says nothing.
//!
//! Each server of such a fleet is a host of its own: a network namespace of the kernel. A [`Cable`]
//! connects the coordinator's host with a shard's. Whatever it loses, it loses in silence: neither
//! end is told, no connection is refused or closed, as with a switch that fails or a firewall that
//! has forgotten a connection. The test itself stands on every host ([`Host::inside`]) and sees all
//! servers whatever the cables do.
//!
//! The namespaces have no names. They end with the last process in them and the last [`Host`], so
//! nothing is left behind, however a test ends.
//!
//! It takes root, `ip` and `nft`, and a kernel with what they ask for ([`missing`]).

use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::process::Command;
use std::sync::{Arc, OnceLock};

use anyhow::{Context, Result, anyhow};
use nix::sched::{CloneFlags, setns, unshare};

use crate::install::finish;

/// One host; clones are the same one.
#[derive(Debug, Clone)]
pub struct Host(Arc<File>);

/// The network device of a shard's host.
const UPLINK: &str = "uplink";

impl Host {
    /// A host without a network.
    pub fn new() -> Result<Self> {
        let host = on_another_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET).context("no network namespace can be made")?;
            Self::current()
        })?;
        host.run("ip", &["link", "set", "lo", "up"])?;
        host.run(
            "nft",
            &["add table ip lost; add chain ip lost in { type filter hook input priority 0; }"],
        )?;
        Ok(host)
    }

    /// Does something there: connections and programs that it begins, and threads that it starts,
    /// are on this host.
    pub fn inside<T: Send>(&self, act: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        on_another_thread(|| {
            self.enter()?;
            act()
        })
    }

    /// That of the calling thread.
    pub(crate) fn current() -> Result<Self> {
        Ok(Self(Arc::new(File::open("/proc/thread-self/ns/net")?)))
    }

    /// Moves the calling thread there.
    pub(crate) fn enter(&self) -> Result<()> {
        Ok(setns(&*self.0, CloneFlags::CLONE_NEWNET)?)
    }

    /// Runs a program there; its output.
    pub fn run(&self, program: &str, arguments: &[&str]) -> Result<String> {
        self.inside(|| finish(Command::new(program).args(arguments)))
    }

    /// A path that leads to the namespace as long as this lives.
    fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    /// From now on all of these packets are lost that arrive there.
    fn lose(&self, packets: &str) -> Result<()> {
        self.run("nft", &[&format!("add rule ip lost in {packets} drop")]).map(drop)
    }
}

/// Runs `act` on a thread of its own: the namespace of a thread goes with it.
fn on_another_thread<T: Send>(act: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        scope.spawn(act).join().map_err(|_| anyhow!("a thread on a host panicked"))?
    })
}

/// Which packets are lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// Those to the shard: it hears nothing, and what it says arrives.
    ToShard,
    /// Those to the coordinator.
    ToCoordinator,
    /// All.
    Both,
    /// So many of a hundred, in both directions.
    Some(u8),
}

/// What connects a shard's host with the coordinator's.
#[derive(Debug)]
pub struct Cable {
    coordinator: Host,
    shard: Host,
    number: usize,
}

impl Cable {
    /// Connects a new host, that of shard `number`, with the coordinator's.
    pub fn lay(coordinator: &Host, number: usize) -> Result<Self> {
        let cable = Self { coordinator: coordinator.clone(), shard: Host::new()?, number };
        cable.plug_in()?;
        Ok(cable)
    }

    /// Takes it out, and connects the shard with another host that has the coordinator's address.
    pub(crate) fn replug(&mut self, coordinator: &Host) -> Result<()> {
        self.shard.run("ip", &["link", "delete", UPLINK])?;
        self.coordinator = coordinator.clone();
        self.plug_in()
    }

    fn plug_in(&self) -> Result<()> {
        let (device, there) = (self.device(), self.shard.path());
        let link = ["link", "add", &device, "type", "veth", "peer", "name", UPLINK];
        self.coordinator.run("ip", &[&link[..], &["netns", &there]].concat())?;
        for (host, device, end) in [(&self.coordinator, &*device, 1), (&self.shard, UPLINK, 2)] {
            let address = format!("{}/24", self.address(end));
            host.run("ip", &["address", "add", &address, "dev", device])?;
            host.run("ip", &["link", "set", device, "up"])?;
        }
        Ok(())
    }

    /// The coordinator's network device.
    fn device(&self) -> String {
        format!("shard{}", self.number)
    }

    fn address(&self, end: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 99, self.number as u8, end)
    }

    /// The shard's host.
    pub fn shard(&self) -> &Host {
        &self.shard
    }

    /// The address of the shard.
    pub fn shard_address(&self) -> Ipv4Addr {
        self.address(2)
    }

    /// From now on these packets are lost, too.
    pub fn lose(&self, loss: Loss) -> Result<()> {
        let (mut to_shard, mut to_coordinator) = (true, true);
        let mut which = String::new();
        match loss {
            Loss::ToShard => to_coordinator = false,
            Loss::ToCoordinator => to_shard = false,
            Loss::Both => {}
            Loss::Some(percent) => which = format!("numgen random mod 100 < {percent}"),
        }
        if to_shard {
            self.shard.lose(&format!("iifname {UPLINK} {which}"))?;
        }
        if to_coordinator {
            self.coordinator.lose(&format!("iifname {} {which}", self.device()))?;
        }
        Ok(())
    }

    /// From now on all packets of this shard and of all others arrive.
    pub fn mend(&self) -> Result<()> {
        for host in [&self.shard, &self.coordinator] {
            host.run("nft", &["flush chain ip lost in"])?;
        }
        Ok(())
    }

    /// From now on so many kbit/s pass, in each direction, and others wait: for how long depends on
    /// what goes before.
    pub fn narrow(&self, rate: u32) -> Result<()> {
        let rate = format!("{rate}kbit");
        for (host, device) in [(&self.coordinator, &*self.device()), (&self.shard, UPLINK)] {
            let limit = ["tbf", "rate", &rate, "burst", "3000", "latency", "2s"];
            host.run("tc", &[&["qdisc", "add", "dev", device, "root"][..], &limit].concat())?;
        }
        Ok(())
    }

    /// The coordinator's connections to the shard, with the kernel's timers, one in a line, as `ss`
    /// shows them.
    pub fn connections(&self) -> Result<Vec<String>> {
        let to = format!("dst {}", self.shard_address());
        let shown = self.coordinator.run("ss", &["-tnoH", "state", "established", &to])?;
        Ok(shown.lines().map(str::to_owned).collect())
    }
}

/// Why there can be no hosts here; `None` if there can.
pub fn missing() -> Option<&'static str> {
    static MISSING: OnceLock<Option<String>> = OnceLock::new();
    let try_it = || {
        let cable = Cable::lay(&Host::new()?, 1)?;
        cable.lose(Loss::Some(1))?;
        cable.narrow(1000)?;
        cable.connections()
    };
    MISSING
        .get_or_init(|| try_it().err().map(|error: anyhow::Error| format!("{error:#}")))
        .as_deref()
}
