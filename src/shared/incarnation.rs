//! The incarnation: a random number drawn at each start of this server. It tells the sessions that
//! this server opens on participants from those of an earlier start and of a physical copy.

use crate::pg::error::Result;
use crate::pg::random::random;
use crate::protocol::gid::Identity;
use crate::protocol::session_lock::SessionLock;
use crate::shared::shmem;

/// Draws one.
///
/// # Errors
/// XX000 when the system gives no random bytes.
pub(super) fn draw() -> Result<i32> {
    random().map(i32::from_ne_bytes)
}

/// The advisory lock that the sessions of an identity hold on participants during this incarnation.
pub fn session_lock(identity: Identity) -> SessionLock {
    let incarnation = shmem::read(|m| m.shared.incarnation);
    SessionLock { key: identity.session_key(), incarnation }
}
