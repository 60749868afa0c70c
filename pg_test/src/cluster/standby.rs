//! Physical standbys.

use anyhow::{Result, bail};

use super::Cluster;
use crate::wait_until;

impl Cluster {
    /// Waits until `standby` has replayed everything that this server has written so far.
    pub fn wait_for_standby(&self, standby: &Self) -> Result<()> {
        let end: String =
            self.client()?.query_one("SELECT pg_current_wal_lsn()::text", &[])?.get(0);
        let mut session = standby.client()?;
        wait_until("the standby has caught up", crate::DEADLINE, || {
            let sql = format!("SELECT pg_last_wal_replay_lsn() >= '{end}'::pg_lsn");
            Ok(session.query_one(&sql, &[])?.get::<_, Option<bool>>(0) == Some(true))
        })
    }

    /// Makes this standby a primary, and waits until it is one.
    pub fn promote(&self) -> Result<()> {
        let promoted: bool = self.client()?.query_one("SELECT pg_promote()", &[])?.get(0);
        if !promoted {
            bail!("{} was not promoted", self.name);
        }
        Ok(())
    }
}
