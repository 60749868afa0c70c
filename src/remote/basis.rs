//! What a connection is made from: the catalog rows of its server and user mapping. The resolver is
//! not part of the client's transaction and reads committed rows. So the rows are read here in two
//! ways: as this transaction sees them, and as all others do.

use pgrx::pg_sys::{self, AttrNumber, Datum, Oid};

use crate::pg::error::Result;
use crate::remote::options::{
    self, Mapping, OptionPair, Purpose, Server, option, parse_bool, read_list,
};

/// Where a connection leads, and as whom.
#[derive(Clone, PartialEq, Eq)]
pub struct Basis {
    /// The user mapping.
    pub mapping: Oid,
    /// The wrapper's handler.
    handler: Oid,
    /// The options for libpq.
    info: Vec<OptionPair>,
}

/// Whose view of the catalogs is read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum View {
    /// This transaction's.
    Own,
    /// That of all other transactions, and of everybody if this transaction aborts.
    Others,
}

/// What the resolver would connect with.
#[derive(Clone, PartialEq, Eq)]
pub struct Seen {
    /// Where it leads, and as whom.
    pub basis: Basis,
    /// It does not need a password of the user's own, or there is one.
    may_connect: bool,
}

impl Basis {
    /// That of a connection that is being made.
    ///
    /// # Errors
    /// libpq's list of options cannot be had.
    pub fn of(server: &Server, mapping: &Mapping) -> Result<Self> {
        Self::with(handler_of(mapping.serverid), server, mapping)
    }

    fn with(handler: Oid, server: &Server, mapping: &Mapping) -> Result<Self> {
        let info = options::conninfo(server, mapping, Purpose::Resolver)?;
        Ok(Self { mapping: mapping.oid, handler, info })
    }
}

/// The handler of a server that exists, as this transaction sees it.
fn handler_of(serverid: Oid) -> Oid {
    // SAFETY: catalog entries in this call's memory.
    unsafe {
        let wrapper = (*pg_sys::GetForeignServer(serverid)).fdwid;
        (*pg_sys::GetForeignDataWrapper(wrapper)).fdwhandler
    }
}

impl Seen {
    /// What a user's connection to a server would be made from; `None` where the server or a
    /// mapping is missing.
    ///
    /// # Errors
    /// libpq's list of options cannot be had.
    pub fn read(userid: Oid, serverid: Oid, view: View) -> Result<Option<Self>> {
        let eyes = Eyes::open(view);
        let Some((wrapper, server)) = eyes.server(serverid) else { return Ok(None) };
        let mapping = eyes.mapping(userid, serverid);
        let Some(mapping) = mapping.or_else(|| eyes.mapping(Oid::INVALID, serverid)) else {
            return Ok(None);
        };
        let handler = eyes.handler(wrapper).unwrap_or(Oid::INVALID);
        let waived = option(&mapping.options, c"password_required").and_then(parse_bool);
        let has_password = option(&mapping.options, c"password").is_some_and(|p| !p.is_empty());
        let may_connect = waived == Some(false) || has_password || eyes.is_superuser(userid);
        Ok(Some(Self { basis: Basis::with(handler, &server, &mapping)?, may_connect }))
    }
}

/// A snapshot to read catalogs with.
struct Eyes(pg_sys::Snapshot);

impl Eyes {
    fn open(view: View) -> Self {
        Self(match view {
            // The newest catalog snapshot.
            View::Own => std::ptr::null_mut(),
            // SAFETY: registering makes a copy, which may be changed. With the first command id it
            // shows nothing that this transaction has done.
            View::Others => unsafe {
                let snapshot = pg_sys::RegisterSnapshot(pg_sys::GetLatestSnapshot());
                (*snapshot).curcid = pg_sys::FirstCommandId;
                snapshot
            },
        })
    }

    /// The first row of a catalog that an index finds by OIDs in its first columns.
    fn find<T>(
        &self,
        catalog: Oid,
        index: u32,
        keys: &[(u32, Oid)],
        f: impl FnOnce(pg_sys::HeapTuple, pg_sys::TupleDesc) -> T,
    ) -> Option<T> {
        let mut conditions = [pg_sys::ScanKeyData::default(); 2];
        for (condition, (column, key)) in conditions.iter_mut().zip(keys) {
            let equal = pg_sys::BTEqualStrategyNumber as u16;
            // SAFETY: a column of type oid.
            unsafe {
                pg_sys::ScanKeyInit(
                    condition,
                    *column as AttrNumber,
                    equal,
                    pg_sys::F_OIDEQ.into(),
                    Datum::from(*key),
                );
            }
        }
        // SAFETY: a catalog and its index; keys and snapshot outlive the scan, and the row is read
        // before that ends.
        unsafe {
            let lock = pg_sys::AccessShareLock as i32;
            let relation = pg_sys::table_open(catalog, lock);
            let count = keys.len() as i32;
            let scan = pg_sys::systable_beginscan(
                relation,
                index.into(),
                true,
                self.0,
                count,
                conditions.as_mut_ptr(),
            );
            let tuple = pg_sys::systable_getnext(scan);
            let found = (!tuple.is_null()).then(|| f(tuple, (*relation).rd_att));
            pg_sys::systable_endscan(scan);
            pg_sys::table_close(relation, lock);
            found
        }
    }

    fn server(&self, oid: Oid) -> Option<(Oid, Server)> {
        let keys = [(pg_sys::Anum_pg_foreign_server_oid, oid)];
        self.find(
            pg_sys::ForeignServerRelationId,
            pg_sys::ForeignServerOidIndexId,
            &keys,
            |tuple, columns| {
                // SAFETY: a row of that catalog.
                unsafe {
                    let form =
                        &*pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_foreign_server>();
                    let options =
                        read_options(tuple, columns, pg_sys::Anum_pg_foreign_server_srvoptions);
                    (form.srvfdw, Server { name: Default::default(), options })
                }
            },
        )
    }

    fn mapping(&self, userid: Oid, serverid: Oid) -> Option<Mapping> {
        let keys = [
            (pg_sys::Anum_pg_user_mapping_umuser, userid),
            (pg_sys::Anum_pg_user_mapping_umserver, serverid),
        ];
        self.find(
            pg_sys::UserMappingRelationId,
            pg_sys::UserMappingUserServerIndexId,
            &keys,
            |tuple, columns| {
                // SAFETY: a row of that catalog.
                unsafe {
                    let form =
                        &*pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_user_mapping>();
                    let options =
                        read_options(tuple, columns, pg_sys::Anum_pg_user_mapping_umoptions);
                    Mapping { oid: form.oid, userid, serverid, options }
                }
            },
        )
    }

    fn handler(&self, wrapper: Oid) -> Option<Oid> {
        let keys = [(pg_sys::Anum_pg_foreign_data_wrapper_oid, wrapper)];
        self.find(
            pg_sys::ForeignDataWrapperRelationId,
            pg_sys::ForeignDataWrapperOidIndexId,
            &keys,
            |tuple, _| {
                // SAFETY: a row of that catalog.
                unsafe {
                    (*pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_foreign_data_wrapper>())
                        .fdwhandler
                }
            },
        )
    }

    fn is_superuser(&self, userid: Oid) -> bool {
        let keys = [(pg_sys::Anum_pg_authid_oid, userid)];
        let found =
            self.find(pg_sys::AuthIdRelationId, pg_sys::AuthIdOidIndexId, &keys, |tuple, _| {
                // SAFETY: a row of that catalog.
                unsafe { (*pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_authid>()).rolsuper }
            });
        found == Some(true)
    }
}

impl Drop for Eyes {
    fn drop(&mut self) {
        // During a panic an ERROR is on its way to PostgreSQL, whose abort releases snapshots.
        if !self.0.is_null() && !std::thread::panicking() {
            // SAFETY: registered by `open`.
            unsafe { pg_sys::UnregisterSnapshot(self.0) };
        }
    }
}

/// The options in a column of a row.
///
/// # Safety
/// A row of the catalog that the descriptor describes; the column is an array of text.
unsafe fn read_options(
    tuple: pg_sys::HeapTuple,
    columns: pg_sys::TupleDesc,
    column: u32,
) -> Vec<OptionPair> {
    let mut null = false;
    // SAFETY: by contract; the list lives as long as the memory context.
    unsafe {
        let options = pg_sys::heap_getattr(tuple, column as i32, columns, &mut null);
        if null { Vec::new() } else { read_list(pg_sys::untransformRelOptions(options)) }
    }
}
