//! Errors of a participant, of converting its values and of options, and what is still there behind
//! them.

#[pgrx::pg_schema]
mod tests {
    use pgrx::pg_test;

    use crate::tests::{ONLY_REMOTE_JOINS, assert_contains, failure, plan, rows, run, text};

    #[pg_test]
    fn a_remote_error_keeps_its_fields() {
        let error = failure("INSERT INTO f.refusing VALUES (1)");
        assert_contains(&error, "ZZ001\nrefused\nthe detail\nthe hint\n");
        assert_contains(&error, "PL/pgSQL function r.fail() line 3 at RAISE");
        assert_contains(&error, "remote SQL command: INSERT INTO r.refusing(id) VALUES ($1)");
        let error = failure("INSERT INTO f.strict VALUES (0, 'zero')");
        assert_contains(&error, "23514\n");
        assert_contains(&error, "violates check constraint \"positive\"");
    }

    #[pg_test]
    fn a_value_that_does_not_fit_is_named() {
        run(ONLY_REMOTE_JOINS);
        assert_contains(
            &failure("SELECT * FROM f.unfit u"),
            "\ncolumn \"number\" of foreign table \"u\"",
        );
        assert_contains(
            &failure("SELECT a.number, b.id FROM f.unfit a JOIN f.scan b USING (id)"),
            "column \"number\" of foreign table \"a\"",
        );
        assert_contains(
            &failure("SELECT a, b.id FROM f.unfit a JOIN f.scan b USING (id)"),
            "whole-row reference to foreign table \"a\"",
        );
        assert_contains(
            &failure("SELECT count(*), max(number) FROM f.unfit"),
            "processing expression at position 2 in select list",
        );
        // RETURNING knows no alias.
        assert_contains(
            &failure("UPDATE f.unfit u SET id = 7 WHERE random() >= 0 AND id = 2 RETURNING number"),
            "column \"number\" of foreign table \"u\"",
        );
        assert_contains(
            &failure("UPDATE f.unfit u SET id = 7 WHERE id = 2 RETURNING number"),
            "column \"number\" of foreign table \"u\"",
        );
    }

    #[pg_test]
    fn a_domain_may_refuse_null() {
        let error = failure("SELECT v FROM f.missing");
        assert_contains(&error, "23502\n");
        assert_contains(&error, "column \"v\" of foreign table \"missing\"");
    }

    #[pg_test]
    fn a_failed_block_undoes_its_own_writes_only() {
        run("INSERT INTO f.kept VALUES (1)");
        run("DO $$
             BEGIN
                 INSERT INTO f.kept VALUES (2);
                 INSERT INTO f.kept VALUES (1);
             EXCEPTION WHEN unique_violation THEN
                 INSERT INTO f.kept VALUES (3);
             END $$");
        run("DO $$
             BEGIN
                 INSERT INTO f.kept VALUES (4);
                 RAISE division_by_zero;
             EXCEPTION WHEN division_by_zero THEN NULL;
             END $$");
        assert_eq!(rows("SELECT * FROM f.kept ORDER BY id"), "(1) (3)");
    }

    #[pg_test]
    fn explain_connects_to_nothing() {
        for statement in [
            "SELECT * FROM f.unreachable",
            "INSERT INTO f.unreachable VALUES (1)",
            "DELETE FROM f.unreachable",
        ] {
            assert_contains(&plan(statement), "Remote SQL");
            assert_contains(&failure(statement), "08001\ncould not connect to server \"nowhere\"");
        }
    }

    #[pg_test]
    fn options_are_checked() {
        run("CREATE SERVER one FOREIGN DATA WRAPPER pg_fdw_xacts
             OPTIONS (two_phase_commit 'off', host 'h', fetch_size '7')");
        run("ALTER SERVER one OPTIONS (SET two_phase_commit 'true', DROP host)");
        assert_eq!(
            text("SELECT srvoptions::text FROM pg_foreign_server WHERE srvname = 'one'"),
            "{two_phase_commit=true,fetch_size=7}"
        );
        assert_contains(
            &failure("ALTER SERVER one OPTIONS (SET two_phase_commit 'perhaps')"),
            "two_phase_commit requires a Boolean value",
        );
        let error = failure("ALTER SERVER one OPTIONS (nonsense '1')");
        assert_contains(&error, "HV00D\ninvalid option \"nonsense\"\n");
        for (name, meant) in
            [("two_phase_comit", "two_phase_commit"), ("remote_isolevel", "remote_isolation")]
        {
            assert_contains(
                &failure(&format!("ALTER SERVER one OPTIONS ({name} 'off')")),
                &format!("Perhaps you meant the option \"{meant}\" of the server."),
            );
        }
        assert_contains(&failure("ALTER SERVER one OPTIONS (SET fetch_size '0')"), "22023\n");
        assert_contains(
            &failure("ALTER FOREIGN TABLE f.kept OPTIONS (two_phase_commit 'off')"),
            "HV00D\n",
        );
    }
}
