//! COMMIT over foreign servers: how many phases it takes, what each shard is sent, and a shard that
//! is gone before or after the decision.

use pg_test::oracle::{assert_settled, assert_usable, one, prepared_gids};
use pg_test::{Fault, Fleet, Point, StopMode};

use crate::support::{
    NONE, Outcome, assert_commits, assert_everywhere, begin_everywhere, commit_held_at, gid_of,
    serverid, session_with_notices, transaction,
};

const INSERT_1: &str = "INSERT INTO ft1 VALUES (1, 'x')";
const INSERT_2: &str = "INSERT INTO ft2 VALUES (1, 'x')";

fn prepares(statements: &[String]) -> usize {
    statements.iter().filter(|statement| statement.starts_with("PREPARE")).count()
}

#[test]
fn a_single_writer_commits_in_one_phase() -> Outcome {
    let fleet = Fleet::start()?;
    let mark = fleet.shard(1).log().mark()?;
    transaction(&mut fleet.session()?, &[INSERT_1])?;
    let statements = fleet.shard(1).log().statements_since(mark)?;
    assert_eq!(prepares(&statements), 0, "{statements:#?}");
    assert!(statements.iter().any(|statement| statement.starts_with("COMMIT")), "{statements:#?}");
    assert_eq!(fleet.ids_on_shard(1)?, [1]);
    assert_settled(&fleet);
    Ok(())
}

#[test]
fn two_writers_prepare_and_then_commit_under_gids_of_one_transaction() -> Outcome {
    let fleet = Fleet::start()?;
    let mut session = fleet.session()?;
    let userid: u32 = one(&mut session, "SELECT oid FROM pg_roles WHERE rolname = current_user")?;
    let marks = [fleet.shard(1).log().mark()?, fleet.shard(2).log().mark()?];
    transaction(&mut session, &[INSERT_1, INSERT_2])?;
    let mut ns = Vec::new();
    for (number, mark) in [1, 2].into_iter().zip(marks) {
        let statements = fleet.shard(number).log().statements_since(mark)?;
        let gid = gid_of(&statements, "PREPARE TRANSACTION");
        assert_eq!(gid_of(&statements, "COMMIT PREPARED"), gid);
        let at = |word: &str| statements.iter().position(|line| line.starts_with(word));
        assert!(at("PREPARE TRANSACTION") < at("COMMIT PREPARED"), "{statements:#?}");
        assert_eq!(gid.serverid, serverid(&fleet, number)?);
        assert_eq!(gid.userid, userid);
        assert_eq!(fleet.ids_on_shard(number)?, [1]);
        ns.push(gid.n);
    }
    assert_eq!(ns[0], ns[1], "participants of one transaction share <n>");
    assert_settled(&fleet);
    Ok(())
}

#[test]
fn the_gid_names_the_local_user_whose_mapping_is_used() -> Outcome {
    let fleet = Fleet::start()?;
    fleet.session()?.batch_execute(
        "CREATE ROLE alice LOGIN SUPERUSER;
         CREATE USER MAPPING FOR alice SERVER shard1 OPTIONS (user 'postgres');
         CREATE USER MAPPING FOR alice SERVER shard2 OPTIONS (user 'postgres')",
    )?;
    let mut session = fleet.coordinator.client_for("postgres", "alice")?;
    let userid: u32 = one(&mut session, "SELECT 'alice'::regrole::oid")?;
    let mark = fleet.shard(1).log().mark()?;
    transaction(&mut session, &[INSERT_1, INSERT_2])?;
    let statements = fleet.shard(1).log().statements_since(mark)?;
    assert_eq!(gid_of(&statements, "PREPARE TRANSACTION").userid, userid);
    assert_settled(&fleet);
    Ok(())
}

#[test]
fn a_single_writer_beside_a_local_write_needs_two_phases() -> Outcome {
    let fleet = Fleet::start()?;
    let mark = fleet.shard(1).log().mark()?;
    transaction(&mut fleet.session()?, &["INSERT INTO lt VALUES (1, 'x')", INSERT_1])?;
    let statements = fleet.shard(1).log().statements_since(mark)?;
    assert_eq!(gid_of(&statements, "PREPARE TRANSACTION"), gid_of(&statements, "COMMIT PREPARED"));
    assert_eq!((fleet.ids_in_lt()?, fleet.ids_on_shard(1)?), (vec![1], vec![1]));
    assert_settled(&fleet);
    Ok(())
}

#[test]
fn a_reader_beside_a_writer_does_not_prepare() -> Outcome {
    let fleet = Fleet::start()?;
    let marks = [fleet.shard(1).log().mark()?, fleet.shard(2).log().mark()?];
    transaction(&mut fleet.session()?, &[INSERT_1, "SELECT * FROM ft2"])?;
    for (number, mark) in [1, 2].into_iter().zip(marks) {
        let statements = fleet.shard(number).log().statements_since(mark)?;
        assert_eq!(prepares(&statements), 0, "shard {number}: {statements:#?}");
    }
    assert_eq!(fleet.ids_on_shard(1)?, [1]);
    assert_settled(&fleet);
    Ok(())
}

#[test]
fn a_scan_that_writes_makes_its_shard_a_writer() -> Outcome {
    let fleet = Fleet::start()?;
    fleet.shard(2).client()?.batch_execute(
        "CREATE FUNCTION note() RETURNS int LANGUAGE sql AS
             $$ INSERT INTO public.t VALUES (7, 'by a view') RETURNING id $$;
         CREATE VIEW noting AS SELECT note() AS id",
    )?;
    let mut session = fleet.session()?;
    session.batch_execute(
        "CREATE FOREIGN TABLE noting (id int) SERVER shard2 OPTIONS (table_name 'noting')",
    )?;
    let marks = [fleet.shard(1).log().mark()?, fleet.shard(2).log().mark()?];
    transaction(&mut session, &[INSERT_1, "SELECT * FROM noting"])?;
    for (number, mark) in [1, 2].into_iter().zip(marks) {
        let statements = fleet.shard(number).log().statements_since(mark)?;
        gid_of(&statements, "PREPARE TRANSACTION");
    }
    assert_eq!((fleet.ids_on_shard(1)?, fleet.ids_on_shard(2)?), (vec![1], vec![7]));
    assert_settled(&fleet);
    Ok(())
}

#[test]
fn rollback_leaves_nothing_anywhere() -> Outcome {
    let fleet = Fleet::start()?;
    let mut session = fleet.session()?;
    begin_everywhere(&mut session, 1)?;
    session.batch_execute("ROLLBACK")?;
    assert_everywhere(&fleet, 1, false)?;
    assert_settled(&fleet);
    assert_commits(&fleet, &mut session, 2)
}

#[test]
fn a_failing_deferred_constraint_rolls_everybody_back() -> Outcome {
    let fleet = Fleet::start()?;
    let mut session = fleet.session()?;
    session.batch_execute(
        "CREATE TABLE parent (id int PRIMARY KEY);
         ALTER TABLE lt ADD FOREIGN KEY (id) REFERENCES parent DEFERRABLE INITIALLY DEFERRED",
    )?;
    begin_everywhere(&mut session, 1)?;
    pg_test::oracle::expect_error(session.batch_execute("COMMIT"), "23503");
    assert_usable(&mut session);
    assert_everywhere(&fleet, 1, false)?;
    assert_settled(&fleet);
    Ok(())
}

#[test]
fn a_remote_error_in_prepare_rolls_everybody_back() -> Outcome {
    let fleet = Fleet::start()?;
    // A deferred constraint of the shard's own is checked in its PREPARE TRANSACTION.
    fleet.shard(2).client()?.batch_execute(
        "CREATE TABLE parent (id int PRIMARY KEY);
         ALTER TABLE t ADD FOREIGN KEY (id) REFERENCES parent DEFERRABLE INITIALLY DEFERRED",
    )?;
    let mut session = fleet.session()?;
    begin_everywhere(&mut session, 1)?;
    let error = pg_test::oracle::expect_error(session.batch_execute("COMMIT"), "23503");
    assert!(
        format!("{error:?}").contains("shard2"),
        "the error does not name the server: {error:#?}"
    );
    assert_usable(&mut session);
    assert_everywhere(&fleet, 1, false)?;
    assert_settled(&fleet);
    Ok(())
}

#[test]
fn a_shard_that_is_down_at_commit_aborts_everywhere() -> Outcome {
    let mut fleet = Fleet::start()?;
    let mut session = fleet.session()?;
    begin_everywhere(&mut session, 1)?;
    fleet.shard_mut(1).stop(StopMode::Fast)?;
    let error = session.batch_execute("COMMIT").expect_err("shard 1 is down");
    let report = error.as_db_error().expect("the coordinator answers");
    let code = report.code().code();
    assert!(!code.starts_with("08"), "a definite abort is not of class 08: {report:#?}");
    assert!(
        format!("{report:?}").contains("shard1"),
        "the error does not name the server: {report:#?}"
    );
    assert_usable(&mut session);
    assert_eq!(fleet.ids_in_lt()?, NONE);
    assert_eq!(fleet.ids_on_shard(2)?, NONE);
    fleet.shard_mut(1).start()?;
    assert_settled(&fleet);
    assert_everywhere(&fleet, 1, false)?;
    assert_commits(&fleet, &mut session, 2)
}

#[test]
fn a_shard_killed_in_prepare_aborts_everywhere_and_is_settled_when_back() -> Outcome {
    let mut fleet = Fleet::start_proxied()?;
    let mut session = fleet.session()?;
    begin_everywhere(&mut session, 1)?;
    // It has prepared, but nobody knows.
    let (commit, hit) = commit_held_at(&fleet, session, 1, Point::Answer, "PREPARE TRANSACTION")?;
    fleet.shard_mut(1).kill9()?;
    fleet.proxy(1).cut_all();
    hit.release();
    let (mut session, result) = commit.join();
    result.expect_err("the outcome of PREPARE is unknown");
    assert_usable(&mut session);
    assert_eq!(fleet.ids_on_shard(2)?, NONE);
    fleet.shard_mut(1).start()?;
    assert_settled(&fleet);
    assert_everywhere(&fleet, 1, false)
}

#[test]
fn a_shard_killed_at_the_decision_commits_when_it_is_back() -> Outcome {
    let mut fleet = Fleet::start_proxied()?;
    let (mut session, notices) = session_with_notices(&fleet)?;
    begin_everywhere(&mut session, 1)?;
    let (commit, hit) = commit_held_at(&fleet, session, 1, Point::Statement, "COMMIT PREPARED")?;
    fleet.shard_mut(1).kill9()?;
    hit.release();
    let (mut session, result) = commit.join();
    result?;
    let warnings = notices.take();
    assert!(
        warnings.iter().any(|line| line.starts_with("WARNING") && line.contains("shard1")),
        "no warning that names the server: {warnings:#?}"
    );
    assert_usable(&mut session);
    assert_eq!(fleet.ids_in_lt()?, [1]);
    assert_eq!(fleet.ids_on_shard(2)?, [1]);
    fleet.shard_mut(1).start()?;
    assert_settled(&fleet);
    assert_everywhere(&fleet, 1, true)?;
    assert_commits(&fleet, &mut session, 2)
}

#[test]
fn while_a_shard_is_away_its_decided_participant_stays_prepared_there() -> Outcome {
    let mut fleet = Fleet::start_proxied()?;
    let mut session = fleet.session()?;
    begin_everywhere(&mut session, 1)?;
    let hit = fleet.proxy(1).inject(Fault::cut(Point::Statement, "COMMIT PREPARED"));
    fleet.proxy(1).set_new_connections(pg_test::proxy::NewConnections::Refused);
    session.batch_execute("COMMIT")?;
    hit.wait()?;
    // A crash and restart of the shard changes nothing: what was prepared is durable.
    fleet.shard_mut(1).kill9()?;
    fleet.shard_mut(1).start()?;
    assert_eq!(prepared_gids(fleet.shard(1))?.len(), 1);
    fleet.proxy(1).set_new_connections(pg_test::proxy::NewConnections::Served);
    assert_settled(&fleet);
    assert_everywhere(&fleet, 1, true)
}
