//! Options of servers and user mappings, and the conninfo made of them.

use std::ffi::{CStr, CString};

use once_cell::sync::OnceCell;
use pgrx::pg_sys::{self, Oid};

use crate::guc::RemoteIsolation;
use crate::libpq;
use crate::pg::error::{Error, Result, SqlState, c_string, catch};
use crate::pg::{node, raw};
use crate::remote::app_name::{self, APPLICATION_NAME};
use crate::remote::quoting::conninfo_pair;

/// An option of a foreign object: its name and its value.
pub type OptionPair = (CString, CString);

/// What this extension reads of a foreign server.
pub struct Server {
    /// Its name, for messages.
    pub name: CString,
    /// Its options.
    pub options: Vec<OptionPair>,
}

/// A user mapping.
pub struct Mapping {
    /// `pg_user_mapping.oid`, the key of a connection.
    pub oid: Oid,
    /// The local user for whom it was looked up, which a PUBLIC mapping does not have.
    pub userid: Oid,
    /// The server.
    pub serverid: Oid,
    /// Its options.
    pub options: Vec<OptionPair>,
}

/// The options by which libpq finds a server. Which database it is, the server is asked itself.
const ADDRESS: [&CStr; 4] = [c"host", c"hostaddr", c"port", c"service"];

/// The server options that postgres_fdw does not have.
pub const TWO_PHASE_COMMIT: &CStr = c"two_phase_commit";
/// See [`TWO_PHASE_COMMIT`].
pub const REMOTE_ISOLATION: &CStr = c"remote_isolation";

/// How the option [`REMOTE_ISOLATION`] is written; `None` for anything else.
pub fn parse_isolation(text: &CStr) -> Option<RemoteIsolation> {
    let is = |value: &str| text.to_bytes().eq_ignore_ascii_case(value.as_bytes());
    match () {
        () if is("repeatable read") => Some(RemoteIsolation::RepeatableRead),
        () if is("match") => Some(RemoteIsolation::Match),
        () => None,
    }
}

impl Server {
    /// Reads a server from the catalog.
    ///
    /// # Errors
    /// PostgreSQL's own when there is none.
    pub fn read(oid: Oid) -> Self {
        // SAFETY: the catalog entry is a valid struct of this transaction's memory.
        unsafe {
            let server = &*pg_sys::GetForeignServer(oid);
            Self {
                name: CStr::from_ptr(server.servername).to_owned(),
                options: read_list(server.options),
            }
        }
    }

    /// The OID of the server of a name.
    ///
    /// # Errors
    /// PostgreSQL's own when there is none.
    pub fn named(name: &CStr) -> Result<Oid> {
        // SAFETY: as in `read`; the frame owns nothing.
        catch(|| unsafe { (*raw::GetForeignServerByName(name.as_ptr(), false)).serverid })
    }

    /// Reads a server from the catalog, if it exists.
    pub fn find(oid: Oid) -> Option<Self> {
        // SAFETY: a catalog look-up that may find nothing.
        let server =
            unsafe { pg_sys::GetForeignServerExtended(oid, pg_sys::FSV_MISSING_OK as u16) };
        (!server.is_null()).then(|| Self::read(oid))
    }

    /// Its configured address, in one text: all options by which libpq finds a server.
    pub fn address(&self) -> CString {
        let parts = ADDRESS.iter().filter_map(|name| {
            let value = option(&self.options, name)?;
            Some(conninfo_pair(name.to_bytes(), value.to_bytes()))
        });
        c_string(parts.collect::<Vec<_>>().join(&b' '))
    }

    /// Whether its connections are kept for later transactions (option `keep_connections`, default
    /// on).
    pub fn keeps_connections(&self) -> bool {
        option(&self.options, c"keep_connections").is_none_or(|v| parse_bool(v) != Some(false))
    }

    /// How a READ COMMITTED transaction sees it, where it is not as the setting says (option
    /// `remote_isolation`).
    pub fn remote_isolation(&self) -> Option<RemoteIsolation> {
        option(&self.options, REMOTE_ISOLATION).and_then(parse_isolation)
    }

    /// Whether the server may be asked to prepare (option `two_phase_commit`, default on).
    pub fn can_prepare(&self) -> bool {
        option(&self.options, TWO_PHASE_COMMIT).is_none_or(|v| parse_bool(v) != Some(false))
    }
}

impl Mapping {
    /// The mapping of a user, or the PUBLIC one.
    ///
    /// # Errors
    /// PostgreSQL's own when there is none.
    pub fn read(userid: Oid, serverid: Oid) -> Result<Self> {
        // SAFETY: as in `Server::read`; the frame owns nothing.
        unsafe {
            let mapping = &*catch(|| raw::GetUserMapping(userid, serverid))?;
            Ok(Self {
                oid: mapping.umid,
                userid: mapping.userid,
                serverid: mapping.serverid,
                options: read_list(mapping.options),
            })
        }
    }
}

impl Mapping {
    /// The mapping of a user, or the PUBLIC one, if the server and it exist.
    pub fn find(userid: Oid, serverid: Oid) -> Option<Self> {
        let exists = |user: Oid| {
            // SAFETY: a look-up in a catalog cache with two OID keys.
            unsafe {
                pg_sys::SearchSysCacheExists(
                    pg_sys::SysCacheIdentifier::USERMAPPINGUSERSERVER as i32,
                    user.into(),
                    serverid.into(),
                    0.into(),
                    0.into(),
                )
            }
        };
        // SAFETY: a catalog look-up that may find nothing.
        let server =
            unsafe { pg_sys::GetForeignServerExtended(serverid, pg_sys::FSV_MISSING_OK as u16) };
        if server.is_null() || !(exists(userid) || exists(Oid::INVALID)) {
            return None;
        }
        Self::read(userid, serverid).ok()
    }
}

/// A foreign table's own options and its server.
pub struct TableOptions {
    /// `pg_foreign_server.oid`.
    pub serverid: Oid,
    /// The server with its options.
    pub server: Server,
    /// Those of the table alone.
    pub own: Vec<OptionPair>,
}

impl TableOptions {
    /// Reads the catalog entries of a foreign table.
    ///
    /// # Errors
    /// PostgreSQL's own when it is none.
    pub fn read(table: Oid) -> Self {
        // SAFETY: it raises if there is none; the entry lives in this call's memory.
        let (serverid, own) = unsafe {
            let table = &*pg_sys::GetForeignTable(table);
            (table.serverid, read_list(table.options))
        };
        Self { serverid, server: Server::read(serverid), own }
    }

    /// The value of an option of the table, or else of its server.
    pub fn get(&self, name: &CStr) -> Option<&CStr> {
        option(&self.own, name).or_else(|| option(&self.server.options, name))
    }
}

/// The value of an option, if it is set.
pub fn option<'a>(options: &'a [OptionPair], name: &CStr) -> Option<&'a CStr> {
    options.iter().find(|(n, _)| n.as_c_str() == name).map(|(_, v)| v.as_c_str())
}

/// A boolean as PostgreSQL reads it, unambiguous prefixes included; `None` if the text is not one.
pub fn parse_bool(text: &CStr) -> Option<bool> {
    let mut value = false;
    // SAFETY: a C string and room for the result.
    unsafe { pg_sys::parse_bool(text.as_ptr(), &mut value) }.then_some(value)
}

/// Copies a list of `DefElem`.
///
/// # Safety
/// `list` is NIL or a list of `DefElem` nodes.
pub unsafe fn read_list(list: *mut pg_sys::List) -> Vec<OptionPair> {
    // SAFETY: by contract; the strings live as long as the nodes.
    unsafe {
        node::pointers::<pg_sys::DefElem>(list)
            .map(|element| {
                let value = pg_sys::defGetString(element);
                (CStr::from_ptr((*element).defname).to_owned(), CStr::from_ptr(value).to_owned())
            })
            .collect()
    }
}

/// The names of libpq's options that users may set.
fn libpq_options() -> Result<&'static [CString]> {
    static NAMES: OnceCell<Vec<CString>> = OnceCell::new();
    NAMES
        .get_or_try_init(|| {
            let names: Vec<CString> = libpq::connection_options()
                .into_iter()
                .filter(|(_, shown)| *shown != 'D')
                .map(|(name, _)| name)
                // These two are always set by us.
                .filter(|n| {
                    n.as_c_str() != c"fallback_application_name"
                        && n.as_c_str() != c"client_encoding"
                })
                .collect();
            if names.is_empty() {
                return Err(Error::new(SqlState::new(b"HV001"), "out of memory")
                    .detail("Could not get libpq's default connection options."));
            }
            Ok(names)
        })
        .map(Vec::as_slice)
}

/// Who connects.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Purpose {
    /// A client's session, as postgres_fdw would.
    Session,
    /// The resolver.
    Resolver,
}

/// How soon the kernel notices that a participant's host has vanished, where neither server nor
/// mapping says so: as soon as the participant notices that the coordinator has. The kernel's own
/// defaults are two hours. `tcp_user_timeout` is not among them: it would also end a connection to
/// a participant that is there and does not read, because it waits for a lock.
const KEEPALIVES: [(&CStr, &CStr); 3] =
    [(c"keepalives_idle", c"10"), (c"keepalives_interval", c"5"), (c"keepalives_count", c"3")];

/// The options to connect with: libpq's options of the server and, after them, of the mapping; and
/// those that are always the same.
///
/// # Errors
/// libpq's list of options cannot be had.
pub fn conninfo(server: &Server, mapping: &Mapping, purpose: Purpose) -> Result<Vec<OptionPair>> {
    let known = libpq_options()?;
    let mut info: Vec<OptionPair> = server
        .options
        .iter()
        .chain(&mapping.options)
        .filter(|(name, _)| known.contains(name) && name.as_c_str() != APPLICATION_NAME)
        .cloned()
        .collect();
    let name = match purpose {
        Purpose::Session => app_name::given(&server.options),
        Purpose::Resolver => Some(app_name::RESOLVER.to_owned()),
    };
    info.extend(name.map(|name| (APPLICATION_NAME.to_owned(), name)));
    // A service has its own, which an option would override.
    if option(&info, c"service").is_none() {
        for (name, value) in KEEPALIVES {
            if option(&info, name).is_none() {
                info.push((name.to_owned(), value.to_owned()));
            }
        }
    }
    // SAFETY: a static string of the server.
    let encoding = unsafe { CStr::from_ptr(pg_sys::GetDatabaseEncodingName()) };
    info.push((c"fallback_application_name".to_owned(), app_name::FALLBACK.to_owned()));
    info.push((c"client_encoding".to_owned(), encoding.to_owned()));
    Ok(info)
}
