//! Commands that need a database for themselves, and its resolver: it leaves for as long as one of
//! them runs, and stays where PostgreSQL refuses them.

use std::time::Duration;

use pg_test::oracle::{expect_error, one};
use pg_test::{DEADLINE, Fleet, lengthened_by_load, wait_until};
use postgres::Client;

use crate::support::{Outcome, in_background};

/// Less than a pause that nobody ends, which was ten seconds.
fn soon() -> Duration {
    lengthened_by_load(Duration::from_secs(5))
}

/// A second database, `other`, with a resolver and tables on both shards.
fn start() -> anyhow::Result<(Fleet, Client)> {
    let fleet = Fleet::start()?;
    let session = fleet.session()?;
    let mut other = fleet.connect_database("other")?;
    commit(&mut other, 1)?;
    Ok((fleet, session))
}

fn commit(session: &mut Client, id: i32) -> Result<(), postgres::Error> {
    session.batch_execute(&format!(
        "BEGIN; INSERT INTO ft1 VALUES ({id}); INSERT INTO ft2 VALUES ({id}); COMMIT"
    ))
}

/// The process of the resolver of `other`, if there is one.
fn resolver(session: &mut Client) -> anyhow::Result<Option<i32>> {
    one(
        session,
        "SELECT max(pid) FROM pg_stat_activity WHERE datname = 'other' AND backend_type = 'pg_fdw_xacts resolver'",
    )
}

/// Waits until no client is in `other`, so that no command waits for one.
fn alone(session: &mut Client) -> Outcome {
    wait_until("the clients have left", DEADLINE, || {
        let clients = "SELECT count(*) FROM pg_stat_activity WHERE datname = 'other' AND backend_type = 'client backend'";
        Ok(one::<i64>(session, clients)? == 0)
    })
}

/// Red on 0.2.0: the resolver was gone for ten seconds.
#[test]
fn where_others_use_the_database_its_resolver_stays() -> Outcome {
    let (fleet, mut session) = start()?;
    session.batch_execute("SET allow_in_place_tablespaces = on")?;
    session.batch_execute("CREATE TABLESPACE elsewhere LOCATION ''")?;
    let mut other = fleet.coordinator.client_for("other", "postgres")?;
    let before = resolver(&mut session)?;
    assert!(before.is_some());
    let refused: Vec<_> = [
        "DROP DATABASE other",
        "CREATE DATABASE copy TEMPLATE other",
        "ALTER DATABASE other RENAME TO another",
        "ALTER DATABASE other SET TABLESPACE elsewhere",
    ]
    .into_iter()
    .map(|command| Ok((command, in_background(fleet.session()?, command))))
    .collect::<anyhow::Result<_>>()?;
    for id in 2.. {
        // Each a new session, with its first commit.
        commit(&mut fleet.coordinator.client_for("other", "postgres")?, id)?;
        assert_eq!(resolver(&mut session)?, before, "the resolver has left");
        if refused.iter().all(|(_, command)| command.is_finished()) {
            break;
        }
    }
    for (command, refused) in refused {
        let error = expect_error(refused.join().1, "55006");
        assert!(error.message().contains("accessed by other users"), "{command}: {error:?}");
    }
    commit(&mut other, 0)?;
    Ok(())
}

/// Red on 0.2.0: back after ten seconds, whatever became of the command; SET TABLESPACE always
/// failed.
#[test]
fn the_resolver_is_back_when_the_command_has_ended() -> Outcome {
    let (fleet, mut session) = start()?;
    session.batch_execute("SET allow_in_place_tablespaces = on")?;
    session.batch_execute("CREATE TABLESPACE elsewhere LOCATION ''")?;
    let commands = [
        ("CREATE DATABASE copy TEMPLATE other", None),
        ("CREATE DATABASE copy TEMPLATE other", Some("42P04")),
        ("ALTER DATABASE other RENAME TO copy", Some("42P04")),
        ("ALTER DATABASE other SET TABLESPACE elsewhere", None),
        ("ALTER DATABASE other RENAME TO another; ALTER DATABASE another RENAME TO other", None),
    ];
    for (id, (command, error)) in (2..).zip(commands) {
        alone(&mut session)?;
        let outcome = session.batch_execute(command);
        match error {
            Some(code) => drop(expect_error(outcome, code)),
            None => outcome?,
        }
        wait_until(&format!("the resolver is back after {command}"), soon(), || {
            Ok(resolver(&mut session)?.is_some())
        })?;
        commit(&mut fleet.coordinator.client_for("other", "postgres")?, id)?;
    }
    // A transaction that goes on keeps the lock, and its end ends the pause.
    alone(&mut session)?;
    session.batch_execute("BEGIN; ALTER DATABASE other RENAME TO another; ROLLBACK")?;
    wait_until("the resolver is back", soon(), || Ok(resolver(&mut session)?.is_some()))?;
    // One after the other, while the resolver is still on its way back.
    for _ in 0..10 {
        session.batch_execute("ALTER DATABASE other RENAME TO another")?;
        session.batch_execute("ALTER DATABASE another RENAME TO other")?;
    }
    let mut other = fleet.coordinator.client_for("other", "postgres")?;
    other.batch_execute("SELECT * FROM pg_fdw_xacts_resolve()")?;
    drop(other);
    session.batch_execute("DROP DATABASE other")?;
    Ok(())
}

/// Red on 0.2.0 where the owner was refused for another reason.
#[test]
fn who_may_not_do_it_does_not_send_the_resolver_away() -> Outcome {
    let (fleet, mut session) = start()?;
    session.batch_execute(
        "CREATE ROLE owner LOGIN; ALTER DATABASE other OWNER TO owner; CREATE ROLE stranger LOGIN CREATEDB",
    )?;
    alone(&mut session)?;
    let before = resolver(&mut session)?;
    assert!(before.is_some());
    let refused = [
        ("stranger", "DROP DATABASE other", "42501"),
        ("stranger", "CREATE DATABASE copy TEMPLATE other", "42501"),
        ("stranger", "ALTER DATABASE other RENAME TO another", "42501"),
        ("stranger", "ALTER DATABASE other SET TABLESPACE pg_default", "42501"),
        ("owner", "CREATE DATABASE copy TEMPLATE other", "42501"),
        ("owner", "ALTER DATABASE other RENAME TO another", "42501"),
        ("owner", "BEGIN; DROP DATABASE other", "25001"),
    ];
    for (role, command, code) in refused {
        let mut client = fleet.coordinator.client_for("postgres", role)?;
        expect_error(client.batch_execute(command), code);
        assert_eq!(resolver(&mut session)?, before, "{role}: {command}");
    }
    let own = fleet.coordinator.client_for("other", "owner")?.batch_execute("DROP DATABASE other");
    expect_error(own, "55006");
    assert_eq!(resolver(&mut session)?, before);
    Ok(())
}
