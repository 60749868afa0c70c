//! Statements that wait for a host which has vanished.

use pg_test::network::Loss;
use pg_test::oracle::{assert_usable, expect_error, one};

use super::{at_work, ended, hosts, notice_soon};
use crate::support::{
    Outcome, assert_commits, assert_recovered, begin_everywhere, in_background, signal,
};

/// The shard has taken the statement, and nothing is on its way: only probes tell that it is gone.
#[test]
fn keepalives_end_a_statement_whose_shard_has_vanished() -> Outcome {
    let Some(fleet) = hosts(false)? else { return Ok(()) };
    notice_soon(&fleet)?;
    let statement = at_work(&fleet, fleet.session()?)?;
    fleet.cable(2).lose(Loss::Both)?;
    let (mut session, result) = ended(statement)?;
    expect_error(result, "08006");
    fleet.cable(2).mend()?;
    assert_commits(&fleet, &mut session, 1)
}

/// What is on its way when the shard vanishes is sent again and again; keepalives do not count then.
#[test]
fn tcp_user_timeout_ends_a_statement_that_does_not_arrive() -> Outcome {
    let Some(fleet) = hosts(false)? else { return Ok(()) };
    fleet.session()?.batch_execute("ALTER SERVER shard2 OPTIONS (ADD tcp_user_timeout '2000')")?;
    let mut session = fleet.session()?;
    begin_everywhere(&mut session, 1)?;
    fleet.cable(2).lose(Loss::Both)?;
    let (mut session, result) = ended(in_background(session, "INSERT INTO ft2 VALUES (2, 'x')"))?;
    expect_error(result, "08006");
    session.batch_execute("ROLLBACK")?;
    fleet.cable(2).mend()?;
    assert_recovered(&fleet, 1, false)
}

/// Red on 0.2.0: the kernel's own setting, two hours.
#[test]
fn probes_are_sent_where_nobody_has_said_otherwise() -> Outcome {
    let Some(fleet) = hosts(false)? else { return Ok(()) };
    let statement = at_work(&fleet, fleet.session()?)?;
    for connection in fleet.cable(2).connections()? {
        assert!(connection.contains("timer:(keepalive,"), "{connection}");
        assert!(!connection.contains("min"), "{connection}");
    }
    drop(statement);
    Ok(())
}

/// Packets vanish in one direction, or in both: a timeout and a cancel end the statement, and other
/// shards are not concerned.
#[test]
fn a_timeout_and_a_cancel_end_a_statement_while_packets_vanish() -> Outcome {
    let Some(fleet) = hosts(false)? else { return Ok(()) };
    let mut other = fleet.session()?;
    for (id, loss) in (1..).zip([Loss::ToShard, Loss::ToCoordinator, Loss::Both]) {
        let mut timed = fleet.session()?;
        timed.batch_execute("SELECT count(*) FROM ft2; SET statement_timeout = '1s'")?;
        let mut cancelled = fleet.session()?;
        cancelled.batch_execute("SELECT count(*) FROM ft2")?;
        let pid: i32 = one(&mut cancelled, "SELECT pg_backend_pid()")?;
        fleet.cable(2).lose(loss)?;
        let sql = "SELECT count(*) FROM ft2";
        let statements = [in_background(timed, sql), in_background(cancelled, sql)];
        other.batch_execute(&format!(
            "BEGIN; INSERT INTO lt VALUES (-{id}, 'x'); INSERT INTO ft1 VALUES (-{id}, 'x'); COMMIT"
        ))?;
        signal(&fleet, "pg_cancel_backend", pid)?;
        for statement in statements {
            let (mut session, result) = ended(statement)?;
            expect_error(result, "57014");
            assert_usable(&mut session);
        }
        // A new connection.
        other.batch_execute("SET statement_timeout = '1s'")?;
        let (mut session, result) = ended(in_background(other, sql))?;
        expect_error(result, "57014");
        fleet.cable(2).mend()?;
        session.batch_execute("RESET statement_timeout")?;
        assert_commits(&fleet, &mut session, id)?;
        other = session;
    }
    assert_recovered(&fleet, 1, true)
}

#[test]
fn connect_timeout_ends_a_connection_to_a_host_that_is_not_there() -> Outcome {
    let Some(fleet) = hosts(false)? else { return Ok(()) };
    let session = fleet.session()?;
    fleet.session()?.batch_execute("ALTER SERVER shard2 OPTIONS (ADD connect_timeout '2')")?;
    fleet.cable(2).lose(Loss::Both)?;
    let (mut session, result) = ended(in_background(session, "SELECT count(*) FROM ft2"))?;
    expect_error(result, "08001");
    fleet.cable(2).mend()?;
    assert_commits(&fleet, &mut session, 1)
}
