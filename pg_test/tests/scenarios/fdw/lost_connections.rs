//! What is told when a connection is lost, and what goes on, side by side with postgres_fdw.

use crate::fdw::side_by_side::{TERMINATE, both, same_answers};
use crate::support::Outcome;

#[test]
fn a_connection_lost_while_idle_is_replaced_once() -> Outcome {
    let fleet = both()?;
    let given = same_answers(
        &fleet,
        &[
            "SELECT pid FROM {me}",
            TERMINATE,
            "SELECT pid FROM {me}",
            TERMINATE,
            "BEGIN",
            "SELECT pid FROM {me}",
            "SELECT pid FROM {me}",
            // Inside a remote transaction it is not.
            TERMINATE,
            "SELECT count(*) FROM {table}",
            "ROLLBACK",
            "SELECT count(*) FROM {table}",
        ],
    )?;
    assert_eq!(given[1], "another session: true");
    assert_eq!(given[3], "another session: true");
    assert!(given[5].starts_with("08006\nFATAL:  terminating connection"), "{}", given[5]);
    assert!(given[5].contains("server closed the connection unexpectedly"), "{}", given[5]);
    assert_eq!(given[7], "300");
    Ok(())
}

#[test]
fn whatever_finds_the_connection_lost_says_so_in_the_same_words() -> Outcome {
    let fleet = both()?;
    for statement in [
        "SELECT * FROM {table}",
        "INSERT INTO {table} VALUES (1000, 'y')",
        "UPDATE {table} SET v = 'y' WHERE id = 1",
        "UPDATE {table} SET v = 'y' WHERE id = 1 AND random() >= 0",
        "DELETE FROM {table} WHERE id = 1 RETURNING v",
        "FETCH c",
        "FETCH ALL d",
    ] {
        let given = same_answers(
            &fleet,
            &[
                "BEGIN; DECLARE c CURSOR FOR SELECT * FROM {table};
                 DECLARE d CURSOR FOR SELECT * FROM {table} ORDER BY id; FETCH d",
                "SELECT pid FROM {me}",
                TERMINATE,
                statement,
                statement,
                "ROLLBACK",
            ],
        )?;
        assert!(given[2].starts_with("08006\n"), "{statement}: {}", given[2]);
    }
    assert_eq!(fleet.ids_on_shard(1)?.len(), 300);
    Ok(())
}

/// What is asked of a connection after a savepoint that was lost with it.
#[test]
fn a_connection_lost_in_a_savepoint_is_not_used_again_in_the_transaction() -> Outcome {
    let fleet = both()?;
    for (before, after) in [
        ("SELECT 1", "FETCH c"),
        ("FETCH c", "FETCH ALL c"),
        ("FETCH c", "CLOSE c"),
        ("SELECT 1", "CLOSE c"),
        ("SELECT 1", "SAVEPOINT b; RELEASE SAVEPOINT b"),
    ] {
        let given = same_answers(
            &fleet,
            &[
                "BEGIN; DECLARE c CURSOR FOR SELECT * FROM {table} ORDER BY id",
                before,
                "SAVEPOINT a",
                "SELECT pid FROM {me}",
                TERMINATE,
                "ROLLBACK TO SAVEPOINT a",
                "SELECT pid FROM {me}",
                "ROLLBACK TO SAVEPOINT a; RELEASE SAVEPOINT a",
                after,
                "ROLLBACK",
                "SELECT count(*) FROM {table}",
            ],
        )?;
        assert_eq!(
            given[5],
            "08000\nconnection to server \"{server}\" cannot be used due to abort cleanup failure"
        );
        assert_eq!(given[9], "300");
    }
    Ok(())
}

#[test]
fn a_savepoint_around_a_spoilt_one_cannot_be_released() -> Outcome {
    let fleet = both()?;
    let given = same_answers(
        &fleet,
        &[
            "BEGIN; SAVEPOINT a; SELECT pid FROM {me}",
            "SAVEPOINT b",
            "SELECT pid FROM {me}",
            TERMINATE,
            "ROLLBACK TO SAVEPOINT b",
            "RELEASE SAVEPOINT a",
            "ROLLBACK TO SAVEPOINT a",
            "SELECT pid FROM {me}",
            "ROLLBACK",
        ],
    )?;
    assert!(given[4].starts_with("08000\n"), "{}", given[4]);
    Ok(())
}

#[test]
fn a_savepoint_that_finds_the_connection_lost_is_told_as_that() -> Outcome {
    let fleet = both()?;
    let given = same_answers(
        &fleet,
        &[
            "BEGIN; DECLARE c CURSOR FOR SELECT * FROM {table} ORDER BY id; SELECT pid FROM {me}",
            TERMINATE,
            "SAVEPOINT a",
            "SELECT count(*) FROM {table}",
            "ROLLBACK TO SAVEPOINT a",
            "SELECT count(*) FROM {table}",
            "ROLLBACK TO SAVEPOINT a; RELEASE SAVEPOINT a",
            "FETCH c",
            "ROLLBACK",
        ],
    )?;
    assert!(given[2].ends_with("remote SQL command: SAVEPOINT s2"), "{}", given[2]);
    assert!(given[4].starts_with("08000\n"), "{}", given[4]);
    Ok(())
}

/// Whoever has not used the lost connection in a savepoint may go back behind it.
#[test]
fn a_savepoint_that_did_not_use_the_lost_connection_is_rolled_back() -> Outcome {
    let fleet = both()?;
    let given = same_answers(
        &fleet,
        &[
            "BEGIN; SELECT pid FROM {me}",
            TERMINATE,
            "SAVEPOINT a; SELECT 1",
            "ROLLBACK TO SAVEPOINT a",
            "SELECT count(*) FROM pg_class WHERE relname = 'lt'",
            "ROLLBACK",
        ],
    )?;
    assert_eq!(given[3], "1");
    Ok(())
}
