//! A transaction over shards 1 and 2 that shard 2 has not heard of, and statements of others
//! meanwhile.

use pg_test::oracle::one;
use pg_test::proxy::Hit;
use pg_test::{DEADLINE, Fault, Fleet, Point, wait_until};
use postgres::{Client, Error};

use crate::support::{Background, begin_everywhere, in_background};

/// A session whose reads are consistent.
pub fn reader(fleet: &Fleet) -> anyhow::Result<Client> {
    let mut reader = fleet.session()?;
    reader.batch_execute("SET pg_fdw_xacts.consistent_reads = on")?;
    Ok(reader)
}

/// `COMMIT`, or what else `end` says, of a transaction that has written row `id` everywhere. It is
/// held before it tells shard 2; shard 1 has heard.
pub fn half_delivered(
    fleet: &Fleet,
    mut writer: Client,
    id: i32,
    end: &str,
) -> anyhow::Result<(Hit, Background)> {
    let hit = fleet.proxy(2).inject(Fault::hold(Point::Statement, "COMMIT PREPARED"));
    if !end.starts_with("COMMIT PREPARED") {
        begin_everywhere(&mut writer, id)?;
    }
    let writer = in_background(writer, end);
    hit.wait()?;
    wait_until("shard 1 has it", DEADLINE, || Ok(fleet.ids_on_shard(1)?.contains(&id)))?;
    Ok((hit, writer))
}

/// What `ask` gives in `reader`, which must wait until `release` is called.
pub fn after_waiting<T: Send + 'static>(
    fleet: &Fleet,
    mut reader: Client,
    ask: impl FnOnce(&mut Client) -> Result<T, Error> + Send + 'static,
    release: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<(Client, Result<T, Error>)> {
    let pid: i32 = one(&mut reader, "SELECT pg_backend_pid()")?;
    let asked = std::thread::spawn(move || {
        let answer = ask(&mut reader);
        (reader, answer)
    });
    wait_until_it_waits(fleet, pid)?;
    assert!(!asked.is_finished(), "it has not waited");
    release()?;
    Ok(asked.join().expect("the thread only asks"))
}

/// Waits until that backend pauses between rounds.
pub fn wait_until_it_waits(fleet: &Fleet, pid: i32) -> anyhow::Result<()> {
    let rounds = "SELECT count(*) FROM pg_stat_activity
         WHERE state = 'active' AND wait_event_type = 'Extension' AND pid =";
    let mut observer = fleet.session()?;
    wait_until("the reader waits", DEADLINE, || {
        Ok(one::<i64>(&mut observer, &format!("{rounds} {pid}"))? == 1)
    })
}

/// Waits until the one session whose query begins with `query` waits for servers.
pub fn wait_until_query_waits(observer: &mut Client, query: &str) -> anyhow::Result<()> {
    let waits = format!(
        "SELECT count(*) FROM pg_stat_activity
         WHERE query LIKE '{query}%' AND wait_event_type = 'Extension'"
    );
    wait_until("the reader waits", DEADLINE, || Ok(one::<i64>(observer, &waits)? == 1))
}
