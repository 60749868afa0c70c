//! Which statements of a user may run inside a participant's transaction, and what is said of the others.
//!
//! The remote transaction belongs to the local one, which prepares it, and the session is shared with foreign tables
//! and later transactions. So a statement may not
//! * begin or end it, or move its savepoints, which follow the local ones;
//! * do what PostgreSQL refuses to prepare: it would be told only at COMMIT;
//! * leave something in the session that the end of the transaction does not take away;
//! * change who prepares (only the same role can commit it afterwards) or how values are written.

/// What a statement does that a participant's transaction does not bear.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Deed {
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
    /// Uses a cursor that may be one of a foreign scan.
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
    /// Nobody here can tell what it does.
    Unknown,
}

/// Why a statement is refused, in words.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Objection {
    /// The SQLSTATE: that of PL/pgSQL or of PREPARE TRANSACTION for the same.
    pub sqlstate: [u8; 5],
    /// The reason.
    pub detail: &'static str,
    /// What to do instead.
    pub hint: &'static str,
}

const TERMINATION: [u8; 5] = *b"2D000";
const UNSUPPORTED: [u8; 5] = *b"0A000";

impl Deed {
    /// What is said of it.
    pub fn objection(self) -> Objection {
        let (sqlstate, detail, hint) = match self {
            Self::EndTransaction => (
                TERMINATION,
                "The remote transaction ends together with the local one.",
                "Use COMMIT, ROLLBACK or PREPARE TRANSACTION here: it reaches all servers.",
            ),
            Self::BeginTransaction => (
                UNSUPPORTED,
                "The remote transaction has begun with the first use of the server.",
                "Leave it out, or use BEGIN here.",
            ),
            Self::Savepoint => (
                UNSUPPORTED,
                "The savepoints of the remote transaction are those of the local one.",
                "Use SAVEPOINT, RELEASE or ROLLBACK TO here.",
            ),
            Self::SettlePrepared => (
                UNSUPPORTED,
                "It cannot run inside a transaction.",
                "Connect to the server itself. What this extension has prepared there is settled by pg_fdw_xacts_resolve().",
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
                "Cursors called c and a number belong to the scans of foreign tables.",
                "Name the cursor, and give it another name.",
            ),
            Self::SessionStatement => (
                UNSUPPORTED,
                "What it does outlives the transaction, in a session that foreign tables and later transactions use.",
                "Give the statement itself, with its values.",
            ),
            Self::SetForSession => (
                UNSUPPORTED,
                "The setting would outlive the transaction, in a session that foreign tables and later transactions use.",
                "Use SET LOCAL, or ALTER ROLE ... SET for good.",
            ),
            Self::SetFixed => (
                UNSUPPORTED,
                "Who prepares the transaction, and how the values of foreign tables are written, must stay as it is.",
                "Use another user mapping, or convert the values in the query.",
            ),
            Self::SessionLock => (
                UNSUPPORTED,
                "Advisory locks of the session outlive the transaction.",
                "Use pg_advisory_xact_lock().",
            ),
            Self::CopyToClient => (
                UNSUPPORTED,
                "There is no client to copy from or to.",
                "Use INSERT, or COPY of the foreign table here.",
            ),
            Self::Unknown => (
                UNSUPPORTED,
                "This server cannot read the command, and so not tell what it does to the transaction.",
                "Connect to the server itself.",
            ),
        };
        Objection { sqlstate, detail, hint }
    }
}

/// What calling a function does; `None` for one that may be called. `pg_catalog.set_config()` depends on its arguments,
/// see [`setting`].
pub fn function(name: &str) -> Option<Deed> {
    match name {
        "pg_notify" => Some(Deed::Notify),
        "pg_export_snapshot" => Some(Deed::ExportSnapshot),
        "pg_advisory_lock"
        | "pg_advisory_lock_shared"
        | "pg_try_advisory_lock"
        | "pg_try_advisory_lock_shared"
        | "pg_advisory_unlock"
        | "pg_advisory_unlock_shared"
        | "pg_advisory_unlock_all" => Some(Deed::SessionLock),
        _ => None,
    }
}

/// What changing a setting does, for the transaction only (`local`) or for the session.
pub fn setting(name: &str, local: bool) -> Option<Deed> {
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
        Some(Deed::SetFixed)
    } else if TRANSACTION.iter().any(is) {
        Some(Deed::SetTransaction)
    } else if local {
        None
    } else {
        Some(Deed::SetForSession)
    }
}

/// Whether a cursor's name is one that scans of foreign tables may have; `None` stands for all cursors.
pub fn is_scan_cursor(name: Option<&[u8]>) -> bool {
    match name {
        None => true,
        Some([b'c', digits @ ..]) => !digits.is_empty() && digits.iter().all(u8::is_ascii_digit),
        Some(_) => false,
    }
}

/// What is refused of a statement that this server's grammar does not know, and how that is called. The other server
/// may be newer and has the last word on the statement, as long as it begins as one that may run, and names no function
/// that may not be called.
pub fn of_unparsed(sql: &[u8]) -> Option<(String, Deed)> {
    let run = |name: &str, deed| Some((format!("run {name}"), deed));
    let words = first_words(sql);
    let words: Vec<&[u8]> = words.iter().map(Vec::as_slice).collect();
    match words.as_slice() {
        [b"COMMIT" | b"ROLLBACK", b"PREPARED", ..] => run("COMMIT PREPARED", Deed::SettlePrepared),
        [b"ROLLBACK", b"TO", ..] | [b"ROLLBACK", b"WORK" | b"TRANSACTION", b"TO", ..] => {
            run("ROLLBACK TO SAVEPOINT", Deed::Savepoint)
        }
        [b"COMMIT" | b"END", ..] => run("COMMIT", Deed::EndTransaction),
        [b"ROLLBACK" | b"ABORT", ..] => run("ROLLBACK", Deed::EndTransaction),
        [b"PREPARE", b"TRANSACTION", ..] => run("PREPARE TRANSACTION", Deed::EndTransaction),
        [b"BEGIN" | b"START", ..] => run("BEGIN", Deed::BeginTransaction),
        [b"SAVEPOINT", ..] => run("SAVEPOINT", Deed::Savepoint),
        [b"RELEASE", ..] => run("RELEASE", Deed::Savepoint),
        [b"LISTEN", ..] => run("LISTEN", Deed::Notify),
        [b"UNLISTEN", ..] => run("UNLISTEN", Deed::Notify),
        [b"NOTIFY", ..] => run("NOTIFY", Deed::Notify),
        [b"PREPARE", ..] => run("PREPARE", Deed::SessionStatement),
        [b"EXECUTE", ..] => run("EXECUTE", Deed::SessionStatement),
        [b"DEALLOCATE", ..] => run("DEALLOCATE", Deed::SessionStatement),
        [b"DISCARD", ..] => run("DISCARD", Deed::SessionStatement),
        [b"SET", second, ..] if *second != b"LOCAL" && *second != b"CONSTRAINTS" => {
            run("SET", Deed::SetForSession)
        }
        [b"RESET", ..] => run("RESET", Deed::SetForSession),
        [b"COPY", ..] => run("COPY", Deed::CopyToClient),
        [b"CREATE", rest @ ..] if makes_temporary(rest) => {
            Some(("create temporary objects".to_owned(), Deed::Temporary))
        }
        [first, ..] if may_begin(first) => named_function(sql),
        _ => run("an unknown command", Deed::Unknown),
    }
}

/// Whether a statement with this first word has no effect on the transaction or session as a whole.
fn may_begin(word: &[u8]) -> bool {
    const QUERIES: [&[u8]; 9] = [
        b"SELECT", b"WITH", b"VALUES", b"TABLE", b"INSERT", b"UPDATE", b"DELETE", b"MERGE",
        b"EXPLAIN",
    ];
    const UTILITIES: [&[u8]; 18] = [
        b"CREATE",
        b"ALTER",
        b"DROP",
        b"COMMENT",
        b"SECURITY",
        b"GRANT",
        b"REVOKE",
        b"REASSIGN",
        b"IMPORT",
        b"TRUNCATE",
        b"LOCK",
        b"REFRESH",
        b"ANALYZE",
        b"ANALYSE",
        b"VACUUM",
        b"REINDEX",
        b"CLUSTER",
        b"CALL",
    ];
    QUERIES.contains(&word) || UTILITIES.contains(&word)
}

/// Whether what follows CREATE says that it is temporary.
fn makes_temporary(words: &[&[u8]]) -> bool {
    const BEFORE: [&[u8]; 4] = [b"OR", b"REPLACE", b"LOCAL", b"GLOBAL"];
    words
        .iter()
        .find(|word| !BEFORE.contains(word))
        .is_some_and(|word| *word == b"TEMP" || *word == b"TEMPORARY")
}

/// A function that may not be called, by its name anywhere in the text.
fn named_function(sql: &[u8]) -> Option<(String, Deed)> {
    sql.split(|b| !is_in_word(*b)).find_map(|word| {
        let name = std::str::from_utf8(word).ok()?.to_ascii_lowercase();
        let deed = if name == "set_config" { Some(Deed::SetForSession) } else { function(&name) };
        Some((format!("call {name}()"), deed?))
    })
}

fn is_in_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// The first words of a statement in upper case, without comments and what may stand in front of it.
fn first_words(sql: &[u8]) -> Vec<Vec<u8>> {
    const ENOUGH: usize = 5;
    let mut words: Vec<Vec<u8>> = Vec::new();
    let mut rest = skip_space(sql);
    while let Some((b';' | b'(', behind)) = rest.split_first() {
        rest = skip_space(behind);
    }
    while words.len() < ENOUGH {
        let length = rest.iter().take_while(|b| is_in_word(**b)).count();
        if length == 0 {
            break;
        }
        words.push(rest[..length].to_ascii_uppercase());
        rest = skip_space(&rest[length..]);
    }
    words
}

/// What follows white space and comments, which nest, as any version takes them: a vertical tab is white space from
/// PostgreSQL 16 on.
fn skip_space(mut sql: &[u8]) -> &[u8] {
    loop {
        let space = sql.iter().take_while(|b| b.is_ascii_whitespace() || **b == b'\x0B').count();
        sql = &sql[space..];
        if let Some(line) = sql.strip_prefix(b"--") {
            let end = line.iter().position(|b| matches!(b, b'\n' | b'\r')).unwrap_or(line.len());
            sql = &line[end..];
        } else if sql.starts_with(b"/*") {
            let mut depth = 0;
            let mut at = 0;
            loop {
                match sql.get(at..at + 2) {
                    Some(b"/*") => (depth, at) = (depth + 1, at + 2),
                    Some(b"*/") => (depth, at) = (depth - 1, at + 2),
                    Some(_) => at += 1,
                    None => return &[],
                }
                if depth == 0 {
                    break;
                }
            }
            sql = &sql[at..];
        } else {
            return sql;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deed(sql: &str) -> Option<Deed> {
        of_unparsed(sql.as_bytes()).map(|(_, deed)| deed)
    }

    #[test]
    fn first_words_tell_what_no_grammar_has_to() {
        assert_eq!(deed("COMMIT AND SOMETHING NEW"), Some(Deed::EndTransaction));
        assert_eq!(deed(" /* a /* b */ c */ -- d\n commit"), Some(Deed::EndTransaction));
        assert_eq!(deed("rollback to s NEW"), Some(Deed::Savepoint));
        assert_eq!(deed("ROLLBACK TRANSACTION TO s NEW"), Some(Deed::Savepoint));
        assert_eq!(deed("COMMIT PREPARED 'x' NEW"), Some(Deed::SettlePrepared));
        assert_eq!(deed("SET x NEW"), Some(Deed::SetForSession));
        assert_eq!(deed("CREATE OR REPLACE TEMP VIEW NEW"), Some(Deed::Temporary));
        assert_eq!(deed("create local temporary NEW"), Some(Deed::Temporary));
        assert_eq!(deed("CREATE INDEX temp NEW"), None);
        assert_eq!(deed("CREATE NEW"), None);
        assert_eq!(deed("(SELECT NEW)"), None);
    }

    #[test]
    fn what_no_word_tells_is_refused() {
        for sql in [
            "",
            ";",
            "/* COMMIT",
            "/*/ COMMIT",
            "COMMITTED",
            "SET LOCAL x NEW",
            "SET",
            "SET CONSTRAINTS NEW",
            "\"COMMIT\"",
            "SET LOCAL\x0Brole pg_monitor",
            "DECLARE x NEW CURSOR",
            "\u{feff}COMMIT",
        ] {
            assert_eq!(deed(sql), Some(Deed::Unknown), "{sql:?}");
        }
    }

    /// What only newer scanners than PostgreSQL 15's can read.
    #[test]
    fn white_space_of_any_version_hides_nothing() {
        for (sql, expected) in [
            (";ROLLBACK TO s2\x0B", Deed::Savepoint),
            ("\x0BCOMMIT", Deed::EndTransaction),
            (";COMMIT\x0B", Deed::EndTransaction),
            ("-- x\rCOMMIT\x0B", Deed::EndTransaction),
            ("\x0BCOMMIT AND CHAIN", Deed::EndTransaction),
            ("/* a */ ; -- b\r ;\x0B;COMMIT", Deed::EndTransaction),
            ("ROLLBACK\x0BTO\x0Bs2", Deed::Savepoint),
            (";SAVEPOINT s2\x0B", Deed::Savepoint),
            ("\x0BSET lock_timeout=77", Deed::SetForSession),
            (";SET search_path=foo\x0B", Deed::SetForSession),
            (";LISTEN a\x0B", Deed::Notify),
            (";COPY t FROM STDIN\x0B", Deed::CopyToClient),
            ("SELECT pg_advisory_lock(0x10)", Deed::SessionLock),
            ("SELECT \"pg_catalog\".\"pg_advisory_unlock_all\"()\x0B", Deed::SessionLock),
            ("\x0BSELECT PG_NOTIFY('a', 'b')", Deed::Notify),
            ("VALUES (set_config('a', 'b', false), 0x10)", Deed::SetForSession),
        ] {
            assert_eq!(deed(sql), Some(expected), "{sql:?}");
        }
    }

    #[test]
    fn settings_are_for_the_transaction_only_and_some_not_even_that() {
        assert_eq!(setting("search_path", true), None);
        assert_eq!(setting("search_path", false), Some(Deed::SetForSession));
        assert_eq!(setting("DateStyle", true), Some(Deed::SetFixed));
        assert_eq!(setting("role", true), Some(Deed::SetFixed));
        assert_eq!(setting("array_nulls", true), Some(Deed::SetFixed));
        assert_eq!(setting("transaction_read_only", true), Some(Deed::SetTransaction));
    }

    #[test]
    fn scans_cursors_are_told_by_their_names() {
        assert!(is_scan_cursor(Some(b"c17")) && is_scan_cursor(None));
        assert!(!is_scan_cursor(Some(b"c")) && !is_scan_cursor(Some(b"c1x")));
        assert!(!is_scan_cursor(Some(b"x1")));
    }

    #[test]
    fn transaction_locks_are_fine() {
        assert_eq!(function("pg_advisory_xact_lock"), None);
        assert_eq!(function("pg_advisory_lock"), Some(Deed::SessionLock));
        assert_eq!(function("nextval"), None);
    }
}
