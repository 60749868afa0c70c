//! Looks at a statement before it runs, and before it takes any lock.

use std::ffi::CStr;

use pgrx::{PgList, pg_sys};

use crate::fdw::estimates::{self, Before};
use crate::hooks::{alter, databases, drops};
use crate::pg::error::Result;
use crate::xact;

/// Refuses a statement, warns of it or prepares for it.
///
/// # Safety
/// `statement` is a valid node.
///
/// # Errors
/// The statement must not run.
pub unsafe fn before(statement: *mut pg_sys::Node) -> Result<()> {
    // What this session has delivered is not in doubt once its answer has been read.
    xact::collect_deliveries();
    // SAFETY: the tag says which struct it is; the lists hold what the grammar puts there.
    unsafe {
        match (*statement).type_ {
            pg_sys::NodeTag::T_DropStmt => {
                let drop = &*statement.cast::<pg_sys::DropStmt>();
                PgList::<pg_sys::Node>::from_pg(drop.objects)
                    .iter_ptr()
                    .filter_map(|name| text_of(name))
                    .try_for_each(|name| drops::before_statement(drop.removeType, name))
            }
            pg_sys::NodeTag::T_DropUserMappingStmt => {
                drops::before_user_mapping(&*statement.cast::<pg_sys::DropUserMappingStmt>())
            }
            pg_sys::NodeTag::T_TruncateStmt => {
                let truncate = &*statement.cast::<pg_sys::TruncateStmt>();
                PgList::<pg_sys::RangeVar>::from_pg(truncate.relations)
                    .iter_ptr()
                    .try_for_each(|name| drops::before_truncate(name))
            }
            pg_sys::NodeTag::T_AlterForeignServerStmt => {
                alter::before_server(&*statement.cast::<pg_sys::AlterForeignServerStmt>())
            }
            pg_sys::NodeTag::T_AlterFdwStmt => {
                alter::before_wrapper(&*statement.cast::<pg_sys::AlterFdwStmt>())
            }
            pg_sys::NodeTag::T_TransactionStmt => {
                before_transaction_command(&*statement.cast::<pg_sys::TransactionStmt>())
            }
            _ => databases::before(statement),
        }
    }
}

/// PREPARE TRANSACTION needs the planner's own transactions ended; in a failed transaction it is a
/// ROLLBACK, which needs nothing. What has failed unnoticed is reported before a savepoint is
/// made or released, while the transaction can still go back to the one before.
fn before_transaction_command(transaction: &pg_sys::TransactionStmt) -> Result<()> {
    use pg_sys::TransactionStmtKind as Kind;
    // SAFETY: reads the transaction's state.
    if unsafe { pg_sys::IsAbortedTransactionBlockState() } {
        return Ok(());
    }
    match transaction.kind {
        Kind::TRANS_STMT_PREPARE => estimates::end_planner_transactions(Before::Prepare),
        Kind::TRANS_STMT_SAVEPOINT | Kind::TRANS_STMT_RELEASE => xact::settle_all_owed(0),
        _ => Ok(()),
    }
}

/// The text of a node that is a string.
///
/// # Safety
/// A valid node.
unsafe fn text_of<'a>(node: *mut pg_sys::Node) -> Option<&'a CStr> {
    // SAFETY: by contract; the tag says which struct it is.
    unsafe {
        ((*node).type_ == pg_sys::NodeTag::T_String)
            .then(|| CStr::from_ptr((*node.cast::<pg_sys::String>()).sval))
    }
}
