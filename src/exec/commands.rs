//! The commands in a text, and the refusal of those that a participant's transaction does not bear, by what this
//! server's own grammar makes of them ([`admission`] decides).
//!
//! The other server may know more: what does not parse here is sent as it is if its first words are those of a command
//! that may run. What a function does there is not seen here; [`super::remote`] looks afterwards.

use std::ffi::{CStr, CString, c_char, c_void};

use pgrx::pg_sys::{self, Node, NodeTag, RangeVar, VariableSetKind as Set};

use crate::exec::admission::{self, Deed};
use crate::pg::error::{Error, Result, SqlState, c_string, catch};
use crate::pg::{node, raw};

/// How a command can be run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A query that a cursor can fetch.
    Query,
    /// Any other one that only reads.
    Report,
    /// Any other one that locks tables as a query does.
    Data,
    /// It may lock tables exclusively.
    Utility,
}

/// One command of a text.
pub struct Command {
    /// Its text, without the semicolon.
    pub sql: CString,
    /// How it can be run.
    pub kind: Kind,
}

/// What is not admitted, and how it is called.
struct Found {
    what: Vec<u8>,
    deed: Deed,
}

impl Found {
    fn new(what: impl Into<Vec<u8>>, deed: Deed) -> Self {
        Self { what: what.into(), deed }
    }
}

/// The commands in `text`, of which none has an effect that a transaction on `server` does not bear.
///
/// # Errors
/// 2D000 or 0A000 for such a command, 42601 where there is none at all.
pub fn read(text: &CStr, server: &CStr) -> Result<Vec<Command>> {
    let commands = match parse(text) {
        Ok(list) => list,
        Err(error) if is_about_text(&error) => {
            if let Some((what, deed)) = admission::of_unparsed(text.to_bytes()) {
                return Err(refusal(&Found::new(what, deed), server));
            }
            return Ok(vec![Command { sql: text.to_owned(), kind: Kind::Utility }]);
        }
        Err(error) => return Err(error),
    };
    let mut read = Vec::new();
    // SAFETY: a list of RawStmt in this call's memory, with places inside of the text.
    unsafe {
        for statement in node::pointers::<pg_sys::RawStmt>(commands) {
            if let Some(found) = inspect((*statement).stmt)? {
                return Err(refusal(&found, server));
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
        return Err(Error::new(SqlState::SYNTAX_ERROR, "there is no command to run"));
    }
    Ok(read)
}

/// `raw_parser()`: a list of `RawStmt`.
fn parse(text: &CStr) -> Result<*mut pg_sys::List> {
    // SAFETY: a C string in the server's encoding. The parser reads no catalog, so nothing is left of an ERROR.
    catch(|| unsafe { raw::raw_parser(text.as_ptr(), pg_sys::RawParseMode::RAW_PARSE_DEFAULT) })
}

/// Whether a parser's error is about what was written, and not about memory, the stack or a cancel.
fn is_about_text(error: &Error) -> bool {
    [b"42000", b"22000", b"0A000"]
        .iter()
        .any(|class| SqlState::new(class).class() == error.sqlstate().class())
}

fn refusal(found: &Found, server: &CStr) -> Error {
    let objection = found.deed.objection();
    Error::new(
        SqlState::new(&objection.sqlstate),
        [b"cannot ", &found.what[..], b" on server \"", server.to_bytes(), b"\""].concat(),
    )
    .detail(objection.detail)
    .hint(objection.hint)
}

/// The refusal of something that has been done on `server`, as `what` it is called.
pub fn refusal_of(what: &str, deed: Deed, server: &CStr) -> Error {
    refusal(&Found::new(what, deed), server)
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

/// INTO of a query, which the parser puts into the first of those that UNION and the like combine.
unsafe fn into_clause(select: &pg_sys::SelectStmt) -> *mut pg_sys::IntoClause {
    let mut first = select;
    // SAFETY: a tree that the parser made.
    while let Some(left) = unsafe { first.larg.as_ref() } {
        first = left;
    }
    first.intoClause
}

/// Whether WITH has other commands than queries, which no cursor can run.
unsafe fn writes_in_with(with: *const pg_sys::WithClause) -> bool {
    // SAFETY: NULL or a clause that the parser made, with a list of its members.
    unsafe {
        with.as_ref().is_some_and(|with| {
            node::pointers::<pg_sys::CommonTableExpr>(with.ctes)
                .any(|member| (*(*member).ctequery).type_ != NodeTag::T_SelectStmt)
        })
    }
}

/// What a statement does that is not admitted.
///
/// # Safety
/// A node that the parser made.
///
/// # Errors
/// The statement is too deep for the stack.
unsafe fn inspect(statement: *mut Node) -> Result<Option<Found>> {
    // SAFETY: the tag says which struct it is; names are NULL or C strings.
    unsafe {
        let run = |deed| Some(Found::new([b"run ", name(statement).to_bytes()].concat(), deed));
        let temporary = |relation: *const RangeVar| {
            is_temporary(relation).then(|| Found::new("create temporary objects", Deed::Temporary))
        };
        Ok(match (*statement).type_ {
            NodeTag::T_TransactionStmt => {
                run(transaction((*statement.cast::<pg_sys::TransactionStmt>()).kind))
            }
            NodeTag::T_CreateStmt => temporary((*statement.cast::<pg_sys::CreateStmt>()).relation),
            NodeTag::T_ViewStmt => temporary((*statement.cast::<pg_sys::ViewStmt>()).view),
            NodeTag::T_CreateSeqStmt => {
                temporary((*statement.cast::<pg_sys::CreateSeqStmt>()).sequence)
            }
            NodeTag::T_CreateTableAsStmt => {
                let create = &*statement.cast::<pg_sys::CreateTableAsStmt>();
                match temporary((*create.into).rel) {
                    Some(found) => Some(found),
                    None => inspect(create.query)?,
                }
            }
            NodeTag::T_SelectStmt => {
                let select = &*statement.cast::<pg_sys::SelectStmt>();
                match into_clause(select).as_ref().and_then(|into| temporary(into.rel)) {
                    Some(found) => Some(found),
                    None => inspect_calls(statement)?,
                }
            }
            NodeTag::T_InsertStmt
            | NodeTag::T_UpdateStmt
            | NodeTag::T_DeleteStmt
            | NodeTag::T_MergeStmt => inspect_calls(statement)?,
            NodeTag::T_ExplainStmt => inspect((*statement.cast::<pg_sys::ExplainStmt>()).query)?,
            NodeTag::T_ListenStmt | NodeTag::T_UnlistenStmt | NodeTag::T_NotifyStmt => {
                run(Deed::Notify)
            }
            NodeTag::T_PrepareStmt
            | NodeTag::T_ExecuteStmt
            | NodeTag::T_DeallocateStmt
            | NodeTag::T_DiscardStmt => run(Deed::SessionStatement),
            NodeTag::T_CopyStmt => {
                let copy = &*statement.cast::<pg_sys::CopyStmt>();
                let what = if copy.is_from { "run COPY FROM STDIN" } else { "run COPY TO STDOUT" };
                copy.filename.is_null().then(|| Found::new(what, Deed::CopyToClient))
            }
            NodeTag::T_DeclareCursorStmt => {
                let declare = &*statement.cast::<pg_sys::DeclareCursorStmt>();
                if declare.options as u32 & pg_sys::CURSOR_OPT_HOLD != 0 {
                    Some(Found::new("declare a cursor WITH HOLD", Deed::HoldCursor))
                } else if is_scan_cursor(declare.portalname) {
                    run(Deed::ScanCursor)
                } else {
                    inspect(declare.query)?
                }
            }
            NodeTag::T_FetchStmt
                if is_scan_cursor((*statement.cast::<pg_sys::FetchStmt>()).portalname) =>
            {
                run(Deed::ScanCursor)
            }
            NodeTag::T_ClosePortalStmt
                if is_scan_cursor((*statement.cast::<pg_sys::ClosePortalStmt>()).portalname) =>
            {
                run(Deed::ScanCursor)
            }
            NodeTag::T_VariableSetStmt => {
                inspect_set(&*statement.cast::<pg_sys::VariableSetStmt>(), run)
            }
            _ => None,
        })
    }
}

/// The statement's command tag.
unsafe fn name<'a>(statement: *mut Node) -> &'a CStr {
    // SAFETY: a node that the parser made; tags are static strings.
    unsafe { CStr::from_ptr(pg_sys::CreateCommandName(statement)) }
}

fn transaction(kind: pg_sys::TransactionStmtKind::Type) -> Deed {
    use pg_sys::TransactionStmtKind as Kind;
    match kind {
        Kind::TRANS_STMT_BEGIN | Kind::TRANS_STMT_START => Deed::BeginTransaction,
        Kind::TRANS_STMT_SAVEPOINT | Kind::TRANS_STMT_RELEASE | Kind::TRANS_STMT_ROLLBACK_TO => {
            Deed::Savepoint
        }
        Kind::TRANS_STMT_COMMIT_PREPARED | Kind::TRANS_STMT_ROLLBACK_PREPARED => {
            Deed::SettlePrepared
        }
        _ => Deed::EndTransaction,
    }
}

unsafe fn is_temporary(relation: *const RangeVar) -> bool {
    // SAFETY: by contract of the caller a name that the parser made.
    unsafe {
        let schema = (*relation).schemaname;
        (*relation).relpersistence as u8 == pg_sys::RELPERSISTENCE_TEMP
            || (!schema.is_null() && CStr::from_ptr(schema) == c"pg_temp")
    }
}

unsafe fn is_scan_cursor(name: *const c_char) -> bool {
    // SAFETY: by contract of the caller NULL or a C string.
    let name = (!name.is_null()).then(|| unsafe { CStr::from_ptr(name) }.to_bytes());
    admission::is_scan_cursor(name)
}

/// SET and RESET; `run` tells of the statement as a whole.
unsafe fn inspect_set(
    set: &pg_sys::VariableSetStmt,
    run: impl Fn(Deed) -> Option<Found>,
) -> Option<Found> {
    match set.kind {
        Set::VAR_SET_MULTI => run(Deed::SetTransaction),
        Set::VAR_RESET_ALL => run(Deed::SetForSession),
        kind => {
            // SAFETY: one setting is always named.
            let name = unsafe { CStr::from_ptr(set.name) };
            let local = set.is_local && kind != Set::VAR_RESET;
            let deed = admission::setting(&name.to_string_lossy(), local)?;
            Some(Found::new([b"set \"", name.to_bytes(), b"\""].concat(), deed))
        }
    }
}

/// The first call in a statement that is not admitted.
struct Call {
    name: *const c_char,
    deed: Deed,
}

/// Looks at all calls of functions that are written in a query, an INSERT, and so on.
unsafe fn inspect_calls(statement: *mut Node) -> Result<Option<Found>> {
    let mut call: Option<Call> = None;
    let found = (&raw mut call).cast::<c_void>();
    // SAFETY: a tree that the parser made; the walker raises only when the tree is too deep.
    catch(|| unsafe { raw::raw_expression_tree_walker(statement, look_at, found) })?;
    // SAFETY: a name in the tree, or of a setting.
    Ok(call.map(|call| unsafe {
        let name = CStr::from_ptr(call.name).to_bytes();
        Found::new([b"call ", name, b"()"].concat(), call.deed)
    }))
}

/// A step of the walker, which goes on as long as it is told `false`. It owns nothing.
unsafe extern "C-unwind" fn look_at(node: *mut Node, found: *mut c_void) -> bool {
    // SAFETY: NULL or a node of the tree; the pointer that the walk began with.
    unsafe {
        if node.is_null() {
            return false;
        }
        if (*node).type_ == NodeTag::T_FuncCall {
            let function = node.cast::<pg_sys::FuncCall>();
            if let Some((name, deed)) = deed_of_call(function) {
                found.cast::<Option<Call>>().write(Some(Call { name, deed }));
                return true;
            }
        }
        raw::raw_expression_tree_walker(node, look_at, found)
    }
}

/// What calling a function of PostgreSQL's own does, with its name.
unsafe fn deed_of_call(call: *const pg_sys::FuncCall) -> Option<(*const c_char, Deed)> {
    // SAFETY: a node of the tree; names are lists of strings.
    unsafe {
        let names = (*call).funcname;
        let length = node::length(names);
        let part = |n| node::nth::<pg_sys::String>(names, n).map(|part| (*part).sval);
        if length > 1 && CStr::from_ptr(part(length - 2)?) != c"pg_catalog" {
            return None;
        }
        let name = part(length - 1)?;
        let text = CStr::from_ptr(name).to_str().ok()?;
        let deed = match text {
            "set_config" => deed_of_set_config((*call).args),
            _ => admission::function(text),
        };
        Some((name.cast_const(), deed?))
    }
}

/// `set_config(name, value, is_local)`: what is not a literal `true` may be for the session.
unsafe fn deed_of_set_config(arguments: *const pg_sys::List) -> Option<Deed> {
    // SAFETY: expressions that the parser made; the constant's own tag says what it is.
    unsafe {
        let constant = |n| {
            let mut expression: *mut Node = node::nth(arguments, n)?;
            if (*expression).type_ == NodeTag::T_TypeCast {
                expression = (*expression.cast::<pg_sys::TypeCast>()).arg;
            }
            let constant = expression.cast::<pg_sys::A_Const>();
            ((*expression).type_ == NodeTag::T_A_Const && !(*constant).isnull)
                .then(|| &(*constant).val)
        };
        let local =
            constant(2).is_some_and(|v| v.node.type_ == NodeTag::T_Boolean && v.boolval.boolval);
        match constant(0) {
            Some(value) if value.node.type_ == NodeTag::T_String => {
                admission::setting(&CStr::from_ptr(value.sval.sval).to_string_lossy(), local)
            }
            // Which it is turns out there.
            _ => (!local).then_some(Deed::SetForSession),
        }
    }
}
