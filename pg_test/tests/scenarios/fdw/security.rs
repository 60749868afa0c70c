//! Whose mapping is used, what the shard lets it do, and that nobody gets further than with
//! postgres_fdw.

use pg_test::Fleet;
use pg_test::oracle::{expect_error, one};
use postgres::Client;

use crate::support::Outcome;

/// Roles alice and bob on the coordinator, each mapped to a role of its own on shard 1, which is
/// told by `who`.
fn start() -> anyhow::Result<Fleet> {
    let fleet = Fleet::start()?;
    fleet.shard(1).client()?.batch_execute(
        "CREATE ROLE remote_alice LOGIN; CREATE ROLE remote_bob LOGIN;
         CREATE VIEW who AS SELECT current_user::text AS name;
         CREATE TABLE notes (owner text DEFAULT current_user, body text);
         ALTER TABLE notes ENABLE ROW LEVEL SECURITY;
         CREATE POLICY own ON notes USING (owner = current_user) WITH CHECK (owner = current_user);
         GRANT ALL ON who, notes TO remote_alice, remote_bob",
    )?;
    fleet.session()?.batch_execute(
        "CREATE ROLE alice LOGIN; CREATE ROLE bob LOGIN; GRANT CREATE ON SCHEMA public TO alice, bob;
         CREATE USER MAPPING FOR alice SERVER shard1 OPTIONS (user 'remote_alice', password_required 'false');
         CREATE USER MAPPING FOR bob SERVER shard1 OPTIONS (user 'remote_bob', password_required 'false');
         GRANT USAGE ON FOREIGN SERVER shard1 TO alice, bob;
         CREATE FOREIGN TABLE who (name text) SERVER shard1;
         CREATE FOREIGN TABLE notes (owner text, body text) SERVER shard1;
         GRANT ALL ON who, notes TO alice, bob",
    )?;
    Ok(fleet)
}

fn session_of(fleet: &Fleet, role: &str) -> anyhow::Result<Client> {
    fleet.coordinator.client_for("postgres", role)
}

#[test]
fn views_and_definers_functions_use_their_owners_mapping() -> Outcome {
    let fleet = start()?;
    session_of(&fleet, "alice")?.batch_execute(
        "CREATE VIEW alices AS SELECT name FROM who;
         CREATE VIEW alices_notes AS SELECT * FROM notes;
         CREATE FUNCTION as_alice() RETURNS text LANGUAGE sql SECURITY DEFINER AS 'SELECT name FROM who';
         CREATE FUNCTION as_caller() RETURNS text LANGUAGE sql AS 'SELECT name FROM who';
         GRANT ALL ON alices, alices_notes TO bob",
    )?;
    let mut bob = session_of(&fleet, "bob")?;
    let mut says = |query: &str| one::<String>(&mut bob, query);
    assert_eq!(says("SELECT name FROM who")?, "remote_bob");
    assert_eq!(says("SELECT name FROM alices")?, "remote_alice");
    assert_eq!(says("SELECT as_alice()")?, "remote_alice");
    assert_eq!(says("SELECT as_caller()")?, "remote_bob");
    assert_eq!(says("SELECT a.name || b.name FROM alices a, who b")?, "remote_aliceremote_bob");
    // A write through the view is alice's too.
    bob.batch_execute("INSERT INTO alices_notes VALUES ('remote_alice', 'by bob')")?;
    let owner: String = one(&mut fleet.shard(1).client()?, "SELECT owner FROM notes")?;
    assert_eq!(owner, "remote_alice");
    Ok(())
}

#[test]
fn both_mappings_of_one_server_commit_in_one_transaction() -> Outcome {
    let fleet = start()?;
    let mut alice = session_of(&fleet, "alice")?;
    alice.batch_execute(
        "CREATE VIEW alices_notes AS SELECT * FROM notes; GRANT ALL ON alices_notes TO bob",
    )?;
    let mut bob = session_of(&fleet, "bob")?;
    bob.batch_execute(
        "BEGIN; INSERT INTO alices_notes VALUES ('remote_alice', 'a'); INSERT INTO notes VALUES ('remote_bob', 'b'); COMMIT",
    )?;
    let mut shard = fleet.shard(1).client()?;
    assert_eq!(one::<i64>(&mut shard, "SELECT count(DISTINCT owner) FROM notes")?, 2);
    Ok(())
}

#[test]
fn the_shards_row_security_counts() -> Outcome {
    let fleet = start()?;
    let mut alice = session_of(&fleet, "alice")?;
    let mut bob = session_of(&fleet, "bob")?;
    alice.batch_execute("INSERT INTO notes VALUES ('remote_alice', 'hers')")?;
    assert_eq!(one::<i64>(&mut bob, "SELECT count(*) FROM notes")?, 0);
    assert_eq!(bob.execute("UPDATE notes SET body = 'his'", &[])?, 0);
    assert_eq!(bob.execute("DELETE FROM notes", &[])?, 0);
    expect_error(bob.batch_execute("INSERT INTO notes VALUES ('remote_alice', 'forged')"), "42501");
    assert_eq!(one::<i64>(&mut alice, "SELECT count(*) FROM notes")?, 1);
    Ok(())
}

#[test]
fn what_only_a_superuser_may_set_stays_so() -> Outcome {
    let fleet = start()?;
    let mut bob = session_of(&fleet, "bob")?;
    for option in ["SET password_required 'false'", "ADD sslcert '/tmp/x'", "ADD sslkey '/tmp/x'"] {
        let alter = format!("ALTER USER MAPPING FOR bob SERVER shard1 OPTIONS ({option})");
        expect_error(bob.batch_execute(&alter), "42501");
    }
    // Unless a superuser allows it, the server's own credentials cannot be used.
    fleet.session()?.batch_execute(
        "ALTER USER MAPPING FOR bob SERVER shard1 OPTIONS (SET password_required 'true')",
    )?;
    for query in ["SELECT * FROM who", "INSERT INTO notes VALUES ('x', 'y')"] {
        expect_error(session_of(&fleet, "bob")?.batch_execute(query), "2F003");
    }
    Ok(())
}

#[test]
fn nobody_calls_the_operators_functions_without_being_told_to() -> Outcome {
    let fleet = start()?;
    let mut bob = session_of(&fleet, "bob")?;
    for call in ["pg_fdw_xacts_forget('shard1')", "pg_fdw_xacts_resolve()"] {
        expect_error(bob.batch_execute(&format!("SELECT {call}")), "42501");
    }
    Ok(())
}
