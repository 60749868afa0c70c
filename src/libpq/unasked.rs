//! What a server says that nobody has asked for: notices, and that it ends the session.

use std::cell::Cell;
use std::ffi::{CStr, c_int, c_void};
use std::ptr::{NonNull, null_mut};

/// What a server has said of the end of the session.
#[derive(Debug, Default)]
pub(super) struct Unasked {
    ends: Cell<bool>,
    was_idle: Cell<bool>,
    /// What libpq does with any other message: it goes to the log.
    other: Cell<pq_sys::PQnoticeReceiver>,
}

impl Unasked {
    /// Hears what libpq handles of it from now on.
    ///
    /// # Safety
    /// The connection is alive, and what is returned outlives it.
    pub(super) unsafe fn hear(conn: NonNull<pq_sys::PGconn>) -> Box<Self> {
        let unasked = Box::<Self>::default();
        let address: *const Self = &raw const *unasked;
        // SAFETY: both are alive, says the caller; the box does not move.
        let other = unsafe {
            let address = address.cast_mut().cast();
            pq_sys::PQsetNoticeReceiver(conn.as_ptr(), Some(receive), address)
        };
        unasked.other.set(other);
        unasked
    }

    /// The server ends the session.
    pub(super) fn ends(&self) -> bool {
        self.ends.get()
    }

    /// It ends the session because that was idle for too long.
    pub(super) fn was_idle(&self) -> bool {
        self.was_idle.get()
    }
}

/// libpq calls it with each message.
unsafe extern "C" fn receive(unasked: *mut c_void, said: *const pq_sys::PGresult) {
    let is = |field: u8, value: &[u8]| {
        // SAFETY: libpq passes a valid result, whose texts live as long.
        unsafe {
            let text = pq_sys::PQresultErrorField(said, c_int::from(field));
            !text.is_null() && CStr::from_ptr(text).to_bytes() == value
        }
    };
    // SAFETY: the address that libpq was given in `hear`, of what outlives the connection.
    let unasked = unsafe { &*unasked.cast::<Unasked>() };
    // The severity as it is in every language.
    if is(b'V', b"FATAL") || is(b'V', b"PANIC") {
        unasked.ends.set(true);
        unasked.was_idle.set(is(b'C', b"57P05"));
    } else if let Some(other) = unasked.other.get() {
        // SAFETY: libpq's own, which does not look at the first argument.
        unsafe { other(null_mut(), said) };
    }
}
