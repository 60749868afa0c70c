//! A verdict holds for the one wait that it was found for.

#[pgrx::pg_schema]
mod tests {
    use pgrx::pg_sys::Oid;
    use pgrx::pg_test;

    use crate::shared::waits::{self, Awaited, Manner};

    const SERVER: Awaited =
        Awaited { serverid: Oid::from_u32(1), userid: Oid::from_u32(10), process: 5 };

    fn publish(can_be_cancelled: bool) -> u64 {
        waits::publish(Manner { begun: 0, can_be_cancelled, needs_all: true }, &[SERVER])
    }

    fn is_published(number: u64) -> bool {
        waits::all().iter().any(|wait| wait.number == number && wait.servers() == [SERVER])
    }

    #[pg_test]
    fn a_verdict_hits_its_own_wait_alone() {
        let first = publish(true);
        assert!(is_published(first) && waits::verdict(first).is_none());
        assert!(waits::condemn(first, b"a cycle"));
        assert_eq!(waits::verdict(first).as_deref(), Some(&b"a cycle"[..]));
        waits::end(first);
        assert!(!is_published(first) && waits::verdict(first).is_none());
        // Too late: the session does something else by now.
        assert!(!waits::condemn(first, b"a cycle"));
        let second = publish(true);
        assert!(second > first && !waits::condemn(first, b"a cycle"));
        assert!(waits::verdict(second).is_none() && waits::verdict(first).is_none());
        // A late end of an earlier wait is not the end of this one.
        waits::end(first);
        assert!(is_published(second));
        waits::end(second);
    }

    #[pg_test]
    fn what_cannot_be_cancelled_is_not_condemned() {
        let number = publish(false);
        assert!(!waits::condemn(number, b"a cycle") && waits::verdict(number).is_none());
        waits::end(number);
    }
}
