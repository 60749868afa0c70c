//! Statements that this server's grammar does not know, judged by their words.
//!
//! The other server may be newer, and has the last word on the statement. It gets the statement if
//! that begins as one that may run, and names no function that may not be called.

#![forbid(unsafe_code)]

use crate::exec::lexer::{first_words, words};
use crate::exec::rules::{self, Forbidden};

/// The forbidden effect of a statement, if it has one, and what the statement does in the words of
/// a message.
pub fn forbidden(sql: &[u8]) -> Option<(String, Forbidden)> {
    let run = |name: &str, forbidden| Some((format!("run {name}"), forbidden));
    let words = first_words(sql);
    let words: Vec<&[u8]> = words.iter().map(Vec::as_slice).collect();
    match words.as_slice() {
        [b"COMMIT" | b"ROLLBACK", b"PREPARED", ..] => {
            run("COMMIT PREPARED", Forbidden::SettlePrepared)
        }
        [b"ROLLBACK", b"TO", ..] | [b"ROLLBACK", b"WORK" | b"TRANSACTION", b"TO", ..] => {
            run("ROLLBACK TO SAVEPOINT", Forbidden::Savepoint)
        }
        [b"COMMIT" | b"END", ..] => run("COMMIT", Forbidden::EndTransaction),
        [b"ROLLBACK" | b"ABORT", ..] => run("ROLLBACK", Forbidden::EndTransaction),
        [b"PREPARE", b"TRANSACTION", ..] => run("PREPARE TRANSACTION", Forbidden::EndTransaction),
        [b"BEGIN" | b"START", ..] => run("BEGIN", Forbidden::BeginTransaction),
        [b"SAVEPOINT", ..] => run("SAVEPOINT", Forbidden::Savepoint),
        [b"RELEASE", ..] => run("RELEASE", Forbidden::Savepoint),
        [b"LISTEN", ..] => run("LISTEN", Forbidden::Notify),
        [b"UNLISTEN", ..] => run("UNLISTEN", Forbidden::Notify),
        [b"NOTIFY", ..] => run("NOTIFY", Forbidden::Notify),
        [b"PREPARE", ..] => run("PREPARE", Forbidden::SessionStatement),
        [b"EXECUTE", ..] => run("EXECUTE", Forbidden::SessionStatement),
        [b"DEALLOCATE", ..] => run("DEALLOCATE", Forbidden::SessionStatement),
        [b"DISCARD", ..] => run("DISCARD", Forbidden::SessionStatement),
        [b"SET", second, ..] if *second != b"LOCAL" && *second != b"CONSTRAINTS" => {
            run("SET", Forbidden::SetForSession)
        }
        [b"RESET", ..] => run("RESET", Forbidden::SetForSession),
        [b"COPY", ..] => run("COPY", Forbidden::CopyToClient),
        [b"CREATE", rest @ ..] if makes_temporary(rest) => {
            Some(("create temporary objects".to_owned(), Forbidden::Temporary))
        }
        [first, ..] if may_begin(first) => named_function(sql),
        _ => run("an unknown command", Forbidden::Unknown),
    }
}

/// Whether a statement that begins with this word leaves the transaction and the session as they
/// are.
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
fn named_function(sql: &[u8]) -> Option<(String, Forbidden)> {
    words(sql).find_map(|word| {
        let name = std::str::from_utf8(word).ok()?.to_ascii_lowercase();
        let forbidden = match name.as_str() {
            "set_config" => Some(Forbidden::SetForSession),
            name => rules::function(name),
        };
        Some((format!("call {name}()"), forbidden?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn effect(sql: &str) -> Option<Forbidden> {
        forbidden(sql.as_bytes()).map(|(_, forbidden)| forbidden)
    }

    #[test]
    fn the_first_words_tell_the_effect() {
        assert_eq!(effect("COMMIT AND SOMETHING NEW"), Some(Forbidden::EndTransaction));
        assert_eq!(effect(" /* a /* b */ c */ -- d\n commit"), Some(Forbidden::EndTransaction));
        assert_eq!(effect("rollback to s NEW"), Some(Forbidden::Savepoint));
        assert_eq!(effect("ROLLBACK TRANSACTION TO s NEW"), Some(Forbidden::Savepoint));
        assert_eq!(effect("COMMIT PREPARED 'x' NEW"), Some(Forbidden::SettlePrepared));
        assert_eq!(effect("SET x NEW"), Some(Forbidden::SetForSession));
        assert_eq!(effect("CREATE OR REPLACE TEMP VIEW NEW"), Some(Forbidden::Temporary));
        assert_eq!(effect("create local temporary NEW"), Some(Forbidden::Temporary));
        assert_eq!(effect("CREATE INDEX temp NEW"), None);
        assert_eq!(effect("CREATE NEW"), None);
        assert_eq!(effect("(SELECT NEW)"), None);
    }

    #[test]
    fn an_unknown_beginning_is_refused() {
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
            assert_eq!(effect(sql), Some(Forbidden::Unknown), "{sql:?}");
        }
    }

    /// What only newer scanners than PostgreSQL 15's can read.
    #[test]
    fn white_space_of_any_version_hides_nothing() {
        for (sql, expected) in [
            (";ROLLBACK TO s2\x0B", Forbidden::Savepoint),
            ("\x0BCOMMIT", Forbidden::EndTransaction),
            (";COMMIT\x0B", Forbidden::EndTransaction),
            ("-- x\rCOMMIT\x0B", Forbidden::EndTransaction),
            ("\x0BCOMMIT AND CHAIN", Forbidden::EndTransaction),
            ("/* a */ ; -- b\r ;\x0B;COMMIT", Forbidden::EndTransaction),
            ("ROLLBACK\x0BTO\x0Bs2", Forbidden::Savepoint),
            (";SAVEPOINT s2\x0B", Forbidden::Savepoint),
            ("\x0BSET lock_timeout=77", Forbidden::SetForSession),
            (";SET search_path=foo\x0B", Forbidden::SetForSession),
            (";LISTEN a\x0B", Forbidden::Notify),
            (";COPY t FROM STDIN\x0B", Forbidden::CopyToClient),
            ("SELECT pg_advisory_lock(0x10)", Forbidden::SessionLock),
            ("SELECT \"pg_catalog\".\"pg_advisory_unlock_all\"()\x0B", Forbidden::SessionLock),
            ("\x0BSELECT PG_NOTIFY('a', 'b')", Forbidden::Notify),
            ("VALUES (set_config('a', 'b', false), 0x10)", Forbidden::SetForSession),
        ] {
            assert_eq!(effect(sql), Some(expected), "{sql:?}");
        }
    }
}
