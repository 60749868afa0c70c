//! Whose credentials a connection uses.
//!
//! Users who are not superusers must use their own credentials; otherwise they would act as the
//! server's operating system user, with its trust, files and certificates. That is checked before
//! connecting, when nothing has been sent yet, and afterwards, when it is known what the other
//! server asked for. Rules and texts are those of the same version's postgres_fdw.
//!
//! Credentials that exist only in the client's session (a delegated GSSAPI ticket from 16 on, SCRAM
//! keys passed through from 18 on) are of no use to anybody else: the resolver could never settle
//! what is prepared with them.
//!
//! A connection that was made without the user's own credentials is only for users who need none.
//! That is checked for each use ([`check_shared`]), because a superuser and other roles may share a
//! PUBLIC mapping, roles may lose SUPERUSER, and mappings may be changed.

use std::ffi::CStr;

use pgrx::pg_sys;

use crate::libpq::Conn;
use crate::pg::error::{Error, Result, SqlState};
use crate::remote::options::{Mapping, OptionPair, Server, option, parse_bool};

#[cfg(feature = "pg15")]
mod texts {
    pub const MESSAGE: &str = "password is required";
    pub const BEFORE: &str = "Non-superusers must provide a password in the user mapping.";
    pub const AFTER: &str =
        "Non-superuser cannot connect if the server does not request a password.";
}
#[cfg(not(feature = "pg15"))]
mod texts {
    pub const MESSAGE: &str = "password or GSSAPI delegated credentials required";
    #[cfg(pre_pg18)]
    pub const BEFORE: &str = "Non-superusers must delegate GSSAPI credentials or provide a password in the user mapping.";
    #[cfg(not(pre_pg18))]
    pub const BEFORE: &str = "Non-superusers must delegate GSSAPI credentials, provide a password, or enable SCRAM pass-through in user mapping.";
    pub const AFTER: &str = "Non-superuser cannot connect if the server does not request a password or use GSSAPI with delegated credentials.";
}

/// What is known before connecting.
pub struct Credentials {
    /// The mapping's user must have their own credentials: they are not a superuser, and no
    /// superuser has waived this with `password_required 'false'`.
    own_required: bool,
    has_password: bool,
    /// The keys of the client's own SCRAM exchange are used.
    scram_keys: bool,
    /// The client has delegated a GSSAPI ticket to this session.
    gss_delegated: bool,
}

impl Credentials {
    /// Finds out what is known, and adds to `info` what the client's session contributes.
    ///
    /// # Errors
    /// 2F003, as postgres_fdw, for a mapping that needs credentials and has none.
    pub fn check(server: &Server, mapping: &Mapping, info: &mut Vec<OptionPair>) -> Result<Self> {
        let this = Self {
            own_required: are_required(mapping),
            has_password: info.iter().any(|(n, v)| n.as_c_str() == c"password" && !v.is_empty()),
            scram_keys: pass_scram_keys(server, mapping, info),
            gss_delegated: has_gss_delegation(),
        };
        if this.own_required && !this.has_password && !this.scram_keys && !this.gss_delegated {
            return Err(refusal(texts::BEFORE));
        }
        Ok(this)
    }

    /// Checks which credentials were used, and returns that.
    ///
    /// # Errors
    /// 2F003, as postgres_fdw, where the other server did not ask for the user's own credentials.
    pub fn check_used(&self, conn: &Conn) -> Result<Used> {
        let gss = self.gss_delegated && conn.used_gss();
        let password = self.has_password && conn.used_password();
        let own = password || gss || self.scram_keys;
        if self.own_required && !own {
            return Err(not_asked_for());
        }
        Ok(Used { own, session_only: gss || (self.scram_keys && !self.has_password) })
    }
}

/// What a connection was made with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Used {
    /// The user's own credentials: not the server process's.
    pub own: bool,
    /// They exist only in the client's session.
    pub session_only: bool,
}

/// Whether the user of a mapping must have their own credentials now.
fn are_required(mapping: &Mapping) -> bool {
    let waived = option(&mapping.options, c"password_required").and_then(parse_bool);
    // SAFETY: a catalog look-up of a role, which may have been dropped.
    waived != Some(false) && !unsafe { pg_sys::superuser_arg(mapping.userid) }
}

/// Refuses to use a connection of the same mapping where a new one would be refused: it may have
/// been made for another user, or when this one had other privileges.
///
/// # Errors
/// 2F003, as for a new connection.
pub fn check_shared(mapping: &Mapping, used: Used) -> Result<()> {
    if used.own || !are_required(mapping) {
        return Ok(());
    }
    let has_password = option(&mapping.options, c"password").is_some_and(|p| !p.is_empty());
    Err(if has_password { not_asked_for() } else { refusal(texts::BEFORE) })
}

fn not_asked_for() -> Error {
    refusal(texts::AFTER).hint("Target server's authentication method must be changed or password_required=false set in the user mapping attributes.")
}

fn refusal(detail: &str) -> Error {
    Error::new(SqlState::S_R_E_PROHIBITED_SQL_STATEMENT_ATTEMPTED, texts::MESSAGE).detail(detail)
}

/// Refuses to write on `server` through a connection whose credentials the resolver does not have.
pub fn cannot_settle(server: &CStr) -> Error {
    Error::new(
        SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
        [
            b"cannot write on server \"",
            server.to_bytes(),
            b"\" atomically with credentials of the client's session",
        ]
        .concat(),
    )
    .detail("A transaction that is in doubt there could not be settled once the session has ended.")
    .hint("Store a password in the user mapping, or set the server's option two_phase_commit to 'off'.")
}

/// Whether the client has delegated a GSSAPI ticket to this session.
fn has_gss_delegation() -> bool {
    #[cfg(not(feature = "pg15"))]
    return crate::pg::raw::has_gss_delegation();
    #[cfg(feature = "pg15")]
    false
}

#[cfg(pre_pg18)]
fn pass_scram_keys(_: &Server, _: &Mapping, _: &mut Vec<OptionPair>) -> bool {
    false
}

#[cfg(not(pre_pg18))]
use scram::pass_keys as pass_scram_keys;

#[cfg(not(pre_pg18))]
mod scram {
    use std::ffi::{CString, c_int};

    use super::{Mapping, OptionPair, Server};
    use crate::pg::error::c_string;
    use crate::pg::layout::{self, SCRAM_KEY};
    use crate::pg::raw;
    use crate::remote::options::{option, parse_bool};

    /// Uses the client's SCRAM keys, if there are any and the option of the mapping, or else of the
    /// server, says so. No other authentication method is accepted then.
    pub fn pass_keys(server: &Server, mapping: &Mapping, info: &mut Vec<OptionPair>) -> bool {
        let asked = option(&mapping.options, c"use_scram_passthrough")
            .or_else(|| option(&server.options, c"use_scram_passthrough"))
            .and_then(parse_bool);
        let Some(port) = layout::my_port() else {
            return false;
        };
        if asked != Some(true) || !port.has_keys {
            return false;
        }
        info.push((c"scram_client_key".to_owned(), encode(&port.client_key)));
        info.push((c"scram_server_key".to_owned(), encode(&port.server_key)));
        info.push((c"require_auth".to_owned(), c"scram-sha-256".to_owned()));
        true
    }

    fn encode(key: &[u8; SCRAM_KEY]) -> CString {
        let mut text = vec![0_u8; SCRAM_KEY * 2];
        // SAFETY: 32 bytes become 44, for which there is room.
        let length = unsafe {
            let room = text.len() as c_int;
            raw::pg_b64_encode(key.as_ptr(), SCRAM_KEY as c_int, text.as_mut_ptr().cast(), room)
        };
        text.truncate(length.max(0) as usize);
        c_string(text)
    }
}
