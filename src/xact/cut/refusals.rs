//! Why there is no cut.

use crate::pg::error::{Error, SqlState};
use crate::protocol::gid::Gid;
use crate::shared::reads::{self, Count};

/// What is missing: a server does not see it yet.
pub(super) enum Missing {
    /// What is still to be delivered.
    Delivery(Gid),
    /// What has committed there with this xid.
    Xid(u64),
    /// So much that not all of it is known any more.
    Forgotten,
}

pub(super) fn too_old(servers: &str, detail: &str) -> Error {
    reads::add(Count::TooOld, 1);
    Error::new(
        SqlState::T_R_SERIALIZATION_FAILURE,
        format!("could not serialize access: {servers} have no common snapshot"),
    )
    .detail(detail)
    .hint("Try the transaction again. Servers that are read one after the other have one from the beginning if the transaction begins with pg_fdw_xacts_snapshot().")
}

pub(super) fn in_doubt(missing: &Missing) -> Error {
    reads::add(Count::InDoubt, 1);
    let detail = match missing {
        Missing::Delivery(gid) => format!(
            "Prepared transaction '{gid}' is committed, and its server has not confirmed that."
        ),
        Missing::Xid(xid) => format!(
            "A transaction that has committed on a server, with xid {xid}, is not visible there."
        ),
        Missing::Forgotten => {
            "More has been committed meanwhile than is remembered for readers.".to_owned()
        }
    };
    Error::new(
        SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
        "could not take one snapshot of several foreign servers: a transaction is in doubt",
    )
    .detail(detail)
    .hint("See the view pg_fdw_xacts for the reason. With \"pg_fdw_xacts.consistent_reads\" set to off, servers are read as they are.")
}

pub(super) fn modified_before(server: &str) -> Error {
    Error::new(
        SqlState::ACTIVE_SQL_TRANSACTION,
        "pg_fdw_xacts_snapshot() must be called before the transaction modifies a foreign server",
    )
    .detail(format!("On server \"{server}\" each statement of this transaction sees what is committed when it begins."))
    .hint("Call it first, or set \"pg_fdw_xacts.remote_isolation\" to \"repeatable read\".")
}

pub(super) fn in_recovery_there(server: &str) -> Error {
    Error::new(
        SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
        format!("could not take one snapshot of several foreign servers: server \"{server}\" is in recovery"),
    )
    .detail("The snapshot of a standby does not tell what is in progress.")
    .hint("Read it alone, read its primary, or set \"pg_fdw_xacts.consistent_reads\" to off.")
}

pub(super) fn in_recovery_here() -> Error {
    Error::new(
        SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
        "could not take one snapshot of several foreign servers: this server is in recovery",
    )
    .detail("A standby does not know the order of its primary's decisions.")
    .hint("Ask the primary, or set \"pg_fdw_xacts.consistent_reads\" to off.")
}
