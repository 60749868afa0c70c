-- The objects of pg_fdw_xacts, in the order in which they need each other.

CREATE FUNCTION pg_fdw_xacts_handler() RETURNS fdw_handler
    LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'pg_fdw_xacts_handler';

CREATE FUNCTION pg_fdw_xacts_validator(text[], oid) RETURNS void
    LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'pg_fdw_xacts_validator';

CREATE FOREIGN DATA WRAPPER pg_fdw_xacts
    HANDLER pg_fdw_xacts_handler VALIDATOR pg_fdw_xacts_validator;
