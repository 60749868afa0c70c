-- The objects of pg_fdw_xacts, in the order in which they need each other.

CREATE FUNCTION pg_fdw_xacts_handler() RETURNS fdw_handler
    LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'pg_fdw_xacts_handler';

CREATE FUNCTION pg_fdw_xacts_validator(text[], oid) RETURNS void
    LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'pg_fdw_xacts_validator';

CREATE FOREIGN DATA WRAPPER pg_fdw_xacts
    HANDLER pg_fdw_xacts_handler VALIDATOR pg_fdw_xacts_validator;

-- CREATE SUBSCRIPTION ... SERVER, from PostgreSQL 19 on. The options that say where a server is are those of
-- postgres_fdw, whose function makes a connection string of them, from its version 1.3 on.
DO $$
DECLARE
    function text := (SELECT format('%s.postgres_fdw_connection', extnamespace::regnamespace)
                      FROM pg_extension WHERE extname = 'postgres_fdw');
BEGIN
    IF to_regprocedure(function || '(oid, oid, internal)') IS NOT NULL THEN
        EXECUTE 'ALTER FOREIGN DATA WRAPPER pg_fdw_xacts CONNECTION ' || function;
    END IF;
END $$;

-- Any SQL on a participant, inside this transaction. Not for PUBLIC: USAGE on a server would not allow DDL there
-- otherwise.
CREATE FUNCTION pg_fdw_xacts_exec(server name, command text) RETURNS bigint
    LANGUAGE c STRICT VOLATILE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'pg_fdw_xacts_exec';
CREATE FUNCTION pg_fdw_xacts_query(server name, query text) RETURNS SETOF record
    LANGUAGE c STRICT VOLATILE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'pg_fdw_xacts_query';
REVOKE EXECUTE ON FUNCTION pg_fdw_xacts_exec(name, text), pg_fdw_xacts_query(name, text) FROM PUBLIC;

-- What the views of views.sql read: what is in doubt, statistics of foreign servers, and who waits for whom.
CREATE FUNCTION pg_fdw_xacts_participants(OUT dbid oid, OUT transaction xid, OUT serverid oid, OUT userid oid,
    OUT status text, OUT identifier text, OUT reason text) RETURNS SETOF record
    LANGUAGE c STRICT VOLATILE AS 'MODULE_PATHNAME', 'pg_fdw_xacts_participants_wrapper';
CREATE FUNCTION pg_fdw_xacts_statistics(OUT serverid oid, OUT prepared bigint, OUT committed bigint,
    OUT rolled_back bigint, OUT resolved bigint, OUT heuristic bigint, OUT attempts bigint,
    OUT failures bigint, OUT in_doubt bigint, OUT oldest_in_doubt timestamptz, OUT last_error text,
    OUT last_error_at timestamptz, OUT deadlocks bigint) RETURNS SETOF record
    LANGUAGE c STRICT VOLATILE AS 'MODULE_PATHNAME', 'pg_fdw_xacts_statistics_wrapper';
CREATE FUNCTION pg_fdw_xacts_waiting(OUT pid integer, OUT serverid oid, OUT remote_pid integer,
    OUT since timestamptz, OUT waits_for text, OUT blocked_by integer, OUT blocked_by_remote_pid integer)
    RETURNS SETOF record
    LANGUAGE c STRICT VOLATILE AS 'MODULE_PATHNAME', 'pg_fdw_xacts_waiting_wrapper';
REVOKE EXECUTE ON FUNCTION pg_fdw_xacts_waiting() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION pg_fdw_xacts_waiting() TO pg_read_all_stats;

CREATE FUNCTION pg_fdw_xacts_reads(OUT cuts bigint, OUT rounds bigint, OUT windows bigint, OUT too_old bigint,
    OUT in_doubt bigint) RETURNS SETOF record ROWS 1
    LANGUAGE c STRICT VOLATILE AS 'MODULE_PATHNAME', 'pg_fdw_xacts_reads_wrapper';

-- One snapshot of several servers, until the transaction ends.
CREATE FUNCTION pg_fdw_xacts_snapshot(VARIADIC servers name[] DEFAULT '{}') RETURNS void
    LANGUAGE c STRICT VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'pg_fdw_xacts_snapshot';

-- For operators: have the resolver try now, and give up.
CREATE FUNCTION pg_fdw_xacts_resolve(identifier text DEFAULT NULL, OUT identifier text, OUT outcome text,
    OUT reason text) RETURNS SETOF record
    LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'pg_fdw_xacts_resolve_and_tell_wrapper';
REVOKE EXECUTE ON FUNCTION pg_fdw_xacts_resolve(text) FROM PUBLIC;
CREATE FUNCTION pg_fdw_xacts_forget(identifier text) RETURNS void
    LANGUAGE c STRICT VOLATILE AS 'MODULE_PATHNAME', 'pg_fdw_xacts_forget_wrapper';
REVOKE EXECUTE ON FUNCTION pg_fdw_xacts_forget(text) FROM PUBLIC;
-- One restore point on this server and on the foreign servers.
CREATE FUNCTION pg_fdw_xacts_restore_point(name text, OUT server text, OUT lsn pg_lsn, OUT wal_file text)
    RETURNS SETOF record
    LANGUAGE c STRICT VOLATILE AS 'MODULE_PATHNAME', 'pg_fdw_xacts_restore_point_wrapper';
REVOKE EXECUTE ON FUNCTION pg_fdw_xacts_restore_point(text) FROM PUBLIC;

-- For a client that loses the answer to its COMMIT: label a transaction, and ask what became of it.
CREATE FUNCTION pg_fdw_xacts_track(label text) RETURNS void
    LANGUAGE c STRICT VOLATILE AS 'MODULE_PATHNAME', 'pg_fdw_xacts_track_wrapper';
CREATE FUNCTION pg_fdw_xacts_outcome(label text) RETURNS text
    LANGUAGE c STRICT VOLATILE AS 'MODULE_PATHNAME', 'pg_fdw_xacts_outcome_wrapper';

-- The session's connections, closed. pg_fdw_xacts_get_connections() is in src/api/connections.rs, because PostgreSQL
-- 18 has more columns.
CREATE FUNCTION pg_fdw_xacts_disconnect(server_name text) RETURNS boolean
    LANGUAGE c STRICT VOLATILE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'pg_fdw_xacts_disconnect_wrapper';
CREATE FUNCTION pg_fdw_xacts_disconnect_all() RETURNS boolean
    LANGUAGE c STRICT VOLATILE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'pg_fdw_xacts_disconnect_all_wrapper';

-- The durable state. The library reads and writes these tables itself, below SQL: nobody needs
-- privileges on them, and nobody should change them. None of them is dumped: a restored database
-- is another coordinator. (The schema is not called pg_fdw_xacts because PostgreSQL reserves pg_ for itself.)
CREATE SCHEMA fdw_xacts;

-- Who this database is, bound to its OID so that a copy of the database notices that it is one.
CREATE TABLE fdw_xacts.identity (
    database oid NOT NULL,
    identity bigint NOT NULL
) USING heap;

-- Every participant that ever prepared: where something may be left after a crash.
CREATE TABLE fdw_xacts.participant (
    id integer NOT NULL,
    serverid oid NOT NULL,
    userid oid NOT NULL,
    system_identifier bigint NOT NULL,
    database text COLLATE "C" NOT NULL,
    address text COLLATE "C"
) USING heap;

-- One row per distributed transaction; the row's transaction is the decision. A participant's gid is
-- px_ || identity (20 digits) || nonce (18 digits) || _ || serverid || _ || userid.
CREATE TABLE fdw_xacts.decision (
    nonce bigint NOT NULL,
    participants bigint[] NOT NULL,
    xids bigint[] NOT NULL
) USING heap WITH (
    autovacuum_vacuum_threshold = 5000,
    autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_insert_threshold = -1
);

-- Committed transactions that nobody delivers any more to a participant (pg_fdw_xacts_forget). Their decisions
-- are kept for ever, in case the participant comes back.
CREATE TABLE fdw_xacts.forgotten (
    nonce bigint NOT NULL,
    participant integer NOT NULL
) USING heap;

-- Labels of transactions, for clients that lose the answer to their COMMIT (pg_fdw_xacts_track and _outcome).
-- "taken": somebody asked before the label was used; it cannot be used any more.
CREATE TABLE fdw_xacts.label (
    label text COLLATE "C" NOT NULL,
    at timestamptz NOT NULL,
    taken boolean NOT NULL
) USING heap;
CREATE UNIQUE INDEX label_key ON fdw_xacts.label (label);

-- What is left of a label for a while after pg_fdw_xacts.track_retention.
CREATE TABLE fdw_xacts.expired (
    trace bigint NOT NULL,
    at timestamptz NOT NULL
) USING heap;
CREATE INDEX expired_trace ON fdw_xacts.expired (trace);

ALTER TABLE fdw_xacts.label REPLICA IDENTITY NOTHING;
ALTER TABLE fdw_xacts.expired REPLICA IDENTITY NOTHING;
ALTER TABLE fdw_xacts.forgotten REPLICA IDENTITY NOTHING;
ALTER TABLE fdw_xacts.identity REPLICA IDENTITY NOTHING;
ALTER TABLE fdw_xacts.participant REPLICA IDENTITY NOTHING;
ALTER TABLE fdw_xacts.decision REPLICA IDENTITY NOTHING;
