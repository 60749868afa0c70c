//! What several scenarios do to leave something in doubt and to look at what is told of it.

use pg_test::Fleet;
use pg_test::log::Mark;
use pg_test::oracle::one;
use postgres::Client;

use crate::support::serverid;

/// What is told of a transaction in doubt on a shard, by the view, the statistics and
/// `pg_fdw_xacts_resolve()`.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// `identifier`, `status` and `reason` of each row of the view on that shard.
    pub view: Vec<(String, String, String)>,
    /// `in_doubt`, and whether `oldest_in_doubt` is known.
    pub in_doubt: (i64, bool),
    pub last_error: String,
    pub failures: i64,
}

/// What the views say of shard `number`.
pub fn told(fleet: &Fleet, number: usize) -> anyhow::Result<Told> {
    let mut session = fleet.session()?;
    let view = session
        .query(
            "SELECT identifier, status, coalesce(reason, '') FROM pg_fdw_xacts
             WHERE serverid = $1 ORDER BY identifier",
            &[&serverid(fleet, number)?],
        )?
        .iter()
        .map(|row| (row.get(0), row.get(1), row.get(2)))
        .collect();
    let statistics = session.query_opt(
        "SELECT in_doubt, oldest_in_doubt IS NOT NULL, coalesce(last_error, ''), failures
         FROM pg_stat_fdw_xacts WHERE server = $1",
        &[&format!("shard{number}")],
    )?;
    Ok(match statistics {
        Some(row) => Told {
            view,
            in_doubt: (row.get(0), row.get(1)),
            last_error: row.get(2),
            failures: row.get(3),
        },
        None => Told { view, ..Told::default() },
    })
}

/// The rows of `pg_fdw_xacts_resolve()`: identifier, outcome, reason.
pub fn resolve(session: &mut Client) -> anyhow::Result<Vec<(String, String, String)>> {
    let sql = "SELECT identifier, outcome, coalesce(reason, '') FROM pg_fdw_xacts_resolve()";
    Ok(session.query(sql, &[])?.iter().map(|r| (r.get(0), r.get(1), r.get(2))).collect())
}

/// This coordinator's identity, as a number.
pub fn identity(session: &mut Client) -> anyhow::Result<i64> {
    one(session, "SELECT identity FROM fdw_xacts.identity")
}

/// Prepares a transaction on shard `number` as a COMMIT that was lost before its decision would
/// have left it: it has no row here. Returns its identifier. `role` owns it there.
pub fn leave_orphan(fleet: &Fleet, number: usize, role: &str, id: i32) -> anyhow::Result<String> {
    let mut session = fleet.session()?;
    let user: u32 = one(&mut session, "SELECT current_user::regrole::oid")?;
    let gid =
        format!("px_{:020}{:018}_{}_{user}", identity(&mut session)?, id, serverid(fleet, number)?);
    let mut shard = fleet.shard(number).client()?;
    shard.batch_execute(&format!(
        "BEGIN; SET LOCAL ROLE {role}; INSERT INTO t VALUES ({id}, 'x'); PREPARE TRANSACTION '{gid}'"
    ))?;
    Ok(gid)
}

/// How many lines of the coordinator's log since `mark` have all of `texts`.
pub fn log_lines(fleet: &Fleet, mark: Mark, texts: &[&str]) -> anyhow::Result<usize> {
    let log = fleet.coordinator.log().since(mark)?;
    Ok(log.lines().filter(|line| texts.iter().all(|text| line.contains(text))).count())
}
