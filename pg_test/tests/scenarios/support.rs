//! What several scenarios share: a statement in the background, the ids the extension gives, quick checks.

use std::thread::JoinHandle;

use pg_test::Fleet;
use postgres::{Client, Error};

/// The result of a scenario: an `Err` is the harness's own trouble, what is wrong with the extension panics.
pub type Outcome = anyhow::Result<()>;

/// A statement that runs on a thread of its own, with its session.
pub struct Background(JoinHandle<(Client, Result<(), Error>)>);

/// Runs `sql` in `session` on a thread of its own, because the test has to act while it waits.
pub fn in_background(mut session: Client, sql: &str) -> Background {
    let sql = sql.to_owned();
    Background(std::thread::spawn(move || {
        let result = session.batch_execute(&sql);
        (session, result)
    }))
}

impl Background {
    /// Waits for its end: the session again and what came of the statement.
    pub fn join(self) -> (Client, Result<(), Error>) {
        self.0.join().expect("the thread only runs one statement")
    }

    /// Whether the statement has ended.
    pub fn is_finished(&self) -> bool {
        self.0.is_finished()
    }
}

/// One participant's gid, `px_<n>_<serverid>_<userid>`, in its parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gid {
    pub n: String,
    pub serverid: u32,
    pub userid: u32,
}

impl Gid {
    /// The parts of `text`, which must be exactly of that form and short enough.
    pub fn parse(text: &str) -> Self {
        assert!(text.len() <= 63, "{text} is longer than 63 characters");
        let parts: Vec<&str> = text.split('_').collect();
        let ["px", n, serverid, userid] = parts.as_slice() else {
            panic!("{text} is not px_<n>_<serverid>_<userid>")
        };
        assert!(
            parts[1..].iter().all(|part| part.bytes().all(|byte| byte.is_ascii_digit())),
            "{text} holds other characters than decimal digits"
        );
        Self {
            n: (*n).to_owned(),
            serverid: serverid.parse().expect("an oid"),
            userid: userid.parse().expect("an oid"),
        }
    }
}

/// The gid in the only one of `statements` that starts with `command`, for example `PREPARE TRANSACTION`.
pub fn gid_of(statements: &[String], command: &str) -> Gid {
    let found: Vec<&String> =
        statements.iter().filter(|statement| statement.starts_with(command)).collect();
    let [statement] = found.as_slice() else {
        panic!("{} statements '{command}' instead of one in {statements:#?}", found.len())
    };
    let gid = statement[command.len()..]
        .trim()
        .strip_prefix('\'')
        .and_then(|rest| rest.strip_suffix('\''))
        .unwrap_or_else(|| panic!("no quoted gid in '{statement}'"));
    Gid::parse(gid)
}

/// The oid of the foreign server of shard `number`.
pub fn serverid(fleet: &Fleet, number: usize) -> anyhow::Result<u32> {
    let name = format!("shard{number}");
    let row = fleet
        .session()?
        .query_one("SELECT oid FROM pg_foreign_server WHERE srvname = $1", &[&name])?;
    Ok(row.get(0))
}
