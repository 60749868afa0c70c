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
        match byte {
            b'\\' => text.extend(b"\\\\"),
            _ if byte.is_ascii() => text.push(byte),
            _ => text.extend(format!("\\{byte:03o}").bytes()),
        }
    }
    CString::new(text).expect("no NUL comes from a C string")
}

/// The same of a name that was stored: [`escaped`], or by 0.2.0 as it is.
pub fn of_stored(name: CString) -> CString {
    if name.to_bytes().is_ascii() { name } else { escaped(&name) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_escaped_as_a_server_does_it() {
        assert_eq!(&*escaped(c"a b'\"c"), c"a b'\"c");
        assert_eq!(&*escaped(c"d\xc3\xa9"), c"d\\303\\251");
        assert_eq!(&*escaped(c"a\\b"), c"a\\\\b");
    }

    #[test]
    fn what_was_stored_is_escaped_once() {
        for name in [c"db", c"a\\b", c"d\xc3\xa9\\"] {
            assert_eq!(of_stored(escaped(name)), escaped(name));
        }
        assert_eq!(&*of_stored(c"d\xc3\xa9".to_owned()), c"d\\303\\251");
    }
}
