//! Sessions that have waited for foreign servers for longer than `deadlock_timeout`, and what the
//! resolver has to say to them: that they are part of a deadlock and give way.
//!
//! Each backend has a place for the one wait that it can be in. A verdict is for the wait that it
//! was found for: whatever the session does meanwhile, nothing else is hit by it.

use pgrx::pg_sys::Oid;

use crate::pg::globals::{deadlock_timeout, my_database, my_pid, now};
use crate::pg::versions;
use crate::shared::resolvers;
use crate::shared::shmem::{self, Memory};

/// How many servers of one wait are told. A session that waits for more has no deadlock over the
/// others found before it waits for fewer.
pub const MOST_SERVERS: usize = 16;

/// The longest verdict, with the NUL that ends it.
const TEXT_LEN: usize = 2048;

/// A server that is waited for.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Awaited {
    /// The foreign server.
    pub serverid: Oid,
    /// The local user whose mapping is used.
    pub userid: Oid,
    /// The session's process there.
    pub process: i32,
}

/// A session's wait.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Wait {
    /// No other wait has it; 0: the session does not wait.
    pub number: u64,
    /// The session.
    pub pid: i32,
    /// Its database.
    pub dbid: Oid,
    /// When its transaction began, in PostgreSQL's microseconds.
    pub begun: i64,
    /// When the wait began.
    pub since: i64,
    /// Whether it can be ended by a verdict.
    pub can_be_cancelled: bool,
    /// Whether it ends when all have answered, or when one has.
    pub needs_all: bool,
    count: u32,
    servers: [Awaited; MOST_SERVERS],
}

impl Wait {
    const NONE: Self = Self {
        number: 0,
        pid: 0,
        dbid: Oid::INVALID,
        begun: 0,
        since: 0,
        can_be_cancelled: false,
        needs_all: false,
        count: 0,
        servers: [Awaited { serverid: Oid::INVALID, userid: Oid::INVALID, process: 0 };
            MOST_SERVERS],
    };

    /// What it waits for.
    pub fn servers(&self) -> &[Awaited] {
        &self.servers[..(self.count as usize).min(MOST_SERVERS)]
    }
}

/// A backend's place.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Place {
    wait: Wait,
    /// In the server's encoding, ended by a NUL; empty as long as there is none.
    verdict: [u8; TEXT_LEN],
}

/// All of them together.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Published {
    /// How many sessions wait, in all databases.
    pub count: usize,
    /// The last number given to a wait.
    pub last: u64,
}

/// How a session waits.
#[derive(Clone, Copy, Debug)]
pub struct Manner {
    /// When its transaction began.
    pub begun: i64,
    /// See [`Wait`].
    pub can_be_cancelled: bool,
    /// See [`Wait`].
    pub needs_all: bool,
}

/// Publishes that this backend waits, and wakes the resolver; returns the number of the wait.
pub fn publish(manner: Manner, servers: &[Awaited]) -> u64 {
    let Manner { begun, can_be_cancelled, needs_all } = manner;
    let servers = &servers[..servers.len().min(MOST_SERVERS)];
    let (n, dbid) = (versions::backend_number(), my_database());
    let mut wait = Wait {
        pid: my_pid(),
        dbid,
        begun,
        since: now() - deadlock_timeout().as_micros() as i64,
        can_be_cancelled,
        needs_all,
        count: servers.len() as u32,
        ..Wait::NONE
    };
    wait.servers[..servers.len()].copy_from_slice(servers);
    let number = shmem::write(|m| {
        m.shared.last_serial += 1;
        wait.number = m.shared.last_serial;
        m.shared.waits.last = wait.number;
        set(m, n, wait);
        m.waits[n].verdict[0] = 0;
        wait.number
    });
    resolvers::wake(dbid);
    number
}

/// This backend does not wait any more, if that is still its wait.
pub fn end(number: u64) {
    let n = versions::backend_number();
    shmem::write(|m| {
        if m.waits[n].wait.number == number {
            set(m, n, Wait::NONE);
        }
    });
}

/// The verdict on a wait of this backend, once there is one.
pub fn verdict(number: u64) -> Option<Vec<u8>> {
    let n = versions::backend_number();
    shmem::read(|m| {
        let place = &m.waits[n];
        let end = place.verdict.iter().position(|byte| *byte == 0)?;
        (place.wait.number == number && end > 0).then(|| place.verdict[..end].to_vec())
    })
}

/// The servers that a wait of this backend is for.
pub fn servers(number: u64) -> Vec<Oid> {
    let wait = shmem::read(|m| m.waits[versions::backend_number()].wait);
    let mut servers: Vec<Oid> = match wait.number == number {
        true => wait.servers().iter().map(|awaited| awaited.serverid).collect(),
        false => Vec::new(),
    };
    servers.dedup();
    servers
}

/// Has a session give way, unless its wait has ended; whether it has not. What does not fit of the
/// text is left out, by lines.
pub fn condemn(number: u64, text: &[u8]) -> bool {
    let text = clipped(text);
    let pid = shmem::write(|m| {
        let place = m.waits.iter_mut().find(|place| place.wait.number == number)?;
        if !place.wait.can_be_cancelled || text.is_empty() {
            return None;
        }
        place.verdict[..text.len()].copy_from_slice(text);
        place.verdict[text.len()] = 0;
        Some(place.wait.pid)
    });
    pid.inspect(|pid| shmem::wake(*pid)).is_some()
}

/// As many whole lines as there is room for.
fn clipped(text: &[u8]) -> &[u8] {
    if text.len() < TEXT_LEN {
        return text;
    }
    let end = text[..TEXT_LEN - 1].iter().rposition(|byte| *byte == b'\n');
    &text[..end.unwrap_or(0)]
}

fn set(m: &mut Memory<'_>, n: usize, wait: Wait) {
    let place = &mut m.waits[n].wait;
    m.shared.waits.count -= usize::from(place.number != 0);
    m.shared.waits.count += usize::from(wait.number != 0);
    *place = wait;
}

/// How many wait, and who came last.
pub fn published() -> Published {
    shmem::read(|m| m.shared.waits)
}

/// The sessions of this database that wait, oldest first. Drops those whose backend has ended.
pub fn all() -> Vec<Wait> {
    let dbid = my_database();
    let found: Vec<(usize, Wait)> = shmem::read(|m| {
        if m.shared.waits.count == 0 {
            return Vec::new();
        }
        let waits = m.waits.iter().map(|place| place.wait).enumerate();
        waits.filter(|(_, wait)| wait.number != 0 && wait.dbid == dbid).collect()
    });
    let (alive, dead): (Vec<_>, Vec<_>) =
        found.into_iter().partition(|(_, wait)| shmem::is_alive(wait.pid));
    for (n, wait) in dead {
        shmem::write(|m| {
            if m.waits[n].wait.number == wait.number {
                set(m, n, Wait::NONE);
            }
        });
    }
    let mut alive: Vec<Wait> = alive.into_iter().map(|(_, wait)| wait).collect();
    alive.sort_unstable_by_key(|wait| wait.number);
    alive
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_verdict_ends_with_a_line() {
        assert_eq!(clipped(b"a\nb"), b"a\nb");
        let line = [vec![b'x'; 99], vec![b'\n']].concat();
        let long = line.repeat(30);
        assert_eq!(clipped(&long).len(), 20 * 100 - 1);
        assert_eq!(clipped(&[b'x'; 3000]), b"");
    }
}
