//! A shard that answers with what was not asked: errors, no crash, no hang, no wrong settlement.

use std::time::Duration;

use pg_test::hostile::{Manner, Options, run};
use pg_test::oracle::{assert_usable, expect_error, one};
use pg_test::proxy::NewConnections;
use pg_test::wire::Message;
use pg_test::{DEADLINE, Fault, Fleet, FleetOptions, Point, wait_until};

use crate::support::*;

/// The end of a command, with a tag.
fn done(tag: &str) -> Message {
    Message::new(b'C', format!("{tag}\0").as_bytes())
}

/// A row of these values.
fn row<'a>(values: impl IntoIterator<Item = Option<&'a str>>) -> Message {
    let columns: Vec<Vec<u8>> = values
        .into_iter()
        .map(|value| match value {
            Some(text) => [&(text.len() as u32).to_be_bytes()[..], text.as_bytes()].concat(),
            None => vec![0xff; 4],
        })
        .collect();
    let count = (columns.len() as u16).to_be_bytes();
    Message::new(b'D', &[&count[..], &columns.concat()].concat())
}

/// What is no answer at all.
fn notice() -> Message {
    Message::new(b'N', b"SNOTICE\0VNOTICE\0C00000\0Mnothing\0\0")
}

/// Rounds of transactions, with answers spoiled by fixed seeds; more: `cargo xtask fuzz shard`.
fn rounds(manner: Manner) -> Outcome {
    let duration = Duration::from_secs(5);
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

/// Red without the check: what is not answered counted as "it has not written", and the shard was
/// left out of two phases.
#[test]
fn a_missing_answer_does_not_say_that_nothing_was_written() -> Outcome {
    let fleet = Fleet::start_proxied()?;
    let mut session = fleet.session()?;
    let asked_after_a_query = "SELECT pg_catalog.pg_current_xact_id_if_assigned";
    let asked_after_others = "SELECT CASE WHEN pg_catalog.pg_is_in_recovery";
    for (id, sql, question) in [
        (1, "SELECT count(*) FROM ft2", asked_after_a_query),
        (2, "INSERT INTO ft2 VALUES (2, 'x')", asked_after_others),
    ] {
        session.batch_execute(&format!(
            "BEGIN; INSERT INTO lt VALUES ({id}, 'x'); INSERT INTO ft1 VALUES ({id}, 'x')"
        ))?;
        // Stands in the place of the only row.
        let hit = fleet.proxy(2).inject(Fault::answer(question, &notice()));
        let result = session.batch_execute(sql).and_then(|()| session.batch_execute("COMMIT"));
        hit.wait()?;
        // The statement has it, or, if it has not read so far, COMMIT.
        let error = result.expect_err("the question was not answered");
        let code = error.code().map(|code| code.code());
        assert!(matches!(code, Some("08P01" | "40000")), "{error:?}");
        session.batch_execute("ROLLBACK")?;
        assert_recovered(&fleet, id, false)?;
    }
    Ok(())
}

/// Red without the mend: an overflow, which ended the look for deadlocks, or the resolver.
#[test]
fn a_wait_since_before_all_time_is_a_wait() -> Outcome {
    let fleet = Fleet::start_with(&FleetOptions {
        proxied: true,
        coordinator: vec![("deadlock_timeout", "100ms")],
        ..FleetOptions::default()
    })?;
    let mut session = fleet.session()?;
    session.batch_execute("INSERT INTO ft2 VALUES (1, 'x')")?;
    session.batch_execute("BEGIN; UPDATE ft2 SET v = 'y'")?;
    let values = ["1", "f", "ShareLock", "3/4", "-9223372036854775808", "transactionid"];
    let values = values.map(Some).into_iter().chain([None; 9]);
    let hit = fleet.proxy(2).inject(Fault::answer("SELECT pid, granted, mode", &row(values)));
    let waiting = in_background(fleet.session()?, "UPDATE ft2 SET v = 'z'");
    hit.wait()?;
    let mut operator = fleet.session()?;
    wait_until("the wait is shown after another look", DEADLINE, || {
        one(&mut operator, "SELECT count(*) > 0 FROM pg_fdw_xacts_waits")
    })?;
    session.batch_execute("ROLLBACK")?;
    waiting.join().1?;
    let log = fleet.coordinator.log().tail(1000)?;
    assert!(!log.contains("overflow"), "{log}");
    Ok(())
}

/// Red without the mend: a gid that could not be read counted as none, and what was prepared stayed
/// there for ever.
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
    let hit = fleet.proxy(2).inject(Fault::answer(list, &row([None])));
    fleet.reconnect(2);
    hit.wait()?;
    assert_recovered(&fleet, 1, false)
}
