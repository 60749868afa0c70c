-- One row per participant of a distributed transaction that is prepared on a foreign server or about to
-- be, in all databases of this coordinator.
CREATE VIEW pg_fdw_xacts AS
    SELECT dbid, transaction, serverid, userid, status, identifier FROM pg_fdw_xacts_list();

GRANT SELECT ON pg_fdw_xacts TO PUBLIC;

-- Tell now, and not at the first COMMIT, that the library is not preloaded.
DO $$ BEGIN PERFORM pg_fdw_xacts_list(); END $$;
