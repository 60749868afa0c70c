//! The harness itself, on plain servers: a fault that does not strike would make every other test
//! worthless.

use pg_test::oracle::{one, prepared_gids};
use pg_test::proxy::NewConnections;
use pg_test::{Cluster, DEADLINE, Fault, Installation, Point, Proxy, StopMode, wait_until};
use postgres::{Client, NoTls};

use crate::support::{Outcome, in_background};

fn server() -> anyhow::Result<Cluster> {
    let mut server = Cluster::create(&Installation::from_env()?, "plain")?;
    server.start()?;
    server.client()?.batch_execute("CREATE TABLE t (id int)")?;
    Ok(server)
}

fn through(proxy: &Proxy) -> anyhow::Result<Client> {
    Ok(Cluster::config_at(proxy.port()).connect(NoTls)?)
}

fn count(server: &Cluster) -> anyhow::Result<i64> {
    one(&mut server.client()?, "SELECT count(*) FROM t")
}

#[test]
fn a_killed_server_comes_back_with_what_was_committed_and_prepared() -> Outcome {
    let mut server = server()?;
    let mut session = server.client()?;
    session.batch_execute("INSERT INTO t VALUES (1)")?;
    session.batch_execute("BEGIN; INSERT INTO t VALUES (2); PREPARE TRANSACTION 'g'")?;
    session.batch_execute("BEGIN; INSERT INTO t VALUES (3)")?;
    server.kill9()?;
    assert!(!server.is_running());
    assert!(session.batch_execute("SELECT 1").is_err());
    server.start()?;
    assert_eq!(count(&server)?, 1);
    assert_eq!(prepared_gids(&server)?, ["g"]);
    Ok(())
}

#[test]
fn a_stopped_server_keeps_its_port_and_its_data() -> Outcome {
    let mut server = server()?;
    let port = server.port();
    for mode in [StopMode::Fast, StopMode::Immediate] {
        server.stop(mode)?;
        assert!(server.client().is_err());
        server.start()?;
        assert_eq!(server.port(), port);
        assert_eq!(count(&server)?, 0);
    }
    Ok(())
}

#[test]
fn clusters_of_different_names_have_different_system_identifiers() -> Outcome {
    let installation = Installation::from_env()?;
    let mut identifiers = Vec::new();
    for name in ["plain", "other"] {
        let mut server = Cluster::create(&installation, name)?;
        server.start()?;
        let query = "SELECT system_identifier FROM pg_control_system()";
        identifiers.push(one::<i64>(&mut server.client()?, query)?);
    }
    assert_ne!(identifiers[0], identifiers[1]);
    Ok(())
}

#[test]
fn a_standby_follows_and_refuses_writes() -> Outcome {
    let primary = server()?;
    let mut standby = Cluster::standby_of(&primary, "standby")?;
    standby.start()?;
    primary.client()?.batch_execute("INSERT INTO t VALUES (1)")?;
    wait_until("the standby has the row", DEADLINE, || Ok(count(&standby)? == 1))?;
    assert!(standby.client()?.batch_execute("INSERT INTO t VALUES (2)").is_err());
    Ok(())
}

#[test]
fn the_log_tells_the_statements_of_both_protocols() -> Outcome {
    let server = server()?;
    let mut session = server.client()?;
    let mark = server.log().mark()?;
    session.batch_execute("INSERT INTO t\nVALUES (1)")?;
    session.execute("INSERT INTO t VALUES ($1)", &[&2])?;
    assert_eq!(
        server.log().statements_since(mark)?,
        ["INSERT INTO t\nVALUES (1)", "INSERT INTO t VALUES ($1)"]
    );
    Ok(())
}

#[test]
fn a_statement_cut_before_the_server_is_never_executed() -> Outcome {
    let server = server()?;
    let proxy = Proxy::start(server.port())?;
    let mut session = through(&proxy)?;
    let hit = proxy.inject(Fault::cut(Point::Statement, "insert"));
    assert!(session.execute("INSERT INTO t VALUES ($1)", &[&1]).is_err());
    assert_eq!(hit.wait()?, "INSERT INTO t VALUES ($1)");
    assert_eq!(count(&server)?, 0);
    // Once only.
    through(&proxy)?.execute("INSERT INTO t VALUES ($1)", &[&1])?;
    assert_eq!(count(&server)?, 1);
    Ok(())
}

#[test]
fn a_statement_whose_answer_is_cut_has_been_executed() -> Outcome {
    let server = server()?;
    let proxy = Proxy::start(server.port())?;
    for simple in [false, true] {
        let mut session = through(&proxy)?;
        let hit = proxy.inject(Fault::cut(Point::Answer, "INSERT"));
        let lost = match simple {
            true => session.batch_execute("INSERT INTO t VALUES (1)").is_err(),
            false => session.execute("INSERT INTO t VALUES ($1)", &[&1]).is_err(),
        };
        assert!(lost, "the client got an answer");
        hit.wait()?;
        assert_eq!(count(&server)?, 1 + i64::from(simple));
    }
    Ok(())
}

#[test]
fn a_held_statement_waits_for_its_release() -> Outcome {
    let server = server()?;
    let proxy = Proxy::start(server.port())?;
    let hit = proxy.inject(Fault::hold(Point::Statement, "INSERT"));
    let insert = in_background(through(&proxy)?, "INSERT INTO t VALUES (1)");
    hit.wait()?;
    assert_eq!(count(&server)?, 0);
    assert!(!insert.is_finished());
    hit.release();
    insert.join().1?;
    assert_eq!(count(&server)?, 1);
    Ok(())
}

#[test]
fn a_held_answer_leaves_the_statement_executed() -> Outcome {
    let server = server()?;
    let proxy = Proxy::start(server.port())?;
    let hit = proxy.inject(Fault::hold(Point::Answer, "INSERT"));
    let insert = in_background(through(&proxy)?, "INSERT INTO t VALUES (1)");
    hit.wait()?;
    assert_eq!(count(&server)?, 1);
    assert!(!insert.is_finished());
    hit.release();
    insert.join().1?;
    Ok(())
}

#[test]
fn a_held_statement_lands_after_its_client_has_gone() -> Outcome {
    let server = server()?;
    let proxy = Proxy::start(server.port())?;
    let hit = proxy.inject(Fault::hold(Point::Statement, "PREPARE TRANSACTION"));
    let mut session = through(&proxy)?;
    session.batch_execute("BEGIN; INSERT INTO t VALUES (1)")?;
    let prepare = in_background(session, "PREPARE TRANSACTION 'late'");
    hit.wait()?;
    // Closes the connection to the client; the server knows nothing of it.
    let backends = "SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction'";
    assert_eq!(one::<i64>(&mut server.client()?, backends)?, 1);
    proxy.cut_clients();
    assert!(prepare.join().1.is_err());
    assert_eq!(prepared_gids(&server)?, [""; 0]);
    hit.release();
    wait_until("the late PREPARE lands", DEADLINE, || Ok(prepared_gids(&server)? == ["late"]))
}

#[test]
fn new_connections_can_be_refused_and_left_hanging() -> Outcome {
    let server = server()?;
    let proxy = Proxy::start(server.port())?;
    let mut before = through(&proxy)?;
    proxy.set_new_connections(NewConnections::Refused);
    assert!(through(&proxy).is_err());
    proxy.set_new_connections(NewConnections::Hanging);
    let config = Cluster::config_at(proxy.port());
    let attempt = std::thread::spawn(move || config.connect(NoTls).map(drop));
    wait_until("the attempt hangs", DEADLINE, || Ok(proxy.hanging() == 1))?;
    assert!(!attempt.is_finished());
    before.batch_execute("SELECT 1")?;
    proxy.set_new_connections(NewConnections::Served);
    assert!(attempt.join().expect("it only connects").is_err());
    through(&proxy)?.batch_execute("SELECT 1")?;
    Ok(())
}
