//! `pg_fdw_xacts_handler()`: the table of callbacks.
//!
//! It starts from zeros and takes a fixed list of planning and explaining callbacks from
//! postgres_fdw. Everything else is ours or NULL: an execution callback of postgres_fdw would take
//! our state for its own. The pointers are copied as they are, so that PostgreSQL calls them
//! without a frame of ours in between.

use pgrx::pg_sys::{self, Datum, FdwRoutine, Oid};

#[cfg(feature = "pg19")]
use crate::fdw::statistics;
use crate::fdw::{
    analyze, async_scan, batch, direct, estimates, explain, import, insert, modify, scan, stock,
    truncate,
};
use crate::pg::error::boundary;

/// The call convention's record of `pg_fdw_xacts_handler`.
#[unsafe(no_mangle)]
pub extern "C" fn pg_finfo_pg_fdw_xacts_handler() -> *const pg_sys::Pg_finfo_record {
    const RECORD: pg_sys::Pg_finfo_record = pg_sys::Pg_finfo_record { api_version: 1 };
    &RECORD
}

/// `pg_fdw_xacts_handler() returns fdw_handler`. It does not check whether the library is
/// preloaded, because views of `information_schema` call it; attaching to a server does.
///
/// # Safety
/// Called by PostgreSQL.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn pg_fdw_xacts_handler(_: pg_sys::FunctionCallInfo) -> Datum {
    boundary(|| {
        let stock = stock::routine()?;
        // SAFETY: a valid struct of postgres_fdw; ours is palloc'ed, as the caller expects.
        unsafe {
            let routine: *mut FdwRoutine = pg_sys::palloc0(size_of::<FdwRoutine>()).cast();
            *routine = ours(&*stock);
            Ok(Datum::from(routine))
        }
    })
}

/// Whether the tables of a server are executed here.
pub fn is_ours(serverid: Oid) -> bool {
    // SAFETY: catalog entries in this call's memory; a handler returns its routine.
    unsafe {
        let wrapper = (*pg_sys::GetForeignServer(serverid)).fdwid;
        let handler = (*pg_sys::GetForeignDataWrapper(wrapper)).fdwhandler;
        handler != Oid::INVALID
            && (*pg_sys::GetFdwRoutine(handler)).BeginForeignScan.map(|f| f as usize)
                == Some(scan::begin as *const () as usize)
    }
}

fn ours(stock: &FdwRoutine) -> FdwRoutine {
    let mut routine = FdwRoutine {
        type_: pg_sys::NodeTag::T_FdwRoutine,

        GetForeignRelSize: estimates::in_front_of(stock),
        GetForeignPaths: stock.GetForeignPaths,
        GetForeignPlan: stock.GetForeignPlan,
        GetForeignJoinPaths: stock.GetForeignJoinPaths,
        GetForeignUpperPaths: stock.GetForeignUpperPaths,
        AddForeignUpdateTargets: stock.AddForeignUpdateTargets,
        PlanForeignModify: stock.PlanForeignModify,
        PlanDirectModify: stock.PlanDirectModify,
        IsForeignRelUpdatable: stock.IsForeignRelUpdatable,
        // It reads the plan only.
        RecheckForeignScan: stock.RecheckForeignScan,

        BeginForeignScan: Some(scan::begin),
        IterateForeignScan: Some(scan::iterate),
        ReScanForeignScan: Some(scan::rescan),
        EndForeignScan: Some(scan::end),

        IsForeignPathAsyncCapable: stock.IsForeignPathAsyncCapable,
        ForeignAsyncRequest: Some(async_scan::request),
        ForeignAsyncConfigureWait: Some(async_scan::configure_wait),
        ForeignAsyncNotify: Some(async_scan::notify),

        BeginForeignModify: Some(modify::begin),
        ExecForeignInsert: Some(modify::insert),
        ExecForeignBatchInsert: Some(modify::insert_batch),
        GetForeignModifyBatchSize: Some(batch::size),
        ExecForeignUpdate: Some(modify::update),
        ExecForeignDelete: Some(modify::delete),
        EndForeignModify: Some(modify::end),
        BeginForeignInsert: Some(insert::begin),
        EndForeignInsert: Some(insert::end),

        BeginDirectModify: Some(direct::begin),
        IterateDirectModify: Some(direct::iterate),
        EndDirectModify: Some(direct::end),

        ExecForeignTruncate: Some(truncate::execute),
        AnalyzeForeignTable: Some(analyze::size),
        ImportForeignSchema: Some(import::execute),
        ..FdwRoutine::default()
    };
    explain::behind(stock, &mut routine);
    #[cfg(feature = "pg19")]
    statistics::in_front_of(stock, &mut routine);
    routine
}
