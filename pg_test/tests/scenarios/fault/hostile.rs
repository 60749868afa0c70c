//! A shard that answers with what was not asked: errors, no crash, no hang, no wrong settlement.

use std::time::Duration;

use pg_test::hostile::{Manner, Options, run};
use pg_test::oracle::{assert_usable, expect_error};
use pg_test::proxy::NewConnections;
use pg_test::wire::Message;
use pg_test::{Fault, Fleet, Point};

use crate::support::*;

/// The end of a command, with a tag.
fn done(tag: &str) -> Message {
    Message::new(b'C', format!("{tag}\0").as_bytes())
}

/// A row of one column, which is NULL.
fn null_row() -> Message {
    Message::new(b'D', &[0, 1, 0xff, 0xff, 0xff, 0xff])
}

/// Rounds of transactions, with answers spoiled by fixed seeds; more: `cargo xtask fuzz shard`.
fn rounds(manner: Manner) -> Outcome {
    let duration = Duration::from_secs(8);
    let report =
        run(Options { seed: 1, manner, may_be_silent: false, duration, rounds: 100 }, |_| ())?;
    assert!(report.spoiled > 0, "{report:?}");
    Ok(())
}

#[test]
fn answers_that_fit_nothing_do_no_harm() -> Outcome {
    rounds(Manner::Garbled)
}

#[test]
fn a_shard_that_lies_harms_no_other() -> Outcome {
    rounds(Manner::Lying)
}

/// The end of the session, with the code of what is not there.
fn fatal() -> Message {
    Message::new(b'E', b"SFATAL\0VFATAL\0C42704\0Mthe session ends\0\0")
}

/// Red: any tag but its own counted as that of ROLLBACK, a FATAL as a refusal, and what shard 2 had
/// prepared stayed there for ever.
#[test]
fn a_tag_of_another_command_says_nothing_of_prepare() -> Outcome {
    let fleet = Fleet::start_proxied()?;
    let mut session = fleet.session()?;
    let answers = [done("PREPARED"), done("SELECT 1"), done(""), fatal()];
    for (id, answer) in (1..).zip(&answers) {
        begin_everywhere(&mut session, id)?;
        let hit = fleet.proxy(2).inject(Fault::answer("PREPARE TRANSACTION", answer));
        expect_error(session.batch_execute("COMMIT"), "40000");
        hit.wait()?;
        assert_recovered(&fleet, id, false)?;
    }
    Ok(())
}

/// Red on 0.2.0: "had already rolled back", or an error without a message, and the row was there.
#[test]
fn nor_of_a_commit_in_one_phase() -> Outcome {
    let fleet = Fleet::start_proxied()?;
    let mut session = fleet.session()?;
    let error_without_fields = Message::new(b'E', b"\0");
    for (id, answer) in [(1, done("SELECT 1")), (2, error_without_fields)] {
        session.batch_execute(&format!("BEGIN; INSERT INTO ft2 VALUES ({id}, 'x')"))?;
        let hit = fleet.proxy(2).inject(Fault::answer("COMMIT", &answer));
        session.batch_execute("COMMIT")?;
        hit.wait()?;
        assert!(fleet.ids_on_shard(2)?.contains(&id), "{id}");
    }
    assert_usable(&mut session);
    Ok(())
}

/// Red on 0.2.0: PostgreSQL was told that number, which servers up to 15.18 take for that of the
/// slots: they read memory that is not theirs.
#[test]
fn more_rows_than_were_sent_are_an_error() -> Outcome {
    let fleet = Fleet::start_proxied()?;
    let mut session = fleet.session()?;
    for rows in [1, 100] {
        let hit = fleet.proxy(2).inject(Fault::answer("INSERT", &done("INSERT 0 5000000")));
        let insert = format!("INSERT INTO ft2 SELECT n, 'x' FROM generate_series(1, {rows}) n");
        let result = session.batch_execute(&insert);
        hit.wait()?;
        expect_error(result, "08P01");
    }
    assert_recovered(&fleet, 1, false)
}

/// A gid that could not be read counted as none, and what was prepared stayed there for ever.
#[test]
fn the_resolver_concludes_nothing_from_a_list_that_it_cannot_read() -> Outcome {
    let fleet = Fleet::start_proxied()?;
    let mut session = fleet.session()?;
    begin_everywhere(&mut session, 1)?;
    let cut = fleet.proxy(2).inject(Fault::cut(Point::Answer, "PREPARE TRANSACTION"));
    fleet.proxy(2).set_new_connections(NewConnections::Refused);
    expect_error(session.batch_execute("COMMIT"), "40000");
    cut.wait()?;
    let list = "SELECT gid FROM pg_catalog.pg_prepared_xacts";
    let hit = fleet.proxy(2).inject(Fault::answer(list, &null_row()));
    fleet.reconnect(2);
    hit.wait()?;
    assert_recovered(&fleet, 1, false)
}
