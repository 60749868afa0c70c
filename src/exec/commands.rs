//! The commands in a text, how each can be run, and the refusal of those with an effect that a
//! participant's transaction does not allow.
//!
//! This server's own grammar reads the text. The other server may know more: a text that does not
//! parse here is judged by its words alone ([`unparsed`]).

use std::ffi::{CStr, CString};

use pgrx::pg_sys::{self, Node, NodeTag};

use crate::exec::inspect::{inspect, into_clause};
use crate::exec::rules::Forbidden;
use crate::exec::unparsed;
use crate::pg::error::{Error, Result, SqlState, c_string, catch};
use crate::pg::{node, raw};

/// How a command can be run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A query that a cursor can fetch.
    Query,
    /// Any other command that only reads.
    Report,
    /// Any other command that locks tables as a query does.
    Data,
    /// A command that may lock tables exclusively.
    Utility,
}

/// One command of a text.
pub struct Command {
    /// Its text, without the semicolon.
    pub sql: CString,
    /// How it can be run.
    pub kind: Kind,
}

/// The commands in `text`, none of which has an effect that a transaction on `server` does not
/// allow.
///
/// # Errors
/// 2D000 or 0A000 for a command with such an effect, 42601 for a text without a command.
pub fn read(text: &CStr, server: &CStr) -> Result<Vec<Command>> {
    let commands = match parse(text) {
        Ok(list) => list,
        Err(error) if is_about_text(&error) => {
            if let Some((what, forbidden)) = unparsed::forbidden(text.to_bytes()) {
                return Err(refusal(what.as_bytes(), forbidden, server));
            }
            return Ok(vec![Command { sql: text.to_owned(), kind: Kind::Utility }]);
        }
        Err(error) => return Err(error),
    };
    let mut read = Vec::new();
    // SAFETY: a list of RawStmt in this call's memory, with positions inside the text.
    unsafe {
        for statement in node::pointers::<pg_sys::RawStmt>(commands) {
            if let Some(found) = inspect((*statement).stmt)? {
                return Err(refusal(&found.what, found.forbidden, server));
            }
            let rest = &text.to_bytes()[(*statement).stmt_location as usize..];
            let length = match (*statement).stmt_len {
                0 => rest.len(),
                length => length as usize,
            };
            let sql = c_string(rest[..length].trim_ascii());
            read.push(Command { sql, kind: kind_of((*statement).stmt) });
        }
    }
    if read.is_empty() {
        return Err(Error::new(SqlState::SYNTAX_ERROR, "no command to run"));
    }
    Ok(read)
}

/// `raw_parser()`: a list of `RawStmt`.
fn parse(text: &CStr) -> Result<*mut pg_sys::List> {
    // SAFETY: a C string in the server's encoding. The parser holds nothing that an ERROR would
    // leave.
    catch(|| unsafe { raw::raw_parser(text.as_ptr(), pg_sys::RawParseMode::RAW_PARSE_DEFAULT) })
}

/// Whether a parser's error is about the text, and not about memory, the stack or a cancel.
fn is_about_text(error: &Error) -> bool {
    [b"42000", b"22000", b"0A000"]
        .iter()
        .any(|class| SqlState::new(class).class() == error.sqlstate().class())
}

/// Refuses what a statement does on `server`, or has done there; `what` says it in words.
pub fn refusal(what: &[u8], forbidden: Forbidden, server: &CStr) -> Error {
    let refusal = forbidden.refusal();
    Error::new(
        SqlState::new(&refusal.sqlstate),
        [b"cannot ", what, b" on server \"", server.to_bytes(), b"\""].concat(),
    )
    .detail(refusal.detail)
    .hint(refusal.hint)
}

/// How a statement can be run.
///
/// # Safety
/// A node that the parser made.
unsafe fn kind_of(statement: *mut Node) -> Kind {
    // SAFETY: the tag says which struct it is.
    unsafe {
        match (*statement).type_ {
            NodeTag::T_SelectStmt => {
                let select = &*statement.cast::<pg_sys::SelectStmt>();
                if !into_clause(select).is_null() {
                    Kind::Utility
                } else if writes_in_with(select.withClause) {
                    Kind::Data
                } else {
                    Kind::Query
                }
            }
            NodeTag::T_InsertStmt
            | NodeTag::T_UpdateStmt
            | NodeTag::T_DeleteStmt
            | NodeTag::T_MergeStmt
            | NodeTag::T_FetchStmt => Kind::Data,
            NodeTag::T_VariableShowStmt => Kind::Report,
            NodeTag::T_ExplainStmt => {
                match kind_of((*statement.cast::<pg_sys::ExplainStmt>()).query) {
                    Kind::Query => Kind::Report,
                    other => other,
                }
            }
            _ => Kind::Utility,
        }
    }
}

/// Whether WITH has commands other than queries: no cursor can run those.
unsafe fn writes_in_with(with: *const pg_sys::WithClause) -> bool {
    // SAFETY: NULL or a clause that the parser made, with a list of its members.
    unsafe {
        with.as_ref().is_some_and(|with| {
            node::pointers::<pg_sys::CommonTableExpr>(with.ctes)
                .any(|member| (*(*member).ctequery).type_ != NodeTag::T_SelectStmt)
        })
    }
}
