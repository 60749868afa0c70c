//! IMPORT FOREIGN SCHEMA: reads the definitions of remote tables, and writes CREATE FOREIGN TABLE
//! for them.
//!
//! The participant's `search_path` is `pg_catalog`, so types and functions of any other schema are
//! qualified. Every server that can take part (14 and later) has partitions and generated columns.

use std::ffi::{CStr, CString};
use std::rc::Rc;

use pgrx::pg_sys::{self, ImportForeignSchemaStmt, ImportForeignSchemaType as ListType, List, Oid};

use crate::fdw::names::identifier;
use crate::libpq::PgResult;
use crate::pg::error::{Error, Result, SqlState, boundary, c_string, catch};
use crate::pg::globals::current_user;
use crate::pg::{node, raw};
use crate::remote::connection::Message;
use crate::remote::options::Server;
use crate::remote::quoting::literal;
use crate::xact::attach;

/// The columns of [`definitions`].
mod column {
    pub const TABLE: usize = 0;
    pub const NAME: usize = 1;
    pub const TYPE: usize = 2;
    pub const NOT_NULL: usize = 3;
    pub const EXPRESSION: usize = 4;
    pub const GENERATED: usize = 5;
    pub const COLLATION: usize = 6;
    pub const COLLATION_SCHEMA: usize = 7;
}

/// `ImportForeignSchema`: the commands, as C strings. PostgreSQL leaves out those for tables that
/// the statement does not name.
///
/// # Safety
/// Called by IMPORT FOREIGN SCHEMA.
pub unsafe extern "C-unwind" fn execute(
    statement: *mut ImportForeignSchemaStmt,
    serverid: Oid,
) -> *mut List {
    // SAFETY: a valid statement; lists and their strings are made in the caller's memory.
    boundary(|| unsafe {
        let statement = &*statement;
        let wanted = Wanted::read(statement.options)?;
        let schema = CStr::from_ptr(statement.remote_schema);
        let server = Server::read(serverid);
        let session = attach(current_user(), serverid)?;
        let exists: Rc<CStr> = c_string(
            [
                b"SELECT FROM pg_catalog.pg_namespace WHERE nspname = ",
                &literal(schema.to_bytes())[..],
            ]
            .concat(),
        )
        .into();
        let definitions: Rc<CStr> = definitions(statement, schema).into();
        let asked = session.submit_all(&[
            (Message::Query(&exists, &[]), &exists),
            (Message::Query(&definitions, &[]), &definitions),
        ])?;
        if session.wait(&asked[0])?.rows() == 0 {
            return Err(Error::new(
                SqlState::FDW_SCHEMA_NOT_FOUND,
                [
                    b"schema \"",
                    schema.to_bytes(),
                    b"\" is not present on foreign server \"",
                    server.name.to_bytes(),
                    b"\"",
                ]
                .concat(),
            ));
        }
        let result = session.wait(&asked[1])?;
        let mut commands = std::ptr::null_mut();
        for command in wanted.commands(&result, schema, &server.name) {
            commands = pg_sys::lappend(commands, pg_sys::pstrdup(command.as_ptr()).cast());
        }
        Ok(commands)
    })
}

/// The query for the columns of the tables: a row per column, or one with NULLs for a table without
/// columns.
///
/// # Safety
/// A valid statement.
unsafe fn definitions(statement: &ImportForeignSchemaStmt, schema: &CStr) -> CString {
    let mut sql = b"SELECT c.relname, a.attname, pg_catalog.format_type(a.atttypid, a.atttypmod), \
             a.attnotnull, pg_catalog.pg_get_expr(d.adbin, d.adrelid), a.attgenerated, \
             l.collname, s.nspname \
        FROM pg_catalog.pg_class c \
        JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
        LEFT JOIN pg_catalog.pg_attribute a \
            ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped \
        LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum \
        LEFT JOIN pg_catalog.pg_collation l ON l.oid = a.attcollation \
        LEFT JOIN pg_catalog.pg_namespace s ON s.oid = l.collnamespace \
        WHERE c.relkind IN ('r', 'v', 'f', 'm', 'p') AND n.nspname = "
        .to_vec();
    sql.extend(literal(schema.to_bytes()));
    // The root of a partitioned table stands for all its rows; a partition is imported only by its
    // name.
    if statement.list_type != ListType::FDW_IMPORT_SCHEMA_LIMIT_TO {
        sql.extend(b" AND NOT c.relispartition");
    }
    if statement.list_type != ListType::FDW_IMPORT_SCHEMA_ALL {
        // SAFETY: by contract a list of RangeVar.
        let names: Vec<Vec<u8>> = unsafe {
            node::pointers::<pg_sys::RangeVar>(statement.table_list)
                .map(|table| literal(CStr::from_ptr((*table).relname).to_bytes()))
                .collect()
        };
        let not: &[u8] = match statement.list_type {
            ListType::FDW_IMPORT_SCHEMA_EXCEPT => b"NOT ",
            _ => b"",
        };
        sql.extend([b" AND c.relname ", not, b"IN (", &names.join(&b", "[..]), b")"].concat());
    }
    sql.extend(b" ORDER BY c.relname, a.attnum");
    c_string(sql)
}

/// What is imported of a column besides its name and type, by the options of the statement.
struct Wanted {
    collate: bool,
    default: bool,
    generated: bool,
    not_null: bool,
}

impl Wanted {
    /// Reads the options of a statement.
    ///
    /// # Safety
    /// NIL or a list of `DefElem`.
    unsafe fn read(options: *const List) -> Result<Self> {
        let mut wanted = Self { collate: true, default: false, generated: true, not_null: true };
        // SAFETY: by contract.
        for option in unsafe { node::pointers::<pg_sys::DefElem>(options) } {
            // SAFETY: a valid node with a name.
            let name = unsafe { CStr::from_ptr((*option).defname) };
            let field = match name.to_bytes() {
                b"import_collate" => &mut wanted.collate,
                b"import_default" => &mut wanted.default,
                b"import_generated" => &mut wanted.generated,
                b"import_not_null" => &mut wanted.not_null,
                other => {
                    return Err(Error::new(
                        SqlState::FDW_INVALID_OPTION_NAME,
                        [b"invalid option \"", other, b"\""].concat(),
                    ));
                }
            };
            // SAFETY: a valid node; it raises when the value is no boolean.
            *field = catch(|| unsafe { raw::defGetBoolean(option) })?;
        }
        Ok(wanted)
    }

    /// A CREATE FOREIGN TABLE per table in the answer to [`definitions`].
    fn commands(&self, result: &PgResult, schema: &CStr, server: &CStr) -> Vec<CString> {
        let rows: Vec<usize> = (0..result.rows()).collect();
        rows.chunk_by(|&a, &b| result.value(a, column::TABLE) == result.value(b, column::TABLE))
            .filter_map(|rows| {
                let table = result.value(rows[0], column::TABLE)?;
                let columns: Vec<Vec<u8>> =
                    rows.iter().filter_map(|&row| self.column(result, row)).collect();
                Some(c_string(
                    [
                        b"CREATE FOREIGN TABLE ",
                        &identifier(table)[..],
                        b" (\n",
                        &columns.join(&b",\n"[..]),
                        b"\n) SERVER ",
                        &identifier(server),
                        b"\nOPTIONS (schema_name ",
                        &literal(schema.to_bytes()),
                        b", table_name ",
                        &literal(table.to_bytes()),
                        b");",
                    ]
                    .concat(),
                ))
            })
            .collect()
    }

    /// One column's definition; `None` for the row of a table without columns. It has the remote
    /// name as an option, which stays when the column is renamed here.
    fn column(&self, result: &PgResult, row: usize) -> Option<Vec<u8>> {
        let name = result.value(row, column::NAME)?;
        let type_name = result.value(row, column::TYPE)?.to_bytes();
        let mut definition = [
            b"  ",
            &identifier(name)[..],
            b" ",
            type_name,
            b" OPTIONS (column_name ",
            &literal(name.to_bytes()),
            b")",
        ]
        .concat();
        if self.collate
            && let Some(collation) = result.value(row, column::COLLATION)
            && let Some(schema) = result.value(row, column::COLLATION_SCHEMA)
        {
            definition.extend(
                [b" COLLATE ", &identifier(schema)[..], b".", &identifier(collation)].concat(),
            );
        }
        let expression = result.value(row, column::EXPRESSION).map(CStr::to_bytes);
        match (result.value(row, column::GENERATED).map_or(&b""[..], CStr::to_bytes), expression) {
            (b"", Some(default)) if self.default => {
                definition.extend([b" DEFAULT ", default].concat());
            }
            // Only stored generated columns can be columns of a foreign table.
            (b"s", Some(expression)) if self.generated => {
                definition.extend([b" GENERATED ALWAYS AS (", expression, b") STORED"].concat());
            }
            _ => {}
        }
        if self.not_null && result.value(row, column::NOT_NULL).is_some_and(|v| v == c"t") {
            definition.extend(b" NOT NULL");
        }
        Some(definition)
    }
}
