-- Upgrade from 0.1.0. It takes no lock on the decisions: transactions may be in doubt meanwhile.

CREATE FUNCTION pg_fdw_xacts_exec(server name, command text) RETURNS bigint
    LANGUAGE c STRICT VOLATILE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'pg_fdw_xacts_exec';
CREATE FUNCTION pg_fdw_xacts_query(server name, query text) RETURNS SETOF record
    LANGUAGE c STRICT VOLATILE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'pg_fdw_xacts_query';
REVOKE EXECUTE ON FUNCTION pg_fdw_xacts_exec(name, text), pg_fdw_xacts_query(name, text) FROM PUBLIC;
