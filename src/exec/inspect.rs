//! The forbidden effects of a statement that this server's grammar knows.
//!
//! What a function does on the other server is not seen here; [`super::remote`] looks afterwards.

use std::ffi::{CStr, c_char, c_void};

use pgrx::pg_sys::{self, Node, NodeTag, RangeVar, VariableSetKind as Set};

use crate::exec::rules::{self, Forbidden};
use crate::pg::error::{Result, catch};
use crate::pg::{node, raw};

/// A forbidden effect.
pub struct Found {
    /// What the statement does, in the words of a message.
    pub what: Vec<u8>,
    /// The effect.
    pub forbidden: Forbidden,
}

impl Found {
    fn new(what: impl Into<Vec<u8>>, forbidden: Forbidden) -> Self {
        Self { what: what.into(), forbidden }
    }
}

/// The forbidden effect of a statement, if it has one.
///
/// # Safety
/// A node that the parser made.
///
/// # Errors
/// The statement is too deep for the stack.
pub unsafe fn inspect(statement: *mut Node) -> Result<Option<Found>> {
    // SAFETY: the tag says which struct it is; names are NULL or C strings.
    unsafe {
        let run =
            |forbidden| Some(Found::new([b"run ", name(statement).to_bytes()].concat(), forbidden));
        let temporary = |relation: *const RangeVar| {
            is_temporary(relation)
                .then(|| Found::new("create temporary objects", Forbidden::Temporary))
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
                run(Forbidden::Notify)
            }
            NodeTag::T_PrepareStmt
            | NodeTag::T_ExecuteStmt
            | NodeTag::T_DeallocateStmt
            | NodeTag::T_DiscardStmt => run(Forbidden::SessionStatement),
            NodeTag::T_CopyStmt => {
                let copy = &*statement.cast::<pg_sys::CopyStmt>();
                let what = if copy.is_from { "run COPY FROM STDIN" } else { "run COPY TO STDOUT" };
                copy.filename.is_null().then(|| Found::new(what, Forbidden::CopyToClient))
            }
            NodeTag::T_DeclareCursorStmt => {
                let declare = &*statement.cast::<pg_sys::DeclareCursorStmt>();
                if declare.options as u32 & pg_sys::CURSOR_OPT_HOLD != 0 {
                    Some(Found::new("declare a cursor WITH HOLD", Forbidden::HoldCursor))
                } else if is_scan_cursor(declare.portalname) {
                    run(Forbidden::ScanCursor)
                } else {
                    inspect(declare.query)?
                }
            }
            NodeTag::T_FetchStmt
                if is_scan_cursor((*statement.cast::<pg_sys::FetchStmt>()).portalname) =>
            {
                run(Forbidden::ScanCursor)
            }
            NodeTag::T_ClosePortalStmt
                if is_scan_cursor((*statement.cast::<pg_sys::ClosePortalStmt>()).portalname) =>
            {
                run(Forbidden::ScanCursor)
            }
            NodeTag::T_VariableSetStmt => {
                inspect_set(&*statement.cast::<pg_sys::VariableSetStmt>(), run)
            }
            _ => None,
        })
    }
}

/// The statement's command tag.
///
/// # Safety
/// A node that the parser made.
unsafe fn name<'a>(statement: *mut Node) -> &'a CStr {
    // SAFETY: by contract; tags are static strings.
    unsafe { CStr::from_ptr(pg_sys::CreateCommandName(statement)) }
}

fn transaction(kind: pg_sys::TransactionStmtKind::Type) -> Forbidden {
    use pg_sys::TransactionStmtKind as Kind;
    match kind {
        Kind::TRANS_STMT_BEGIN | Kind::TRANS_STMT_START => Forbidden::BeginTransaction,
        Kind::TRANS_STMT_SAVEPOINT | Kind::TRANS_STMT_RELEASE | Kind::TRANS_STMT_ROLLBACK_TO => {
            Forbidden::Savepoint
        }
        Kind::TRANS_STMT_COMMIT_PREPARED | Kind::TRANS_STMT_ROLLBACK_PREPARED => {
            Forbidden::SettlePrepared
        }
        _ => Forbidden::EndTransaction,
    }
}

/// Whether the relation that a statement creates is temporary.
///
/// # Safety
/// A name that the parser made.
unsafe fn is_temporary(relation: *const RangeVar) -> bool {
    // SAFETY: by contract.
    unsafe {
        let schema = (*relation).schemaname;
        (*relation).relpersistence as u8 == pg_sys::RELPERSISTENCE_TEMP
            || (!schema.is_null() && CStr::from_ptr(schema) == c"pg_temp")
    }
}

/// Whether a scan of a foreign table may have given its cursor this name.
///
/// # Safety
/// NULL or a C string.
unsafe fn is_scan_cursor(name: *const c_char) -> bool {
    // SAFETY: by contract.
    let name = (!name.is_null()).then(|| unsafe { CStr::from_ptr(name) }.to_bytes());
    rules::is_scan_cursor(name)
}

/// SET and RESET; `run` makes a finding about the statement as a whole.
///
/// # Safety
/// A statement that the parser made.
unsafe fn inspect_set(
    set: &pg_sys::VariableSetStmt,
    run: impl Fn(Forbidden) -> Option<Found>,
) -> Option<Found> {
    match set.kind {
        Set::VAR_SET_MULTI => run(Forbidden::SetTransaction),
        Set::VAR_RESET_ALL => run(Forbidden::SetForSession),
        kind => {
            // SAFETY: one setting is always named.
            let name = unsafe { CStr::from_ptr(set.name) };
            let local = set.is_local && kind != Set::VAR_RESET;
            let forbidden = rules::setting(&name.to_string_lossy(), local)?;
            Some(Found::new([b"set \"", name.to_bytes(), b"\""].concat(), forbidden))
        }
    }
}

/// A call of a function that may not be called.
struct Call {
    name: *const c_char,
    forbidden: Forbidden,
}

/// The first function called in a query, an INSERT and so on that may not be called.
///
/// # Safety
/// A node that the parser made.
unsafe fn inspect_calls(statement: *mut Node) -> Result<Option<Found>> {
    let mut call: Option<Call> = None;
    let found = (&raw mut call).cast::<c_void>();
    // SAFETY: a tree that the parser made; the walker raises only when the tree is too deep.
    catch(|| unsafe { raw::raw_expression_tree_walker(statement, look_at, found) })?;
    // SAFETY: a name in the tree, or of a setting.
    Ok(call.map(|call| unsafe {
        let name = CStr::from_ptr(call.name).to_bytes();
        Found::new([b"call ", name, b"()"].concat(), call.forbidden)
    }))
}

/// A step of the walker, which goes on while this returns `false`. Its frame owns nothing, because
/// the walker may raise.
unsafe extern "C-unwind" fn look_at(node: *mut Node, found: *mut c_void) -> bool {
    // SAFETY: NULL or a node of the tree; the pointer that the walk began with.
    unsafe {
        if node.is_null() {
            return false;
        }
        if (*node).type_ == NodeTag::T_FuncCall {
            let function = node.cast::<pg_sys::FuncCall>();
            if let Some((name, forbidden)) = effect_of_call(function) {
                found.cast::<Option<Call>>().write(Some(Call { name, forbidden }));
                return true;
            }
        }
        raw::raw_expression_tree_walker(node, look_at, found)
    }
}

/// The forbidden effect of calling one of PostgreSQL's own functions, with its name.
///
/// # Safety
/// A node that the parser made.
unsafe fn effect_of_call(call: *const pg_sys::FuncCall) -> Option<(*const c_char, Forbidden)> {
    // SAFETY: by contract; names are lists of strings.
    unsafe {
        let names = (*call).funcname;
        let length = node::length(names);
        let part = |n| node::nth::<pg_sys::String>(names, n).map(|part| (*part).sval);
        if length > 1 && CStr::from_ptr(part(length - 2)?) != c"pg_catalog" {
            return None;
        }
        let name = part(length - 1)?;
        let text = CStr::from_ptr(name).to_str().ok()?;
        let forbidden = match text {
            "set_config" => effect_of_set_config((*call).args),
            _ => rules::function(text),
        };
        Some((name.cast_const(), forbidden?))
    }
}

/// `set_config(name, value, is_local)`: an `is_local` that is not the literal `true` may change the
/// setting for the session.
///
/// # Safety
/// A list of expressions that the parser made.
unsafe fn effect_of_set_config(arguments: *const pg_sys::List) -> Option<Forbidden> {
    // SAFETY: by contract; the constant's own tag says what it is.
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
                rules::setting(&CStr::from_ptr(value.sval.sval).to_string_lossy(), local)
            }
            // Which setting it is turns out there; a fixed one is noticed afterwards.
            _ => (!local).then_some(Forbidden::SetForSession),
        }
    }
}

/// The INTO clause of a query: the parser keeps it in the first of the queries that UNION and the
/// like combine.
///
/// # Safety
/// A query that the parser made.
pub unsafe fn into_clause(select: &pg_sys::SelectStmt) -> *mut pg_sys::IntoClause {
    let mut first = select;
    // SAFETY: by contract.
    while let Some(left) = unsafe { first.larg.as_ref() } {
        first = left;
    }
    first.intoClause
}
