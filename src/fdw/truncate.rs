//! TRUNCATE: one remote command for all tables of a server, in the remote transaction like any
//! other write.

use pgrx::pg_sys::{self, DropBehavior, List};

use crate::fdw::estimates::{self, Before};
use crate::fdw::names::Table;
use crate::pg::error::{Error, Result, SqlState, boundary, c_string};
use crate::pg::globals::current_user;
use crate::pg::node;
use crate::remote::options::parse_bool;
use crate::xact::attach_to_write;

/// `ExecForeignTruncate`: called once per server, with all its tables that the command names or
/// includes.
///
/// # Safety
/// Called by TRUNCATE with a list of open foreign tables of one server.
pub unsafe extern "C-unwind" fn execute(
    relations: *mut List,
    behavior: DropBehavior::Type,
    restart_identity: bool,
) {
    boundary(|| {
        // SAFETY: open relations, by contract.
        let tables: Vec<Table> = unsafe {
            node::pointers(relations)
                .map(|relation| truncatable(relation))
                .collect::<Result<_>>()?
        };
        let names: Vec<Vec<u8>> = tables.iter().map(Table::remote_name).collect();
        let identity: &[u8] = if restart_identity { b" RESTART" } else { b" CONTINUE" };
        let dependents: &[u8] =
            if behavior == DropBehavior::DROP_CASCADE { b" CASCADE" } else { b" RESTRICT" };
        let list = names.join(&b", "[..]);
        let sql = c_string([b"TRUNCATE ", &list[..], identity, b" IDENTITY", dependents].concat());
        let serverid = tables.first().expect("TRUNCATE of at least one table").options.serverid;
        let session = attach_to_write(current_user(), serverid)?;
        estimates::end_planner_transactions(Before::ExclusiveLock)?;
        session.run(sql, &[])?;
        Ok(())
    })
}

/// The table, if the option `truncatable` (default on) allows to truncate it.
unsafe fn truncatable(relation: pg_sys::Relation) -> Result<Table> {
    // SAFETY: as in `execute`.
    let (table, name) = unsafe { (Table::read(relation), node::relation_name(relation)) };
    if table.options.get(c"truncatable").and_then(parse_bool) == Some(false) {
        return Err(Error::new(
            SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
            [b"foreign table \"", name.to_bytes(), b"\" does not allow truncates"].concat(),
        ));
    }
    Ok(table)
}
