-- One row per participant of a distributed transaction that is prepared on a foreign server or about to
-- be, in all databases of this coordinator.
CREATE VIEW pg_fdw_xacts AS
    SELECT dbid, transaction, serverid, userid, status, identifier, reason FROM pg_fdw_xacts_participants();

GRANT SELECT ON pg_fdw_xacts TO PUBLIC;

-- Per foreign server of this database: counters since the start of this server, and what is in doubt now.
CREATE VIEW pg_stat_fdw_xacts AS
    SELECT f.serverid, s.srvname AS server, f.prepared, f.committed, f.rolled_back, f.resolved, f.heuristic,
           f.attempts, f.failures, f.in_doubt, f.oldest_in_doubt, f.last_error, f.last_error_at, f.deadlocks
    FROM pg_fdw_xacts_statistics() f LEFT JOIN pg_foreign_server s ON s.oid = f.serverid;

GRANT SELECT ON pg_stat_fdw_xacts TO PUBLIC;

-- How consistent reads over several servers have done since the start of this server, in all databases.
CREATE VIEW pg_stat_fdw_xacts_reads AS
    SELECT cuts, rounds, windows, too_old, in_doubt FROM pg_fdw_xacts_reads();

GRANT SELECT ON pg_stat_fdw_xacts_reads TO PUBLIC;

-- Who has waited for a foreign server for longer than deadlock_timeout, and for whom, among the sessions of this
-- database and those that they wait for. For monitoring roles: it shows what others do.
CREATE VIEW pg_fdw_xacts_waits AS
    SELECT f.pid, s.srvname AS server, f.remote_pid, f.since, f.waits_for, f.blocked_by, f.blocked_by_remote_pid
    FROM pg_fdw_xacts_waiting() f LEFT JOIN pg_foreign_server s ON s.oid = f.serverid;

GRANT SELECT ON pg_fdw_xacts_waits TO pg_read_all_stats;

-- Tell now, and not at the first COMMIT, that the library is not preloaded.
DO $$ BEGIN PERFORM pg_fdw_xacts_participants(); END $$;
