//! Whether this process has a libpq that PostgreSQL's own libraries can use, too.
//!
//! A process has room for one libpq. This library is preloaded, so the one that it is linked with
//! is also that of postgres_fdw, of dblink and of the WAL receiver of a standby. If it is too old,
//! these fail long after the start, and with errors that do not name this library.

use pgrx::pg_sys;

use crate::libpq;
use crate::pg::error::{Error, Result, SqlState};

/// From this version on PostgreSQL's libraries call functions that the libpq before it lacks
/// (`PQcancelStart` and others).
const NEEDS_ITS_OWN: u32 = 17;

/// Refuses to start with a libpq that is too old for this server.
///
/// # Errors
/// 55000: it is.
pub fn require() -> Result<()> {
    let (loaded, server) = (libpq::major_version(), pg_sys::PG_VERSION_NUM / 10_000);
    if is_fit(loaded, server) {
        return Ok(());
    }
    Err(Error::new(
        SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
        format!("pg_fdw_xacts is linked with libpq {loaded}, which is too old for this server"),
    )
    .detail(format!(
        "A process has one libpq only, and postgres_fdw of PostgreSQL {server} needs {NEEDS_ITS_OWN} or newer."
    ))
    .hint("Build pg_fdw_xacts with this server's pg_config, or install a newer libpq."))
}

/// Whether libraries of a server of the major version `server` can use a libpq of version `loaded`.
fn is_fit(loaded: u32, server: u32) -> bool {
    server < NEEDS_ITS_OWN || loaded >= NEEDS_ITS_OWN
}

#[cfg(test)]
mod tests {
    use super::is_fit;

    #[test]
    fn newer_servers_need_a_newer_libpq() {
        for (loaded, server) in [(15, 15), (14, 16), (18, 15), (17, 17), (17, 18), (18, 17)] {
            assert!(is_fit(loaded, server), "{loaded} for {server}");
        }
        for (loaded, server) in [(15, 17), (16, 17), (16, 18)] {
            assert!(!is_fit(loaded, server), "{loaded} for {server}");
        }
    }
}
