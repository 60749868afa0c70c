//! What turns a test of postgres_fdw into one of this extension: the documented statement and its
//! surroundings.

use anyhow::{Context, Result};

const HANDLER: &str = "ALTER FOREIGN DATA WRAPPER postgres_fdw HANDLER pg_fdw_xacts_handler \
     VALIDATOR pg_fdw_xacts_validator;";

/// postgres_fdw's functions about connections look at its own cache; ours have the same answers.
const FUNCTIONS: &str = "CREATE OR REPLACE FUNCTION postgres_fdw_disconnect(text) RETURNS bool \
     LANGUAGE sql STRICT AS 'SELECT pg_fdw_xacts_disconnect($1)';
CREATE OR REPLACE FUNCTION postgres_fdw_disconnect_all() RETURNS bool \
     LANGUAGE sql AS 'SELECT pg_fdw_xacts_disconnect_all()';
DO $do$ DECLARE f text; BEGIN f := pg_get_functiondef('postgres_fdw_get_connections'::regproc); \
     EXECUTE substr(f, 1, strpos(f, ' LANGUAGE') - 1) || ' LANGUAGE sql AS ''SELECT * FROM pg_fdw_xacts_get_connections(' \
     || CASE WHEN strpos(f, 'check_conn') > 0 THEN '$1' ELSE '' END || ')'''; END $do$;";

/// A regression script, or its output, which repeats it: both are changed in the same places. The
/// one transaction that the script prepares to see it refused is prepared here, and has to go.
pub fn script(text: &str) -> String {
    let mut changed = String::with_capacity(text.len() + 1024);
    let mut prepared = false;
    for line in text.split_inclusive('\n') {
        // Behind what the script's own ROLLBACK prints.
        if prepared && line.starts_with("--") {
            changed += "ROLLBACK PREPARED 'fdw_tpc';\n";
            prepared = false;
        }
        changed += line;
        match line.trim_end() {
            "CREATE EXTENSION postgres_fdw;" => {
                changed += &format!(
                    "SET client_min_messages = error;\nCREATE EXTENSION pg_fdw_xacts;\n{HANDLER}\n{FUNCTIONS}\nRESET client_min_messages;\n"
                );
            }
            "PREPARE TRANSACTION 'fdw_tpc';" => prepared = true,
            _ => {}
        }
    }
    changed
}

/// A specification of the isolation tester: its set-up is not repeated in the output.
pub fn specification(text: &str) -> Result<String> {
    let (before, after) = text.split_once("setup\n{\n").context("a specification has a setup")?;
    Ok(format!("{before}setup\n{{\n    {HANDLER}\n{after}"))
}

/// The server's settings: what the drivers are used to, and what this extension needs.
pub fn settings(switched: bool) -> String {
    let mut settings = String::from("log_statement = all\n");
    if switched {
        settings += "shared_preload_libraries = 'pg_fdw_xacts'\nmax_prepared_transactions = 50\n\
             pg_fdw_xacts.batch_size = 1\n";
    }
    settings
}
