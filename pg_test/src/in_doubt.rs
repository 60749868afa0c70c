//! Leaving a transaction in doubt, as most scenarios of the resolver begin: the coordinator has
//! decided to commit, and one shard has prepared and does not hear of it.

use anyhow::{Result, anyhow};
use postgres::Client;

use crate::fleet::begin_everywhere;
use crate::proxy::NewConnections;
use crate::{Fault, Fleet, Point};

impl Fleet {
    /// Commits row `id` in `lt` and on all shards of a proxied fleet, except that shard 1 is left
    /// in doubt, as [`commit_undelivered`](Self::commit_undelivered) does. Returns the session.
    pub fn in_doubt(&self, id: i32) -> Result<Client> {
        let mut session = self.session()?;
        begin_everywhere(&mut session, id)?;
        self.commit_undelivered(session, 1)
    }

    /// Commits the transaction of `session`. Shard `number` has prepared it when its connections
    /// are cut, so COMMIT PREPARED does not arrive; it cannot be reached until
    /// [`reconnect`](Self::reconnect).
    pub fn commit_undelivered(&self, mut session: Client, number: usize) -> Result<Client> {
        let proxy = self.proxy(number);
        let hit = proxy.inject(Fault::hold(Point::Statement, "COMMIT PREPARED"));
        let commit = std::thread::spawn(move || {
            let result = session.batch_execute("COMMIT");
            (session, result)
        });
        hit.wait()?;
        proxy.set_new_connections(NewConnections::Refused);
        proxy.cut_all();
        hit.release();
        let (session, result) = commit.join().map_err(|_| anyhow!("COMMIT panicked"))?;
        result?;
        Ok(session)
    }

    /// Shard `number` can be reached again.
    pub fn reconnect(&self, number: usize) {
        self.proxy(number).set_new_connections(NewConnections::Served);
    }
}
