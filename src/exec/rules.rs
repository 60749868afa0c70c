//! What a user's statement may not do inside a participant's transaction, and how it is refused.
//!
//! The remote transaction belongs to the local one, which prepares it, and foreign tables and later
//! transactions use the same session. So a statement may not
//! * begin or end the transaction, or move its savepoints, which follow the local ones;
//! * do what PostgreSQL refuses to prepare: the user would learn of it only at COMMIT;
//! * leave something in the session that outlives the transaction;
//! * change who prepares, because only the same role can commit it afterwards, or how values are
//!   written.

#![forbid(unsafe_code)]

/// An effect that a participant's transaction does not allow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Forbidden {
    /// COMMIT, ROLLBACK, PREPARE TRANSACTION and their other names.
    EndTransaction,
    /// BEGIN, START TRANSACTION.
    BeginTransaction,
    /// SAVEPOINT, RELEASE, ROLLBACK TO.
    Savepoint,
    /// COMMIT PREPARED, ROLLBACK PREPARED.
    SettlePrepared,
    /// SET TRANSACTION and SET SESSION CHARACTERISTICS.
    SetTransaction,
    /// Creates or uses temporary objects.
    Temporary,
    /// LISTEN, UNLISTEN, NOTIFY.
    Notify,
    /// DECLARE … WITH HOLD.
    HoldCursor,
    /// `pg_export_snapshot()`.
    ExportSnapshot,
    /// Uses a cursor that may belong to the scan of a foreign table.
    ScanCursor,
    /// PREPARE, EXECUTE, DEALLOCATE, DISCARD.
    SessionStatement,
    /// SET or RESET of a setting beyond the transaction.
    SetForSession,
    /// A setting on which the rest of the transaction relies.
    SetFixed,
    /// An advisory lock of the session.
    SessionLock,
    /// COPY from or to the client.
    CopyToClient,
    /// What this server cannot parse, and not tell by its first words.
    Unknown,
}

/// How a statement with such an effect is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Refusal {
    /// The SQLSTATE that PL/pgSQL or PREPARE TRANSACTION has for the same.
    pub sqlstate: [u8; 5],
    /// The reason.
    pub detail: &'static str,
    /// What to do instead.
    pub hint: &'static str,
}

const TERMINATION: [u8; 5] = *b"2D000";
const UNSUPPORTED: [u8; 5] = *b"0A000";

impl Forbidden {
    /// The SQLSTATE, DETAIL and HINT for it.
    pub fn refusal(self) -> Refusal {
        let (sqlstate, detail, hint) = match self {
            Self::EndTransaction => (
                TERMINATION,
                "The remote transaction ends together with the local one.",
                "Use COMMIT, ROLLBACK or PREPARE TRANSACTION here: it reaches all servers.",
            ),
            Self::BeginTransaction => (
                UNSUPPORTED,
                "The remote transaction has begun with the first use of the server.",
                "Leave the command out, or use BEGIN here.",
            ),
            Self::Savepoint => (
                UNSUPPORTED,
                "The savepoints of the remote transaction are those of the local one.",
                "Use SAVEPOINT, RELEASE or ROLLBACK TO here.",
            ),
            Self::SettlePrepared => (
                UNSUPPORTED,
                "The command cannot run inside a transaction.",
                "Connect to the server itself. To settle what this extension has prepared there, call pg_fdw_xacts_resolve().",
            ),
            Self::SetTransaction => (
                UNSUPPORTED,
                "The characteristics of the remote transaction follow from those of the local one.",
                "Set the isolation level of the local transaction, before its first statement.",
            ),
            Self::Temporary => (
                UNSUPPORTED,
                "A transaction that has operated on temporary objects cannot be prepared.",
                "Use an ordinary table, and drop it in the same transaction.",
            ),
            Self::Notify => (
                UNSUPPORTED,
                "A transaction that has executed LISTEN, UNLISTEN or NOTIFY cannot be prepared.",
                "Write the message into a table, or connect to the server itself.",
            ),
            Self::HoldCursor => (
                UNSUPPORTED,
                "A transaction that has created a cursor WITH HOLD cannot be prepared.",
                "Declare the cursor without WITH HOLD and fetch from it in the same transaction.",
            ),
            Self::ExportSnapshot => (
                UNSUPPORTED,
                "A transaction that has exported snapshots cannot be prepared.",
                "Connect to the server itself.",
            ),
            Self::ScanCursor => (
                UNSUPPORTED,
                "Cursors whose names are c and a number belong to scans of foreign tables.",
                "Give the cursor another name.",
            ),
            Self::SessionStatement => (
                UNSUPPORTED,
                "Its effect would outlive the transaction, in a session that foreign tables and later transactions use.",
                "Run the statement itself, with its values.",
            ),
            Self::SetForSession => (
                UNSUPPORTED,
                "The setting would outlive the transaction, in a session that foreign tables and later transactions use.",
                "Use SET LOCAL, or ALTER ROLE ... SET for good.",
            ),
            Self::SetFixed => (
                UNSUPPORTED,
                "The role that prepares the transaction, and the settings by which values of foreign tables are written, must not change.",
                "Use another user mapping, or convert the values in the query.",
            ),
            Self::SessionLock => (
                UNSUPPORTED,
                "Advisory locks of the session would outlive the transaction.",
                "Use pg_advisory_xact_lock().",
            ),
            Self::CopyToClient => (
                UNSUPPORTED,
                "There is no client to copy from or to.",
                "Use INSERT, or COPY of the foreign table here.",
            ),
            Self::Unknown => (
                UNSUPPORTED,
                "This server cannot parse the command, so it cannot tell what the command does to the transaction.",
                "Connect to the server itself.",
            ),
        };
        Refusal { sqlstate, detail, hint }
    }
}

/// The forbidden effect of calling a function; `None` for one that may be called. That of
/// `set_config()` depends on its arguments: see [`setting`].
pub fn function(name: &str) -> Option<Forbidden> {
    match name {
        "pg_notify" => Some(Forbidden::Notify),
        "pg_export_snapshot" => Some(Forbidden::ExportSnapshot),
        "pg_advisory_lock"
        | "pg_advisory_lock_shared"
        | "pg_try_advisory_lock"
        | "pg_try_advisory_lock_shared"
        | "pg_advisory_unlock"
        | "pg_advisory_unlock_shared"
        | "pg_advisory_unlock_all" => Some(Forbidden::SessionLock),
        _ => None,
    }
}

/// The forbidden effect of changing a setting, for the transaction only (`local`) or for the
/// session.
pub fn setting(name: &str, local: bool) -> Option<Forbidden> {
    const FIXED: [&str; 10] = [
        "role",
        "session_authorization",
        "timezone",
        "datestyle",
        "intervalstyle",
        "extra_float_digits",
        "client_encoding",
        "lc_monetary",
        "array_nulls",
        "standard_conforming_strings",
    ];
    const TRANSACTION: [&str; 3] =
        ["transaction_isolation", "transaction_read_only", "transaction_deferrable"];
    let is = |known: &&str| known.eq_ignore_ascii_case(name);
    if FIXED.iter().any(is) {
        Some(Forbidden::SetFixed)
    } else if TRANSACTION.iter().any(is) {
        Some(Forbidden::SetTransaction)
    } else if local {
        None
    } else {
        Some(Forbidden::SetForSession)
    }
}

/// Whether a scan of a foreign table may have given its cursor this name; `None` stands for all
/// cursors.
pub fn is_scan_cursor(name: Option<&[u8]>) -> bool {
    match name {
        None => true,
        Some([b'c', digits @ ..]) => !digits.is_empty() && digits.iter().all(u8::is_ascii_digit),
        Some(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_change_for_the_transaction_only_and_some_not_at_all() {
        assert_eq!(setting("search_path", true), None);
        assert_eq!(setting("search_path", false), Some(Forbidden::SetForSession));
        assert_eq!(setting("DateStyle", true), Some(Forbidden::SetFixed));
        assert_eq!(setting("role", true), Some(Forbidden::SetFixed));
        assert_eq!(setting("array_nulls", true), Some(Forbidden::SetFixed));
        assert_eq!(setting("transaction_read_only", true), Some(Forbidden::SetTransaction));
    }

    #[test]
    fn cursors_of_scans_are_recognized_by_their_names() {
        assert!(is_scan_cursor(Some(b"c17")) && is_scan_cursor(None));
        assert!(!is_scan_cursor(Some(b"c")) && !is_scan_cursor(Some(b"c1x")));
        assert!(!is_scan_cursor(Some(b"x1")));
    }

    #[test]
    fn advisory_locks_of_the_transaction_are_allowed() {
        assert_eq!(function("pg_advisory_xact_lock"), None);
        assert_eq!(function("pg_advisory_lock"), Some(Forbidden::SessionLock));
        assert_eq!(function("nextval"), None);
    }
}
