//! From one version of the extension to the next, with transactions in doubt; and what a dump makes
//! of a coordinator.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};
use pg_test::install::finish;
use pg_test::oracle::{assert_settled, expect_error, one, prepared_gids};
use pg_test::proxy::NewConnections;
use pg_test::{DEADLINE, Fleet, Installation, wait_until};
use postgres::Client;

use crate::support::{Outcome, assert_everywhere, begin_everywhere, statuses};

/// The version before this one; its objects are in `sql/previous`.
const PREVIOUS: &str = "0.2.0";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Lets the server of the tests create the extension as it was in the previous version.
fn install_previous_version() -> Result<()> {
    let installation = Installation::from_env()?;
    let share = finish(std::process::Command::new(installation.pg_config()).arg("--sharedir"))?;
    let name = format!("pg_fdw_xacts--{PREVIOUS}.sql");
    let directory = Path::new(share.trim()).join("extension");
    // Renamed, so that a test beside this one, in this process or another, never reads half a file.
    static COPIES: AtomicU32 = AtomicU32::new(0);
    let number = COPIES.fetch_add(1, Ordering::Relaxed);
    let copy = directory.join(format!("{name}.{}.{number}", std::process::id()));
    let objects = std::fs::read_to_string(root().join("sql/previous").join(&name))?;
    std::fs::write(&copy, for_version(&objects, installation.major()))?;
    std::fs::rename(copy, directory.join(name)).context("cannot install the previous version")
}

/// The objects as the previous version made them under this major version of PostgreSQL.
fn for_version(objects: &str, major: u32) -> String {
    let before_18 = "pg_fdw_xacts_get_connections(OUT server_name text, OUT valid boolean)";
    let since_18 = "pg_fdw_xacts_get_connections(check_conn boolean DEFAULT false, \
         OUT server_name text, OUT user_name text, OUT valid boolean, OUT used_in_xact boolean, \
         OUT closed boolean, OUT remote_backend_pid int4)";
    if major < 18 { objects.to_owned() } else { objects.replace(before_18, since_18) }
}

/// Gives a fleet the extension as it was in the previous version.
fn downgrade(fleet: &Fleet) -> Result<Client> {
    install_previous_version()?;
    let mut session = fleet.session()?;
    session.batch_execute("SELECT * FROM pg_fdw_xacts_resolve()")?;
    session.batch_execute("DROP EXTENSION pg_fdw_xacts CASCADE")?;
    session.batch_execute(&format!("CREATE EXTENSION pg_fdw_xacts VERSION '{PREVIOUS}'"))?;
    fleet.connect_shards(&mut session)?;
    Ok(session)
}

/// The objects of the extension, each with all that makes it what it is.
fn objects(session: &mut Client) -> Result<BTreeSet<String>> {
    let rows = session.query(
        "SELECT pg_describe_object(classid, objid, 0) || ': ' || coalesce(CASE classid
             WHEN 'pg_proc'::regclass THEN
                 (SELECT pg_get_functiondef(oid) || coalesce(proacl::text, '') FROM pg_proc WHERE oid = objid)
             WHEN 'pg_foreign_data_wrapper'::regclass THEN
                 (SELECT concat_ws(' ', fdwhandler::regproc, fdwvalidator::regproc, fdwacl, fdwoptions,
                      (to_jsonb(f) ->> 'fdwconnection')::regproc)
                  FROM pg_foreign_data_wrapper f WHERE oid = objid)
             WHEN 'pg_class'::regclass THEN
                 (SELECT concat_ws(' ', relkind, relreplident, reloptions, relacl,
                      CASE relkind WHEN 'v' THEN pg_get_viewdef(oid) END,
                      (SELECT string_agg(concat_ws(' ', attname, format_type(atttypid, atttypmod), attnotnull,
                           attcollation::regcollation, attacl), ', ' ORDER BY attnum)
                       FROM pg_attribute WHERE attrelid = objid AND attnum > 0 AND NOT attisdropped),
                      (SELECT string_agg(pg_get_indexdef(indexrelid), ', ' ORDER BY 1)
                       FROM pg_index WHERE indrelid = objid))
                  FROM pg_class WHERE oid = objid)
         END, '')
         || coalesce((SELECT ' initially ' || initprivs::text FROM pg_init_privs i
                      WHERE (i.objoid, i.classoid, i.objsubid) = (d.objid, d.classid, 0)), '')
         FROM pg_depend d
         WHERE refclassid = 'pg_extension'::regclass AND deptype = 'e'
             AND refobjid = (SELECT oid FROM pg_extension WHERE extname = 'pg_fdw_xacts')",
        &[],
    )?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

#[test]
fn an_upgrade_leaves_the_objects_of_a_new_installation() -> Outcome {
    let fleet = Fleet::start()?;
    let fresh = objects(&mut fleet.session()?)?;
    let mut session = downgrade(&fleet)?;
    assert_ne!(objects(&mut session)?, fresh);
    session.batch_execute("ALTER EXTENSION pg_fdw_xacts UPDATE")?;
    let upgraded = objects(&mut session)?;
    let missing: Vec<_> = fresh.difference(&upgraded).collect();
    let different: Vec<_> = upgraded.difference(&fresh).collect();
    assert!(
        missing.is_empty() && different.is_empty(),
        "the upgrade script has to make what sql/ and src/ make\n{missing:#?}\nand leaves instead\n\
         {different:#?}"
    );
    assert!(fresh.len() > 15, "{fresh:#?}");
    Ok(())
}

#[test]
fn an_upgrade_with_transactions_in_doubt_and_pending_loses_none() -> Outcome {
    let fleet = Fleet::start_proxied()?;
    let mut operator = downgrade(&fleet)?;
    // One waits for the application, one is decided and shard 1 does not hear of it.
    let mut session = fleet.session()?;
    begin_everywhere(&mut session, 1)?;
    session.batch_execute("PREPARE TRANSACTION 'gxid'")?;
    begin_everywhere(&mut session, 2)?;
    fleet.commit_undelivered(session, 1)?;
    assert_eq!(prepared_gids(fleet.shard(1))?.len(), 2);
    // The library is this version's already: it works with the objects of the version before.
    let in_doubt: i64 =
        one(&mut operator, "SELECT in_doubt FROM pg_stat_fdw_xacts WHERE server = 'shard1'")?;
    assert_eq!(in_doubt, 2);

    // The update does not wait for what is pending.
    operator.batch_execute("SET lock_timeout = '10s'; ALTER EXTENSION pg_fdw_xacts UPDATE")?;
    let version: String =
        one(&mut operator, "SELECT extversion FROM pg_extension WHERE extname = 'pg_fdw_xacts'")?;
    assert_eq!(version, env!("CARGO_PKG_VERSION"));
    assert_eq!(statuses(&fleet, 2)?, ["prepared"]);

    fleet.proxy(1).set_new_connections(NewConnections::Served);
    operator.batch_execute("COMMIT PREPARED 'gxid'")?;
    assert_settled(&fleet);
    assert_everywhere(&fleet, 1, true)?;
    assert_everywhere(&fleet, 2, true)
}

/// Gives the foreign servers new OIDs, as pg_upgrade does, and restarts the coordinator; returns
/// the old ones.
fn renumber_servers(fleet: &mut Fleet) -> Result<Vec<String>> {
    let mut session = fleet.session()?;
    let rows = session.query("SELECT oid::text FROM pg_foreign_server ORDER BY 1", &[])?;
    session.batch_execute(
        "SET allow_system_table_mods = on;
         UPDATE pg_depend SET objid = objid::bigint + 100000 WHERE classid = 'pg_foreign_server'::regclass;
         UPDATE pg_depend SET refobjid = refobjid::bigint + 100000
             WHERE refclassid = 'pg_foreign_server'::regclass;
         UPDATE pg_user_mapping SET umserver = umserver::bigint + 100000;
         UPDATE pg_foreign_table SET ftserver = ftserver::bigint + 100000;
         UPDATE pg_foreign_server SET oid = oid::bigint + 100000",
    )?;
    fleet.coordinator.restart()?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Red before: nothing was settled until somebody wrote there again.
#[test]
fn what_is_in_doubt_survives_that_servers_get_new_oids() -> Outcome {
    let mut fleet = Fleet::start_proxied()?;
    fleet.in_doubt(1)?;
    let old = renumber_servers(&mut fleet)?;
    fleet.proxy(1).set_new_connections(NewConnections::Served);

    // The resolver looks there through the servers that are at the same addresses now.
    assert_settled(&fleet);
    assert_everywhere(&fleet, 1, true)?;
    let mut session = fleet.session()?;
    begin_everywhere(&mut session, 2)?;
    session.batch_execute("COMMIT")?;
    assert_settled(&fleet);
    assert_everywhere(&fleet, 2, true)?;

    // Whoever wants can give the old ones up.
    expect_error(session.batch_execute("SELECT pg_fdw_xacts_forget('4294967295')"), "42704");
    session.batch_execute(&format!("SELECT pg_fdw_xacts_forget('{}')", old[0]))?;
    wait_until("nothing is in the way of DROP EXTENSION", DEADLINE, || {
        session.batch_execute("SELECT * FROM pg_fdw_xacts_resolve()")?;
        Ok(session.batch_execute("DROP EXTENSION pg_fdw_xacts CASCADE").is_ok())
    })
}

#[test]
fn each_version_has_a_script_that_leads_on() -> Outcome {
    let current = env!("CARGO_PKG_VERSION");
    let script = root().join(format!("sql/pg_fdw_xacts--{PREVIOUS}--{current}.sql"));
    assert!(script.exists(), "{}", script.display());
    let page = std::fs::read_to_string(root().join("docs/src/installing.md"))?;
    assert!(
        page.contains(&format!("_{current}-1_")),
        "docs/src/installing.md names another version"
    );
    Ok(())
}

#[test]
fn a_restored_dump_is_another_coordinator() -> Outcome {
    let fleet = Fleet::start()?;
    let mut session = fleet.session()?;
    begin_everywhere(&mut session, 1)?;
    session.batch_execute("PREPARE TRANSACTION 'gxid'")?;
    let pending = (prepared_gids(fleet.shard(1))?, prepared_gids(fleet.shard(2))?);

    let installation = Installation::from_env()?;
    let port = fleet.coordinator.port().to_string();
    let address = ["-h", "127.0.0.1", "-p", &port, "-U", "postgres"];
    let dump = installation.run("pg_dump", address.into_iter().chain(["postgres"]))?;
    assert!(!dump.contains("fdw_xacts.identity"), "the dump holds the extension's own state");
    session.batch_execute("CREATE DATABASE copy")?;
    restore(&mut fleet.coordinator.client_for("copy", "postgres")?, &dump)?;
    let mut copy = fleet.coordinator.client_for("copy", "postgres")?;

    // It works, and leaves alone what it has not prepared itself.
    begin_everywhere(&mut copy, 2)?;
    copy.batch_execute("COMMIT")?;
    copy.batch_execute("SELECT * FROM pg_fdw_xacts_resolve()")?;
    let identity = "SELECT identity FROM fdw_xacts.identity";
    assert_ne!(one::<i64>(&mut copy, identity)?, one::<i64>(&mut session, identity)?);
    assert_eq!((prepared_gids(fleet.shard(1))?, prepared_gids(fleet.shard(2))?), pending);

    session.batch_execute("COMMIT PREPARED 'gxid'")?;
    assert_settled(&fleet);
    assert_eq!(fleet.ids_on_shard(1)?, [1, 2]);
    assert_eq!(fleet.ids_in_lt()?, [1]);
    Ok(())
}

/// Runs a dump in plain format, which holds no data but that of the local table, and that is empty.
fn restore(copy: &mut Client, dump: &str) -> Result<()> {
    let statements: Vec<&str> =
        dump.lines().filter(|line| !line.starts_with('\\') && !line.starts_with("COPY ")).collect();
    Ok(copy.batch_execute(&statements.join("\n"))?)
}
