//! `ImportForeignStatistics`, new in PostgreSQL 19: with the option `import_stats`, ANALYZE takes
//! the statistics that the table's server has. It is postgres_fdw's own, which reads them in a
//! session that the planner's estimates are asked for in, too. There it waits for no lock of ours,
//! because it reads catalogs alone.

use std::cell::Cell;
use std::ffi::c_int;

use pgrx::pg_sys::{self, FdwRoutine, List, Relation};

use crate::fdw::estimates;
use crate::pg::backend_local::BackendLocal;
use crate::pg::error::boundary;
use crate::remote::options::{TableOptions, parse_bool};

static STOCK: BackendLocal<Cell<pg_sys::ImportForeignStatistics_function>> =
    BackendLocal::new(Cell::new(None));

/// A callback in front of postgres_fdw's.
pub fn in_front_of(stock: &FdwRoutine, ours: &mut FdwRoutine) {
    STOCK.get().set(stock.ImportForeignStatistics);
    ours.ImportForeignStatistics = Some(import);
}

unsafe extern "C-unwind" fn import(relation: Relation, columns: *mut List, level: c_int) -> bool {
    let is_wanted = boundary(|| {
        // SAFETY: a foreign table that is open.
        let options = TableOptions::read(unsafe { (*relation).rd_id });
        Ok(options.get(c"import_stats").and_then(parse_bool).unwrap_or(false))
    });
    if !is_wanted {
        return false;
    }
    estimates::note_own_sessions();
    // The frame owns nothing: an ERROR may pass.
    match STOCK.get().get() {
        // SAFETY: postgres_fdw's callback with its own arguments.
        Some(stock) => unsafe { stock(relation, columns, level) },
        None => false,
    }
}
