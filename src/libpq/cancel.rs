//! Cancelling a running command.

use std::ffi::c_char;
use std::ptr::NonNull;

/// What a cancel request needs; it stays valid after the connection is gone.
#[derive(Debug)]
pub struct Cancel(NonNull<pq_sys::PGcancel>);

impl Cancel {
    pub(super) fn from_raw(raw: *mut pq_sys::PGcancel) -> Option<Self> {
        NonNull::new(raw).map(Self)
    }

    /// Sends the request on a connection of its own and **waits** until the server closed it,
    /// without a deadline: never call it after the commit decision.
    ///
    /// # Errors
    /// libpq's message if the request could not be sent.
    pub fn send(&self) -> Result<(), Vec<u8>> {
        let mut message = [0u8; 256];
        // SAFETY: the buffer's true length is told.
        let sent = unsafe {
            pq_sys::PQcancel(
                self.0.as_ptr(),
                message.as_mut_ptr().cast::<c_char>(),
                message.len() as i32,
            )
        };
        if sent == 1 {
            return Ok(());
        }
        let end = message.iter().position(|&b| b == 0).unwrap_or(message.len());
        Err(message[..end].to_vec())
    }
}

impl Drop for Cancel {
    fn drop(&mut self) {
        // SAFETY: owned, freed once.
        unsafe { pq_sys::PQfreeCancel(self.0.as_ptr()) }
    }
}
