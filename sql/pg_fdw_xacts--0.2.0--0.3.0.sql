-- Upgrade from 0.2.0. It takes no lock on the decisions: transactions may be in doubt meanwhile.

-- What is in doubt is told with the reason why it is.
CREATE FUNCTION pg_fdw_xacts_participants(OUT dbid oid, OUT transaction xid, OUT serverid oid, OUT userid oid,
    OUT status text, OUT identifier text, OUT reason text) RETURNS SETOF record
    LANGUAGE c STRICT VOLATILE AS 'MODULE_PATHNAME', 'pg_fdw_xacts_participants_wrapper';
CREATE OR REPLACE VIEW pg_fdw_xacts AS
    SELECT dbid, transaction, serverid, userid, status, identifier, reason FROM pg_fdw_xacts_participants();
DROP FUNCTION pg_fdw_xacts_list();

-- Who had been granted it needs it again.
DROP FUNCTION pg_fdw_xacts_resolve(text);
CREATE FUNCTION pg_fdw_xacts_resolve(identifier text DEFAULT NULL, OUT identifier text, OUT outcome text,
    OUT reason text) RETURNS SETOF record
    LANGUAGE c VOLATILE AS 'MODULE_PATHNAME', 'pg_fdw_xacts_resolve_and_tell_wrapper';
REVOKE EXECUTE ON FUNCTION pg_fdw_xacts_resolve(text) FROM PUBLIC;

-- Where a participant was: two servers of one image cannot be told apart otherwise. Not known of those from before.
ALTER TABLE fdw_xacts.participant ADD COLUMN address text COLLATE "C";

-- Traces of labels are looked up by it.
CREATE INDEX expired_trace ON fdw_xacts.expired (trace);

CREATE FUNCTION pg_fdw_xacts_reads(OUT cuts bigint, OUT rounds bigint, OUT windows bigint, OUT too_old bigint,
    OUT in_doubt bigint) RETURNS record
    LANGUAGE c STRICT VOLATILE AS 'MODULE_PATHNAME', 'pg_fdw_xacts_reads_wrapper';

-- One snapshot of several servers, until the transaction ends.
CREATE FUNCTION pg_fdw_xacts_snapshot(VARIADIC servers name[] DEFAULT '{}') RETURNS void
    LANGUAGE c STRICT VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'pg_fdw_xacts_snapshot';

-- How consistent reads over several servers have done since the start of this server, in all databases.
CREATE VIEW pg_stat_fdw_xacts_reads AS
    SELECT cuts, rounds, windows, too_old, in_doubt FROM pg_fdw_xacts_reads();

GRANT SELECT ON pg_stat_fdw_xacts_reads TO PUBLIC;

-- Deadlocks over several servers are counted.
CREATE FUNCTION pg_fdw_xacts_statistics(OUT serverid oid, OUT prepared bigint, OUT committed bigint,
    OUT rolled_back bigint, OUT resolved bigint, OUT heuristic bigint, OUT attempts bigint,
    OUT failures bigint, OUT in_doubt bigint, OUT oldest_in_doubt timestamptz, OUT last_error text,
    OUT last_error_at timestamptz, OUT deadlocks bigint) RETURNS SETOF record
    LANGUAGE c STRICT VOLATILE AS 'MODULE_PATHNAME', 'pg_fdw_xacts_statistics_wrapper';
CREATE OR REPLACE VIEW pg_stat_fdw_xacts AS
    SELECT f.serverid, s.srvname AS server, f.prepared, f.committed, f.rolled_back, f.resolved, f.heuristic,
           f.attempts, f.failures, f.in_doubt, f.oldest_in_doubt, f.last_error, f.last_error_at, f.deadlocks
    FROM pg_fdw_xacts_statistics() f LEFT JOIN pg_foreign_server s ON s.oid = f.serverid;
DROP FUNCTION pg_fdw_xacts_stats();

-- Who waits for whom over all servers.
CREATE FUNCTION pg_fdw_xacts_waiting(OUT pid integer, OUT serverid oid, OUT remote_pid integer,
    OUT since timestamptz, OUT waits_for text, OUT blocked_by integer, OUT blocked_by_remote_pid integer)
    RETURNS SETOF record
    LANGUAGE c STRICT VOLATILE AS 'MODULE_PATHNAME', 'pg_fdw_xacts_waiting_wrapper';
REVOKE EXECUTE ON FUNCTION pg_fdw_xacts_waiting() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION pg_fdw_xacts_waiting() TO pg_read_all_stats;
CREATE VIEW pg_fdw_xacts_waits AS
    SELECT f.pid, s.srvname AS server, f.remote_pid, f.since, f.waits_for, f.blocked_by, f.blocked_by_remote_pid
    FROM pg_fdw_xacts_waiting() f LEFT JOIN pg_foreign_server s ON s.oid = f.serverid;
GRANT SELECT ON pg_fdw_xacts_waits TO pg_read_all_stats;

-- One restore point on this server and on the foreign servers.
CREATE FUNCTION pg_fdw_xacts_restore_point(name text, OUT server text, OUT lsn pg_lsn, OUT wal_file text)
    RETURNS SETOF record
    LANGUAGE c STRICT VOLATILE AS 'MODULE_PATHNAME', 'pg_fdw_xacts_restore_point_wrapper';
REVOKE EXECUTE ON FUNCTION pg_fdw_xacts_restore_point(text) FROM PUBLIC;
