//! The addresses of foreign servers, as the catalog has them in one round of the resolver.

use std::collections::HashMap;
use std::ffi::CString;

use pgrx::pg_sys::Oid;

use crate::pg::error::Result;
use crate::pg::{catalog, transaction};
use crate::remote::options::{Mapping, Server};
use crate::resolver::sweep::handler_is_ours;
use crate::store::participant_list::ParticipantRecord;

#[derive(Default)]
pub(super) struct Addresses {
    /// By server; `None` for one that no longer exists.
    of: HashMap<Oid, Option<CString>>,
    /// The servers of each address; read when it is needed first.
    at: Option<HashMap<CString, Vec<Oid>>>,
}

impl Addresses {
    /// Reads those of servers that are not known yet.
    pub(super) fn read(&mut self, servers: impl Iterator<Item = Oid>) -> Result<()> {
        let unknown: Vec<Oid> = servers.filter(|server| !self.of.contains_key(server)).collect();
        if unknown.is_empty() {
            return Ok(());
        }
        transaction::run(|| {
            for server in unknown {
                self.of.entry(server).or_insert_with(|| Server::find(server).map(|s| s.address()));
            }
            Ok(())
        })
    }

    /// The address of a server that was read.
    pub(super) fn of(&self, server: Oid) -> Option<&CString> {
        self.of.get(&server)?.as_ref()
    }

    /// `None` if a participant's server and user mapping still exist. If not, the same participant
    /// on the servers that are at its address now, where its user has a mapping: after `pg_upgrade`
    /// all servers have new OIDs.
    pub(super) fn successors(
        &mut self,
        registered: &ParticipantRecord,
    ) -> Result<Option<Vec<ParticipantRecord>>> {
        let &ParticipantRecord { serverid, userid, .. } = registered;
        transaction::run(|| {
            if Mapping::find(userid, serverid).is_some() {
                return Ok(None);
            }
            let Some(address) = &registered.address else { return Ok(Some(Vec::new())) };
            let servers = self.at.get_or_insert_with(by_address).get(address);
            let is_usable =
                |server: &Oid| Mapping::find(userid, *server).is_some() && handler_is_ours(*server);
            let usable = servers.into_iter().flatten().copied().filter(is_usable);
            let there = |serverid| ParticipantRecord { serverid, ..registered.clone() };
            Ok(Some(usable.map(there).collect()))
        })
    }
}

fn by_address() -> HashMap<CString, Vec<Oid>> {
    let mut found: HashMap<CString, Vec<Oid>> = HashMap::new();
    for (id, _) in catalog::foreign_servers() {
        if let Some(server) = Server::find(id) {
            found.entry(server.address()).or_default().push(id);
        }
    }
    found
}
