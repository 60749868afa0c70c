//! TCP ports for servers that are stopped and started again on the same port.
//!
//! Ports come from below the kernel's ephemeral range (32768 and up on Linux): an outgoing
//! connection must not take the port of a server that is down for a moment. While a lease lives, an
//! abstract Unix socket named after the port keeps other processes of this crate off it; the kernel
//! frees it with the process.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::AsRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};

use anyhow::{Result, bail};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, bind, setsockopt, socket, sockopt,
};

const FIRST: u16 = 20_000;
const LAST: u16 = 31_999;

/// A TCP port on 127.0.0.1 that nobody else uses while this lives.
#[derive(Debug)]
pub(crate) struct PortLease {
    port: u16,
    _lock: UnixListener,
}

impl PortLease {
    /// Takes a free port.
    pub(crate) fn take() -> Result<Self> {
        // Different processes start at different places, so that they seldom look at the same
        // ports.
        let span = u32::from(LAST - FIRST) + 1;
        let start = std::process::id().wrapping_mul(37) % span;
        for step in 0..span {
            let offset = u16::try_from((start + step) % span)?;
            let port = FIRST + offset;
            let name = format!("pg_fdw_xacts-port-{port}");
            let Ok(lock) = UnixListener::bind_addr(&SocketAddr::from_abstract_name(name)?) else {
                continue;
            };
            if nobody_listens(port)? {
                return Ok(Self { port, _lock: lock });
            }
        }
        bail!("no free TCP port between {FIRST} and {LAST}")
    }

    /// The port.
    pub(crate) fn number(&self) -> u16 {
        self.port
    }
}

/// Whether no process listens at a port of 127.0.0.1. Does not listen there itself: a process that
/// another thread is starting just then would have inherited that for a moment, and whoever uses the
/// port next would find it in use.
fn nobody_listens(port: u16) -> Result<bool> {
    let probe = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&probe, sockopt::ReuseAddr, &true)?;
    match bind(probe.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::LOCALHOST, port))) {
        Ok(()) => Ok(true),
        Err(Errno::EADDRINUSE) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener};

    use super::{PortLease, nobody_listens};

    #[test]
    fn a_port_that_somebody_listens_at_is_found_out() {
        let lease = PortLease::take().unwrap();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, lease.number())).unwrap();
        assert!(!nobody_listens(lease.number()).unwrap());
        drop(listener);
        assert!(nobody_listens(lease.number()).unwrap());
    }

    #[test]
    fn two_leases_never_share_a_port() {
        let first = PortLease::take().unwrap();
        let second = PortLease::take().unwrap();
        assert_ne!(first.number(), second.number());
    }
}
