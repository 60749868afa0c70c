//! What a round of the hostile shard does: each kind is one transaction or some questions.

/// A kind of round: statements before the one that ends the transaction. `{id}` is the row's.
pub(super) struct Kind {
    pub name: &'static str,
    pub before: &'static [&'static str],
    pub end: &'static [&'static str],
    pub commits: bool,
}

const INSERTS: &[&str] = &[
    "BEGIN",
    "INSERT INTO lt VALUES ({id}, 'x')",
    "INSERT INTO ft1 VALUES ({id}, 'x')",
    "INSERT INTO ft2 VALUES ({id}, 'x')",
];

pub(super) const KINDS: &[Kind] = &[
    Kind { name: "commit", before: INSERTS, end: &["COMMIT"], commits: true },
    Kind { name: "rollback", before: INSERTS, end: &["ROLLBACK"], commits: false },
    Kind {
        name: "prepare and commit",
        before: INSERTS,
        end: &["PREPARE TRANSACTION 'g{id}'", "COMMIT PREPARED 'g{id}'"],
        commits: true,
    },
    Kind {
        name: "prepare and roll back",
        before: INSERTS,
        end: &["PREPARE TRANSACTION 'g{id}'", "ROLLBACK PREPARED 'g{id}'"],
        commits: false,
    },
    Kind {
        name: "consistent reads",
        before: &[
            "BEGIN ISOLATION LEVEL REPEATABLE READ",
            "SET LOCAL pg_fdw_xacts.consistent_reads = on",
            "SELECT count(*) FROM ft1 JOIN ft2 USING (id)",
            "SELECT sum(id) FROM (SELECT id FROM ft1 UNION ALL SELECT id FROM ft2) x",
            "INSERT INTO lt VALUES ({id}, 'x')",
            "INSERT INTO ft1 VALUES ({id}, 'x')",
            "INSERT INTO ft2 VALUES ({id}, 'x')",
        ],
        end: &["COMMIT"],
        commits: true,
    },
    Kind {
        name: "cursors and savepoints",
        before: &[
            "BEGIN",
            "INSERT INTO ft1 VALUES ({id}, 'x')",
            "DECLARE c CURSOR FOR SELECT * FROM ft2",
            "FETCH 7 FROM c",
            "SAVEPOINT a",
            "INSERT INTO ft2 VALUES (-{id}, 'y')",
            "ROLLBACK TO a",
            "FETCH 30 FROM c",
            "INSERT INTO ft2 VALUES ({id}, 'x')",
            "CLOSE c",
            "RELEASE a",
            "INSERT INTO lt VALUES ({id}, 'x')",
        ],
        end: &["COMMIT"],
        commits: true,
    },
    Kind {
        name: "modifications",
        before: &[
            "BEGIN",
            "INSERT INTO ft1 VALUES ({id}, 'x')",
            "INSERT INTO ft2 VALUES ({id}, 'x') RETURNING *",
            "UPDATE ft2 SET v = v || 'y' WHERE id = {id} RETURNING v",
            "UPDATE ft2 SET v = 'z' WHERE id = {id} AND random() >= 0",
            "DELETE FROM ft2 WHERE id = -{id} AND random() >= 0 RETURNING ctid",
            "INSERT INTO ft2 SELECT -{id} - n, 'b' FROM generate_series(1, 300) n",
            "DELETE FROM ft2 WHERE id < 0",
            "INSERT INTO lt VALUES ({id}, 'x')",
        ],
        end: &["COMMIT"],
        commits: true,
    },
    // Not `use_remote_estimate`: that is postgres_fdw's planner on a connection of its own, which
    // waits for the end of a COPY for ever.
    Kind {
        name: "questions",
        before: &[
            "BEGIN",
            "ANALYZE ft2",
            "CREATE SCHEMA imported",
            "IMPORT FOREIGN SCHEMA public FROM SERVER shard2 INTO imported",
            "SELECT * FROM pg_fdw_xacts_query('shard2', 'SELECT id, v FROM t') AS q(id int, v text)",
            "SELECT pg_fdw_xacts_exec('shard2', 'CREATE TABLE made (a int)')",
        ],
        end: &["ROLLBACK"],
        commits: false,
    },
    Kind {
        name: "one shard",
        before: &["BEGIN", "INSERT INTO ft2 VALUES ({id}, 'x')"],
        end: &["COMMIT"],
        commits: true,
    },
    Kind {
        name: "async",
        before: &[
            "BEGIN",
            "SELECT count(*) FROM parted",
            "SELECT * FROM parted ORDER BY id LIMIT 3",
        ],
        end: &["COMMIT"],
        commits: false,
    },
    // COMMIT PREPARED or ROLLBACK PREPARED does not arrive: what the resolver asks is spoiled.
    Kind { name: "resolver commits", before: INSERTS, end: &["COMMIT"], commits: true },
    Kind { name: "resolver aborts", before: INSERTS, end: &["COMMIT"], commits: false },
];
