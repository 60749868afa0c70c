//! The `application_name` of a session with a participant: postgres_fdw's setting before the
//! server's option, each with its escapes replaced.

use std::ffi::{CStr, CString};

use pgrx::pg_sys;

use crate::pg::error::c_string;
use crate::remote::options::OptionPair;
use crate::remote::quoting::expand;

/// The keyword of libpq.
pub const APPLICATION_NAME: &CStr = c"application_name";
/// The name of a session without a given name, the same as in postgres_fdw.
pub const FALLBACK: &CStr = c"postgres_fdw";
/// What the resolver calls itself: the `application_name` of its sessions and the `backend_type`
/// and `application_name` of its processes here.
pub const RESOLVER: &CStr = c"pg_fdw_xacts resolver";

/// The name for a session with these server options, if one is given: the first that is not empty
/// after its escapes have been replaced.
pub fn given(server_options: &[OptionPair]) -> Option<CString> {
    let own = server_options.iter().rev().filter(|(name, _)| name.as_c_str() == APPLICATION_NAME);
    setting()
        .into_iter()
        .chain(own.map(|(_, value)| value.clone()))
        .map(|template| expand(template.to_bytes(), fact))
        .find(|name| !name.is_empty())
        .map(c_string)
}

/// `postgres_fdw.application_name`. Its library defines it, but a session may set it before that is
/// loaded.
fn setting() -> Option<CString> {
    // SAFETY: a setting that may not exist; its text is copied before anything can change it.
    unsafe {
        let text = pg_sys::GetConfigOption(c"postgres_fdw.application_name".as_ptr(), true, false);
        (!text.is_null()).then(|| CStr::from_ptr(text).to_owned())
    }
}

/// What an escape stands for in this session. `%d` and `%u` are only for clients' sessions.
fn fact(letter: u8) -> Option<Vec<u8>> {
    // SAFETY: globals of the backend, NULL or C strings; the look-ups return C strings or NULL.
    unsafe {
        let text = |p: *const std::ffi::c_char| {
            if p.is_null() { b"[unknown]".to_vec() } else { CStr::from_ptr(p).to_bytes().to_vec() }
        };
        let is_client = !pg_sys::MyProcPort.is_null();
        let (start, pid) = (pg_sys::MyStartTime, pg_sys::MyProcPid);
        Some(match letter {
            b'a' => text(pg_sys::application_name),
            b'c' => format!("{start:x}.{pid:x}").into_bytes(),
            b'C' => text(pg_sys::cluster_name),
            b'd' if is_client => text(pg_sys::get_database_name(pg_sys::MyDatabaseId)),
            b'p' => pid.to_string().into_bytes(),
            b'u' if is_client => {
                text(pg_sys::GetUserNameFromId(pg_sys::GetAuthenticatedUserId(), true))
            }
            _ => return None,
        })
    }
}
