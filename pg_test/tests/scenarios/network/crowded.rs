//! Networks that lose some packets or are slow, and a shard that does not read.

use pg_test::network::Loss;
use pg_test::oracle::expect_error;
use pg_test::{DEADLINE, wait_until};

use super::{ended, hosts, notice_soon};
use crate::support::{
    Outcome, assert_commits, assert_everywhere, assert_recovered, begin_everywhere, in_background,
};

/// One message that is larger than what both kernels keep for a connection.
const LARGE: &str = "INSERT INTO ft2 VALUES (2, repeat('x', 30000000))";

/// A packet in ten is lost and sent again, each time after a longer while: latency, and jitter.
#[test]
fn a_network_that_loses_some_packets_is_only_slow() -> Outcome {
    let Some(fleet) = hosts(false)? else { return Ok(()) };
    let mut session = fleet.session()?;
    assert_commits(&fleet, &mut session, 1)?;
    for number in [1, 2] {
        fleet.cable(number).lose(Loss::Some(10))?;
    }
    for id in 2..8 {
        begin_everywhere(&mut session, id)?;
        session.batch_execute("COMMIT")?;
    }
    for number in [1, 2] {
        fleet.cable(number).mend()?;
    }
    for id in 2..8 {
        assert_everywhere(&fleet, id, true)?;
    }
    assert_recovered(&fleet, 1, true)
}

/// What is written goes out slowly, and commands of others queue up behind it.
#[test]
fn a_narrow_network_is_only_slow() -> Outcome {
    let Some(fleet) = hosts(false)? else { return Ok(()) };
    let mut session = fleet.session()?;
    assert_commits(&fleet, &mut session, 1)?;
    fleet.cable(2).narrow(4000)?;
    let bulk = in_background(
        fleet.session()?,
        "INSERT INTO ft2 SELECT n, repeat('x', 10000) FROM generate_series(100, 150) n",
    );
    assert_commits(&fleet, &mut session, 2)?;
    ended(bulk)?.1?;
    assert_recovered(&fleet, 1, true)
}

/// In how many seconds the closed window of a connection is probed again: `timer:(persist,3.120ms,0)`
/// for 3.12 s, `timer:(persist,12sec,0)`. It is twice as long each time, from 0.2 s on.
fn next_probe(connection: &str) -> Option<u32> {
    let timer = connection.split_once("timer:(persist,")?.1;
    let (seconds, _) = timer.split_once('.').or_else(|| timer.split_once("sec"))?;
    seconds.parse().ok()
}

/// The window is closed: nothing can be sent until the shard reads again.
#[test]
fn statement_timeout_ends_what_a_shard_does_not_read() -> Outcome {
    let Some(fleet) = hosts(false)? else { return Ok(()) };
    let mut session = fleet.session()?;
    assert_commits(&fleet, &mut session, 1000)?;
    session.batch_execute("SET statement_timeout = '1s'")?;
    let frozen = fleet.shard(2).freeze()?;
    let (mut session, result) = ended(in_background(session, LARGE))?;
    expect_error(result, "57014");
    drop(frozen);
    assert_eq!(fleet.ids_on_shard(2)?, [1000]);
    session.batch_execute("RESET statement_timeout")?;
    assert_commits(&fleet, &mut session, 1)?;
    assert_recovered(&fleet, 1, true)
}

/// A shard that is there and does not read for longer than keepalives take is waited for.
#[test]
fn a_shard_that_does_not_read_for_a_while_is_waited_for() -> Outcome {
    let Some(fleet) = hosts(false)? else { return Ok(()) };
    notice_soon(&fleet)?;
    let mut session = fleet.session()?;
    assert_commits(&fleet, &mut session, 1000)?;
    let frozen = fleet.shard(2).freeze()?;
    let insert = in_background(session, LARGE);
    wait_until("the window has been probed for three seconds", DEADLINE, || {
        let connections = fleet.cable(2).connections()?;
        Ok(connections.iter().filter_map(|line| next_probe(line)).any(|seconds| seconds >= 3))
    })?;
    drop(frozen);
    ended(insert)?.1?;
    assert_eq!(fleet.ids_on_shard(2)?, [2, 1000]);
    assert_recovered(&fleet, 2000, false)
}
