//! What this server's processes wait for: its heavyweight locks, as `pg_locks` shows them.

use std::ffi::CStr;

use pgrx::{FromDatum, pg_sys};

use crate::pg::error::{Result, catch};
use crate::pg::raw;

/// A lock that a process waits for.
#[derive(Clone, Debug)]
pub struct Waiting {
    /// The process.
    pub pid: i32,
    /// The name of the lock's type.
    pub locktype: String,
    /// What it is on, in PostgreSQL's words.
    pub target: String,
    /// Its mode.
    pub mode: String,
    /// Since when, in PostgreSQL's microseconds; 0 in the first instants.
    pub since: i64,
}

/// What each process waits for.
///
/// # Errors
/// Out of memory.
pub fn waiting() -> Result<Vec<Waiting>> {
    // SAFETY: allocates in the current memory context, which is the transaction's.
    let locks = catch(|| unsafe { pg_sys::GetLockStatusData() })?;
    // SAFETY: as many as it says.
    let locks = unsafe { std::slice::from_raw_parts((*locks).locks, (*locks).nelements as usize) };
    let waits = locks.iter().filter(|lock| lock.waitLockMode != 0);
    waits
        .map(|lock| {
            Ok(Waiting {
                pid: lock.pid,
                locktype: locktype(u32::from(lock.locktag.locktag_type)).to_owned(),
                target: target(&lock.locktag)?,
                mode: mode(lock),
                since: lock.waitStart,
            })
        })
        .collect()
}

/// The processes that a process waits for; 0 stands for prepared transactions.
///
/// # Errors
/// Out of memory.
pub fn blockers(pid: i32) -> Result<Vec<i32>> {
    let function: pg_sys::PGFunction = Some(raw::pg_blocking_pids);
    let collation = pg_sys::InvalidOid;
    // SAFETY: a strict function of one integer, which returns an array of integers in the current
    // memory context.
    let list = catch(|| unsafe {
        let array = raw::DirectFunctionCall1Coll(function, collation, pg_sys::Datum::from(pid));
        Vec::<i32>::from_datum(array, false)
    })?;
    Ok(list.unwrap_or_default())
}

fn target(tag: &pg_sys::LOCKTAG) -> Result<String> {
    // SAFETY: the text is of the current memory context, and copied.
    catch(|| unsafe {
        let mut text = pg_sys::StringInfoData::default();
        pg_sys::initStringInfo(&mut text);
        pg_sys::DescribeLockTag(&mut text, tag);
        CStr::from_ptr(text.data).to_string_lossy().into_owned()
    })
}

fn mode(lock: &pg_sys::LockInstanceData) -> String {
    let method = pg_sys::LOCKMETHODID::from(lock.locktag.locktag_lockmethodid);
    // SAFETY: a method and a mode that the lock table has; a static string.
    let name = unsafe { CStr::from_ptr(pg_sys::GetLockmodeName(method, lock.waitLockMode)) };
    name.to_string_lossy().into_owned()
}

fn locktype(number: u32) -> &'static str {
    use pg_sys::LockTagType as T;
    match number {
        T::LOCKTAG_RELATION_EXTEND => "extend",
        T::LOCKTAG_DATABASE_FROZEN_IDS => "frozenid",
        T::LOCKTAG_PAGE => "page",
        T::LOCKTAG_TUPLE => "tuple",
        T::LOCKTAG_TRANSACTION => "transactionid",
        T::LOCKTAG_SPECULATIVE_TOKEN => "spectoken",
        _ => "other",
    }
}
