//! Which server and database a connection has reached.

use std::ffi::{CStr, CString};

/// Which server and database a connection has reached, asked in its set-up.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fingerprint {
    /// `system_identifier` of `pg_control_system()`.
    pub system_identifier: u64,
    /// `current_database()`, in ASCII ([`escaped`]).
    pub database: CString,
    /// `pg_is_in_recovery()`: the server only reads.
    pub in_recovery: bool,
}

/// A database's name in ASCII, as `encode(…, 'escape')` writes its bytes. The name itself may not
/// convert to the encoding of the database here, and an error would make the server unusable.
pub fn escaped(name: &CStr) -> CString {
    let mut text = Vec::new();
    for &byte in name.to_bytes() {
        if byte.is_ascii() {
            text.push(byte);
        } else {
            text.extend(format!("\\{byte:03o}").bytes());
        }
    }
    CString::new(text).expect("no NUL comes from a C string")
}
