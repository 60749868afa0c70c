//! Servers in other modes: a hot standby, single-user mode, and a subscriber whose worker
//! settles what is prepared.

use std::io::Write;
use std::process::Stdio;
use std::time::Duration;

use pg_test::oracle::{assert_usable, expect_error, one, prepared_gids};
use pg_test::{
    Cluster, DEADLINE, Fleet, FleetOptions, Installation, StopMode, lengthened_by_load, wait_until,
};

use crate::support::{NONE, Outcome};

/// Red on 0.2.0: the hint was to raise max_worker_processes, or the error was of transaction
/// ids.
#[test]
fn a_standby_says_that_it_is_one() -> Outcome {
    let fleet = Fleet::start()?;
    for number in [1, 2] {
        fleet.shard(number).client()?.batch_execute(
            "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'INSERT INTO public.t VALUES (1) RETURNING id';
             CREATE VIEW w AS SELECT f() AS id",
        )?;
        fleet.session()?.batch_execute(&format!(
            "CREATE FOREIGN TABLE w{number} (id int) SERVER shard{number} OPTIONS (table_name 'w')"
        ))?;
    }
    let mut standby = Cluster::standby_of(&fleet.coordinator, "standby")?;
    standby.start()?;
    fleet.coordinator.wait_for_standby(&standby)?;
    let mut session = standby.client()?;
    for (function, call) in [
        ("pg_fdw_xacts_resolve()", "SELECT * FROM pg_fdw_xacts_resolve()"),
        ("pg_fdw_xacts_track()", "SELECT pg_fdw_xacts_track('label')"),
        ("pg_fdw_xacts_forget()", "SELECT pg_fdw_xacts_forget('shard1')"),
    ] {
        let error = expect_error(session.batch_execute(call), "25006");
        assert_eq!(error.message(), format!("cannot execute {function} during recovery"));
    }
    let unseen = one::<String>(&mut session, "SELECT pg_fdw_xacts_outcome('label')")?;
    assert_eq!(unseen, "unknown");
    // Views that write there. From 19 on they cannot: the shard's transaction is as READ ONLY as that
    // of the standby.
    if Installation::from_env()?.major() >= 19 {
        expect_error(session.batch_execute("SELECT * FROM w1"), "25006");
        assert_usable(&mut session);
        assert_eq!(fleet.ids_on_shard(1)?, NONE);
    } else {
        session.batch_execute("BEGIN; SELECT * FROM w1; SELECT * FROM w2")?;
        let error = expect_error(session.batch_execute("COMMIT"), "25006");
        assert_eq!(error.message(), "there is no resolver on a standby");
        assert_usable(&mut session);
        assert_eq!(fleet.ids_on_shard(1)?, NONE);
        assert_eq!(fleet.ids_on_shard(2)?, NONE);
        session.batch_execute("SELECT * FROM w1")?;
        assert_eq!(fleet.ids_on_shard(1)?, [1]);
    }
    drop(session);
    standby.stop(StopMode::Fast)
}

/// Red on 0.2.0: `epoll_ctl() failed`.
#[test]
fn single_user_mode_reads_and_writes_one_server() -> Outcome {
    let mut fleet = Fleet::start()?;
    fleet.session()?.batch_execute("INSERT INTO ft1 VALUES (1, 'there')")?;
    fleet.coordinator.stop(StopMode::Fast)?;
    let mut postgres = Installation::from_env()?
        .command("postgres")
        .arg("--single")
        .arg("-D")
        .arg(fleet.coordinator.data())
        .arg("postgres")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    postgres.stdin.take().expect("piped").write_all(
        b"SELECT v FROM ft1\n\
          INSERT INTO ft1 VALUES (2, 'written')\n\
          BEGIN\nINSERT INTO ft1 VALUES (3, 'x')\nINSERT INTO ft2 VALUES (3, 'x')\nCOMMIT\n\
          SELECT * FROM pg_fdw_xacts_resolve()\n",
    )?;
    let output = postgres.wait_with_output()?;
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(text.contains("v = \"there\""), "{text}");
    let refused = text.matches("ERROR:  there is no resolver in single-user mode").count();
    assert_eq!(refused, 2, "{text}");
    assert_eq!(text.matches("ERROR").count(), 2, "{text}");
    fleet.coordinator.start()?;
    assert_eq!(fleet.ids_on_shard(1)?, [1, 2]);
    assert_eq!(fleet.ids_on_shard(2)?, NONE);
    Ok(())
}

/// A subscription whose trigger writes on the shards: its worker settles what it has prepared
/// without any statement.
///
/// Red on 0.2.0: delivered when the resolver came by itself.
#[test]
fn what_a_subscription_settles_is_delivered_at_once() -> Outcome {
    let fleet = Fleet::start_with(&FleetOptions {
        coordinator: vec![
            ("pg_fdw_xacts.resolver_interval", "1h"),
            ("max_prepared_transactions", "10"),
        ],
        ..FleetOptions::default()
    })?;
    let mut publisher = Cluster::create(&Installation::from_env()?, "publisher")?;
    publisher.configure(&[("wal_level", "logical"), ("max_prepared_transactions", "10")])?;
    publisher.start()?;
    let mut source = publisher.client()?;
    source.batch_execute("CREATE TABLE lt (id int PRIMARY KEY, v text)")?;
    source.batch_execute("CREATE PUBLICATION p FOR TABLE lt")?;
    let mut session = fleet.session()?;
    session.batch_execute(
        "CREATE FUNCTION spread() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             INSERT INTO public.ft1 VALUES (NEW.id, NEW.v); INSERT INTO public.ft2 VALUES (NEW.id, NEW.v);
             RETURN NEW; END $$;
         CREATE TRIGGER spread BEFORE INSERT ON lt FOR EACH ROW EXECUTE FUNCTION spread();
         ALTER TABLE lt ENABLE ALWAYS TRIGGER spread",
    )?;
    let port = publisher.port();
    session.batch_execute(&format!(
        "CREATE SUBSCRIPTION s CONNECTION 'host=127.0.0.1 port={port} user=postgres dbname=postgres'
             PUBLICATION p WITH (two_phase = true, copy_data = false)"
    ))?;
    wait_until("the subscription prepares", DEADLINE, || {
        let enabled = "SELECT count(*) FROM pg_subscription WHERE subtwophasestate = 'e'";
        Ok(one::<i64>(&mut session, enabled)? == 1)
    })?;
    let count = |fleet: &Fleet| -> anyhow::Result<usize> {
        Ok(prepared_gids(fleet.shard(1))?.len() + prepared_gids(fleet.shard(2))?.len())
    };
    // The resolver uses the fence that it keeps for what is prepared every ten seconds, and settles
    // then, too.
    const SOON: Duration = Duration::from_secs(4);
    for id in 1..=6 {
        let settle = if id % 2 == 1 { "COMMIT" } else { "ROLLBACK" };
        source.batch_execute(&format!(
            "BEGIN; INSERT INTO lt VALUES ({id}, 'x'); PREPARE TRANSACTION 'source'"
        ))?;
        wait_until("the shards have prepared", DEADLINE, || Ok(count(&fleet)? == 2))?;
        source.batch_execute(&format!("{settle} PREPARED 'source'"))?;
        wait_until(&format!("{settle} is delivered"), lengthened_by_load(SOON), || {
            Ok(count(&fleet)? == 0)
        })?;
    }
    assert_eq!(fleet.ids_on_shard(1)?, [1, 3, 5]);
    assert_eq!(fleet.ids_on_shard(2)?, [1, 3, 5]);
    session.batch_execute("DROP SUBSCRIPTION s")?;
    publisher.stop(StopMode::Fast)
}
