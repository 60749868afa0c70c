//! What must hold after every scenario, and errors as a scenario expects them.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use postgres::error::DbError;
use postgres::{Client, Error};

use crate::{Cluster, DEADLINE, Fleet, wait_until};

/// Waits until nothing is left of any distributed transaction: no prepared transaction on the
/// coordinator or on a shard, no row in the view, no advisory lock of a session that is gone. All
/// servers must run.
pub fn assert_settled(fleet: &Fleet) {
    if let Err(error) = settled_within(fleet, DEADLINE) {
        panic!("{error:#}");
    }
}

/// [`assert_settled`] with a deadline, as an error.
pub fn settled_within(fleet: &Fleet, deadline: Duration) -> Result<()> {
    let mut left = String::new();
    let outcome = wait_until("nothing is in doubt on any server", deadline, || {
        left.clear();
        for cluster in std::iter::once(&fleet.coordinator).chain(fleet.shards()) {
            for gid in prepared_gids(cluster)? {
                left += &format!("{} has prepared '{gid}'\n", cluster.name());
            }
        }
        let shown = "SELECT row_to_json(x)::text FROM pg_fdw_xacts x";
        for row in fleet.coordinator.client()?.query(shown, &[])? {
            left += &format!("pg_fdw_xacts shows {}\n", row.get::<_, String>(0));
        }
        Ok(left.is_empty())
    });
    outcome.with_context(|| format!("left behind:\n{left}"))
}

/// Waits until no shard holds a lock of a transaction any more: what is prepared and what runs
/// holds some. The test itself must have no transaction open.
pub fn assert_no_locks(fleet: &Fleet) -> Result<()> {
    for shard in fleet.shards() {
        let mut session = shard.client()?;
        let what = format!("no transaction holds locks on {}", shard.name());
        wait_until(&what, DEADLINE, || {
            let left: i64 = one(
                &mut session,
                "SELECT count(*) FROM pg_locks l
                     LEFT JOIN pg_stat_activity a ON a.pid = l.pid
                 WHERE l.locktype <> 'advisory' AND l.pid IS DISTINCT FROM pg_backend_pid()
                     AND a.backend_type IS DISTINCT FROM 'autovacuum worker'",
            )?;
            Ok(left == 0)
        })?;
    }
    Ok(())
}

/// One number of `pg_stat_fdw_xacts` for shard `number`; 0 where nothing has been counted.
pub fn statistic(fleet: &Fleet, number: usize, column: &str) -> Result<i64> {
    let sql = format!(
        "SELECT coalesce((SELECT {column} FROM pg_stat_fdw_xacts WHERE server = 'shard{number}'), 0)"
    );
    one(&mut fleet.session()?, &sql)
}

/// Waits until the resolver has come `count` times more to shard `number`, with or without success.
pub fn wait_for_attempts(fleet: &Fleet, number: usize, count: i64) -> Result<()> {
    let before = statistic(fleet, number, "attempts")?;
    let what = format!("the resolver comes {count} times to shard {number}");
    wait_until(&what, DEADLINE, || Ok(statistic(fleet, number, "attempts")? >= before + count))
}

/// The gids prepared on a server, in any of its databases.
pub fn prepared_gids(cluster: &Cluster) -> Result<Vec<String>> {
    let rows = cluster.client()?.query("SELECT gid FROM pg_prepared_xacts ORDER BY gid", &[])?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// The error of the server behind `result`, which must have failed with SQLSTATE `code`.
#[track_caller]
pub fn expect_error<T>(result: Result<T, Error>, code: &str) -> DbError {
    let error = match result {
        Ok(_) => panic!("no error where {code} was expected"),
        Err(error) => error,
    };
    let Some(report) = error.as_db_error() else {
        panic!("expected {code}, but not even the server answered: {error:?}")
    };
    assert_eq!(report.code().code(), code, "another error than expected: {report:#?}");
    report.clone()
}

/// `result` is that of a session that was terminated: the client has read the server's last word,
/// or only the end of the connection.
#[track_caller]
pub fn expect_terminated<T>(result: Result<T, Error>) {
    let Err(error) = result else { panic!("no error where the session was terminated") };
    let code = error.code().map(|code| code.code());
    assert!(matches!(code, None | Some("57P01")), "not a termination: {error:?}");
}

/// A session that failed must go on: `SELECT 1` works in it.
#[track_caller]
pub fn assert_usable(session: &mut Client) {
    let one: i32 = session
        .query_one("SELECT 1", &[])
        .unwrap_or_else(|error| panic!("the session is not usable any more: {error:?}"))
        .get(0);
    assert_eq!(one, 1);
}

/// The single value that `query` gives.
pub fn one<T>(session: &mut Client, query: &str) -> Result<T>
where
    T: for<'a> postgres::types::FromSql<'a>,
{
    let rows = session.query(query, &[]).with_context(|| query.to_owned())?;
    match rows.as_slice() {
        [row] => Ok(row.try_get(0)?),
        rows => bail!("{query}: {} rows instead of one", rows.len()),
    }
}
