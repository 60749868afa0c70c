//! READ ONLY and DEFERRABLE of the local transaction, which the remote one is given where
//! postgres_fdw gives it them: from PostgreSQL 19 on.
//!
//! A local subtransaction that is READ ONLY has its savepoint made so, or what has begun before
//! READ ONLY was set, with the next statement there. At the end of the savepoint the server takes
//! it back as this one does.

use std::borrow::Cow;
use std::ffi::CStr;

use crate::pg::error::c_string;
#[cfg(feature = "pg19")]
use crate::pg::globals;

/// What makes the rest of the remote (sub)transaction READ ONLY.
pub(super) const SET_READ_ONLY: &CStr = c"SET TRANSACTION READ ONLY";

/// The modes of the local transaction that are passed on.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Modes {
    /// The outermost nesting level that is READ ONLY, as all inside of it are; 0: none.
    read_only: u32,
    /// The transaction is DEFERRABLE.
    is_deferrable: bool,
}

impl Modes {
    /// Those of the current transaction.
    pub fn current() -> Self {
        #[cfg(feature = "pg19")]
        return Self {
            read_only: globals::top_read_only_level(),
            is_deferrable: globals::is_deferrable(),
        };
        #[cfg(not(feature = "pg19"))]
        Self::default()
    }

    /// START TRANSACTION in them.
    pub(super) fn added_to(self, start: &'static CStr) -> Cow<'static, CStr> {
        let modes: &[u8] = match (self.read_only == 1, self.is_deferrable) {
            (false, false) => return Cow::Borrowed(start),
            (true, false) => b" READ ONLY",
            (false, true) => b" DEFERRABLE",
            (true, true) => b" READ ONLY DEFERRABLE",
        };
        Cow::Owned(c_string([start.to_bytes(), modes].concat()))
    }
}

/// The depth of the remote transaction at which it was made READ ONLY; 0 while it is not.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(super) struct ReadOnly(u32);

impl ReadOnly {
    /// Of a transaction that begins in these modes.
    pub(super) fn at_start(modes: Modes) -> Self {
        Self(u32::from(modes.read_only == 1))
    }

    /// Whether the server has to be told now that it is `depth` levels deep. To be asked before
    /// each statement and after each savepoint that is made, so that the end of one is noticed.
    pub(super) fn is_to_be_set(&mut self, modes: Modes, depth: u32) -> bool {
        if self.0 > depth {
            self.0 = 0;
        }
        // An outer level may still write.
        let is_to_be_set = self.0 == 0 && modes.read_only > 0 && modes.read_only <= depth;
        if is_to_be_set {
            self.0 = depth;
        }
        is_to_be_set
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn read_only_from(read_only: u32) -> Modes {
        Modes { read_only, is_deferrable: false }
    }

    #[test]
    fn the_whole_transaction_is_told_at_its_beginning() {
        let modes = read_only_from(1);
        assert_eq!(&*modes.added_to(c"START"), c"START READ ONLY");
        let mut there = ReadOnly::at_start(modes);
        for depth in [1, 2, 1] {
            assert!(!there.is_to_be_set(modes, depth));
        }
        let both = Modes { is_deferrable: true, ..modes };
        assert_eq!(&*both.added_to(c"START"), c"START READ ONLY DEFERRABLE");
        assert_eq!(&*read_only_from(2).added_to(c"START"), c"START");
    }

    #[test]
    fn a_savepoint_is_told_once_and_what_is_outside_of_it_never() {
        let modes = read_only_from(3);
        let mut there = ReadOnly::at_start(modes);
        let told: Vec<bool> = (1..=4).map(|depth| there.is_to_be_set(modes, depth)).collect();
        assert_eq!(told, [false, false, true, false]);
        // It has ended, and another one begins.
        assert!(!there.is_to_be_set(read_only_from(0), 2));
        assert!(!there.is_to_be_set(read_only_from(0), 3));
        assert!(there.is_to_be_set(modes, 3));
    }

    #[test]
    fn what_has_begun_is_told_once() {
        for level in [1, 2] {
            let (writing, modes) = (read_only_from(0), read_only_from(level));
            let mut there = ReadOnly::at_start(writing);
            assert!(!there.is_to_be_set(writing, level));
            assert!(there.is_to_be_set(modes, level));
            assert!(!there.is_to_be_set(modes, level + 1));
            assert!(!there.is_to_be_set(modes, level));
        }
    }
}
