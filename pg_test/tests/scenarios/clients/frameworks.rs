//! Application frameworks, unchanged: a transaction of SQLAlchemy's ORM and of Django's that writes
//! two foreign tables is atomic.
//!
//! Both programs understand the same commands, so that each scenario is tried with both.

use pg_test::Fleet;
use pg_test::client::Program;
use pg_test::oracle::{assert_settled, one, statistic};

use crate::support::Outcome;

const APPLICATIONS: [&str; 2] = ["sqlalchemy_orm.py", "django_orm.py"];

/// Runs `scenario` on new servers with each application.
fn with_each(scenario: impl Fn(&Fleet, &mut Program) -> Outcome) -> Outcome {
    for file in APPLICATIONS {
        println!("with {file}");
        let fleet = Fleet::start()?;
        let mut application = Program::start(file, &fleet.coordinator)?;
        scenario(&fleet, &mut application)?;
        assert_settled(&fleet);
    }
    Ok(())
}

/// The rows of each shard, as "id v".
fn rows(fleet: &Fleet) -> anyhow::Result<[String; 2]> {
    let rows = |number: usize| -> anyhow::Result<String> {
        one(
            &mut fleet.shard(number).client()?,
            "SELECT coalesce(string_agg(id || ' ' || v, ', ' ORDER BY id), '') FROM t",
        )
    };
    Ok([rows(1)?, rows(2)?])
}

/// How many transactions each shard has prepared so far.
fn prepared(fleet: &Fleet) -> anyhow::Result<[i64; 2]> {
    Ok([statistic(fleet, 1, "prepared")?, statistic(fleet, 2, "prepared")?])
}

#[test]
fn what_an_orm_writes_commits_in_two_phases() -> Outcome {
    with_each(|fleet, application| {
        application.expect("write 1");
        assert_eq!(rows(fleet)?, ["1 x"; 2]);
        assert_eq!(prepared(fleet)?, [1, 1]);
        application.expect("write 2");
        application.expect("update 1 changed");
        application.expect("delete 2");
        assert_eq!(rows(fleet)?, ["1 changed"; 2]);
        assert_eq!(prepared(fleet)?, [4, 4]);
        assert_eq!(application.expect("count_differences"), "0");
        Ok(())
    })
}

#[test]
fn ids_are_drawn_by_the_coordinator_for_many_rows() -> Outcome {
    with_each(|fleet, application| {
        fleet.session()?.batch_execute(
            "CREATE SEQUENCE ids;
             ALTER FOREIGN TABLE ft1 ALTER id SET DEFAULT nextval('ids')",
        )?;
        assert_eq!(application.expect("create 250"), "250");
        assert_eq!(application.expect("count_differences"), "0");
        let [left, right] = rows(fleet)?;
        assert_eq!(left, right);
        assert_eq!(left.split(", ").count(), 250);
        assert_eq!(prepared(fleet)?, [1, 1]);
        Ok(())
    })
}

#[test]
fn a_constraint_of_one_shard_undoes_both() -> Outcome {
    with_each(|fleet, application| {
        fleet.shard(2).client()?.batch_execute("INSERT INTO t VALUES (1, 'there')")?;
        let raised = application.expect_error("write 1");
        assert!(raised.starts_with("23505 duplicate key value"), "{raised}");
        assert_eq!(rows(fleet)?, ["", "1 there"]);
        assert_eq!(prepared(fleet)?, [0, 0]);
        application.expect("write 2");
        assert_eq!(rows(fleet)?, ["2 x", "1 there, 2 x"]);
        Ok(())
    })
}

#[test]
fn a_failed_savepoint_is_undone_on_both_and_the_rest_commits() -> Outcome {
    with_each(|fleet, application| {
        fleet.shard(2).client()?.batch_execute("INSERT INTO t VALUES (1, 'there')")?;
        application.expect("write_unless_there 1 2");
        assert_eq!(rows(fleet)?, ["2 x", "1 there, 2 x"]);
        assert_eq!(prepared(fleet)?, [1, 1]);
        Ok(())
    })
}

/// The application's COMMIT fails with the shard's own error.
#[test]
fn a_shard_that_refuses_to_prepare_undoes_both() -> Outcome {
    with_each(|fleet, application| {
        let mut shard = fleet.shard(2).client()?;
        shard.batch_execute(
            "CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS
                 $$BEGIN NOTIFY written; RETURN NULL; END$$;
             CREATE TRIGGER tell AFTER INSERT ON t EXECUTE FUNCTION tell()",
        )?;
        let raised = application.expect_error("write 1");
        assert!(raised.starts_with("0A000 cannot PREPARE"), "{raised}");
        assert_eq!(rows(fleet)?, ["", ""]);
        shard.batch_execute("DROP TRIGGER tell ON t")?;
        application.expect("write 1");
        assert_eq!(rows(fleet)?, ["1 x"; 2]);
        Ok(())
    })
}

/// SQLAlchemy as the transaction manager.
#[test]
fn a_session_with_twophase_prepares_the_coordinator() -> Outcome {
    let fleet = Fleet::start()?;
    let mut application = Program::start("sqlalchemy_orm.py", &fleet.coordinator)?;
    let mark = fleet.coordinator.log().mark()?;
    application.expect("write_in_two_phases 1");
    let statements = fleet.coordinator.log().statements_since(mark)?;
    for command in ["PREPARE TRANSACTION", "COMMIT PREPARED"] {
        assert!(statements.iter().any(|sql| sql.starts_with(command)), "{statements:#?}");
    }
    assert_eq!(rows(&fleet)?, ["1 x"; 2]);
    assert_eq!(prepared(&fleet)?, [1, 1]);
    assert_settled(&fleet);
    Ok(())
}
