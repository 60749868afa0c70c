-- What the tests of src/tests work with.
CREATE SCHEMA r;
CREATE SCHEMA f;

DO $$
BEGIN
    EXECUTE format('CREATE SERVER loopback FOREIGN DATA WRAPPER pg_fdw_xacts
                    OPTIONS (host %L, port %L, dbname %L)',
                   split_part(current_setting('unix_socket_directories'), ',', 1),
                   current_setting('port'), current_database());
    EXECUTE format('CREATE USER MAPPING FOR CURRENT_USER SERVER loopback OPTIONS (user %L)', current_user);
    EXECUTE format('CREATE SERVER nowhere FOREIGN DATA WRAPPER pg_fdw_xacts
                    OPTIONS (host %L, port ''1'')',
                   split_part(current_setting('unix_socket_directories'), ',', 1));
    EXECUTE format('CREATE USER MAPPING FOR CURRENT_USER SERVER nowhere OPTIONS (user %L)', current_user);
END $$;

CREATE FUNCTION r.plan(statement text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE line text; plan text := '';
BEGIN
    FOR line IN EXECUTE 'EXPLAIN (VERBOSE, COSTS OFF) ' || statement LOOP
        plan := plan || line || E'\n';
    END LOOP;
    RETURN plan;
END $$;

CREATE FUNCTION r.failure(statement text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE state text; message text; detail text; hint text; limiter text; context text;
BEGIN
    EXECUTE statement;
    RETURN 'no error';
EXCEPTION WHEN OTHERS THEN
    GET STACKED DIAGNOSTICS state = RETURNED_SQLSTATE, message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL,
        hint = PG_EXCEPTION_HINT, limiter = CONSTRAINT_NAME, context = PG_EXCEPTION_CONTEXT;
    RETURN concat_ws(E'\n', state, message, detail, hint, limiter, context);
END $$;

-- Scans.
CREATE TABLE r.scan (id int PRIMARY KEY, v text, n numeric);
INSERT INTO r.scan SELECT i, 'v' || i, i / 4.0 FROM generate_series(1, 9) i;
INSERT INTO r.scan (id) VALUES (10);
CREATE FOREIGN TABLE f.scan (id int, v text, n numeric) SERVER loopback OPTIONS (schema_name 'r');
CREATE FOREIGN TABLE f.scan_by_two (number int OPTIONS (column_name 'id'), v text)
    SERVER loopback OPTIONS (schema_name 'r', table_name 'scan', fetch_size '2');
CREATE FOREIGN TABLE f.unreachable (id int) SERVER nowhere;

-- The same table with its types, and as the text that the participant makes of it.
CREATE TYPE r.mood AS ENUM ('calm', 'wild');
CREATE TYPE r.pair AS (a int, b text);
CREATE DOMAIN r.small AS int CHECK (VALUE < 100);
CREATE TABLE r.types (
    id int, b bool, i8 bigint, f4 real, f8 double precision, n numeric(30, 10), t text, c char(5), by bytea,
    d date, ts timestamp, tz timestamptz, iv interval, u uuid, j jsonb, a int[], ta text[], m r.mood, p r.pair,
    s r.small, rc regclass, rg int4range, x xml, ip inet);
CREATE FOREIGN TABLE f.types (
    id int, b bool, i8 bigint, f4 real, f8 double precision, n numeric(30, 10), t text, c char(5), by bytea,
    d date, ts timestamp, tz timestamptz, iv interval, u uuid, j jsonb, a int[], ta text[], m r.mood, p r.pair,
    s r.small, rc regclass, rg int4range, x xml, ip inet) SERVER loopback OPTIONS (schema_name 'r');
CREATE FOREIGN TABLE f.types_as_text (id int, f4 text, f8 text, d text, ts text, tz text, iv text, rc text)
    SERVER loopback OPTIONS (schema_name 'r', table_name 'types');

-- Modifications, a table for each test.
CREATE TABLE r.direct (id int PRIMARY KEY, v text);
INSERT INTO r.direct SELECT i, 'v' || i FROM generate_series(1, 6) i;
CREATE FOREIGN TABLE f.direct (id int, v text) SERVER loopback OPTIONS (schema_name 'r');
CREATE TABLE r.rowwise (id int PRIMARY KEY, v text);
INSERT INTO r.rowwise SELECT i, 'v' || i FROM generate_series(1, 6) i;
CREATE FOREIGN TABLE f.rowwise (id int, v text) SERVER loopback OPTIONS (schema_name 'r');
CREATE TABLE r.joined (id int PRIMARY KEY, v text);
INSERT INTO r.joined SELECT i, 'v' || i FROM generate_series(1, 6) i;
CREATE FOREIGN TABLE f.joined (id int, gone int, v text) SERVER loopback OPTIONS (schema_name 'r');
ALTER FOREIGN TABLE f.joined DROP COLUMN gone;
CREATE TABLE r.conflict (id int PRIMARY KEY, v text);
INSERT INTO r.conflict VALUES (1, 'there');
CREATE FOREIGN TABLE f.conflict (id int, v text) SERVER loopback OPTIONS (schema_name 'r');
CREATE TABLE r.generated (a int, g int GENERATED ALWAYS AS (a * 2) STORED, v text DEFAULT 'theirs');
CREATE FOREIGN TABLE f.generated (a int, g int GENERATED ALWAYS AS (a * 2) STORED, v text DEFAULT 'ours')
    SERVER loopback OPTIONS (schema_name 'r', batch_size '3');
CREATE TABLE r.triggered (id int PRIMARY KEY, v text, w text);
CREATE FOREIGN TABLE f.triggered (id int, v text, w text) SERVER loopback OPTIONS (schema_name 'r', batch_size '10');
CREATE TABLE r.trace (at serial, line text);
CREATE FUNCTION r.trace() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_WHEN = 'BEFORE' AND TG_OP <> 'DELETE' THEN NEW.w := 'by ' || TG_OP; END IF;
    INSERT INTO r.trace(line) VALUES (concat_ws(' ', TG_WHEN, TG_OP,
        CASE WHEN TG_OP <> 'INSERT' THEN OLD::text END, CASE WHEN TG_OP <> 'DELETE' THEN NEW::text END));
    RETURN CASE WHEN TG_OP = 'DELETE' THEN OLD ELSE NEW END;
END $$;
CREATE TRIGGER before BEFORE INSERT OR UPDATE OR DELETE ON f.triggered FOR EACH ROW EXECUTE FUNCTION r.trace();
CREATE TRIGGER after AFTER INSERT OR UPDATE OR DELETE ON f.triggered FOR EACH ROW EXECUTE FUNCTION r.trace();
CREATE TABLE r.checked (id int, v text);
CREATE FOREIGN TABLE f.checked (id int, v text) SERVER loopback OPTIONS (schema_name 'r');
CREATE VIEW f.checked_view AS SELECT * FROM f.checked WHERE id < 10 WITH CHECK OPTION;
CREATE TABLE r.routed (id int, v text);
CREATE TABLE f.root (v text, id int) PARTITION BY LIST (id);
CREATE TABLE f.root_local PARTITION OF f.root FOR VALUES IN (1);
CREATE FOREIGN TABLE f.routed PARTITION OF f.root FOR VALUES IN (2, 3) SERVER loopback OPTIONS (schema_name 'r');
CREATE TABLE r.batched (id int PRIMARY KEY, v text);
CREATE FOREIGN TABLE f.batched (id int, v text) SERVER loopback OPTIONS (schema_name 'r', batch_size '3');
CREATE TABLE r.no_columns ();
CREATE FOREIGN TABLE f.no_columns () SERVER loopback OPTIONS (schema_name 'r', batch_size '3');

-- Errors.
CREATE TABLE r.strict (id int CONSTRAINT positive CHECK (id > 0), v text);
CREATE FOREIGN TABLE f.strict (id int, v text) SERVER loopback OPTIONS (schema_name 'r');
CREATE TABLE r.unfit (id int, v text);
INSERT INTO r.unfit VALUES (1, '1'), (2, 'two'), (3, NULL);
CREATE DOMAIN r.given AS text NOT NULL;
CREATE FOREIGN TABLE f.unfit (id int, number int OPTIONS (column_name 'v'))
    SERVER loopback OPTIONS (schema_name 'r');
CREATE FOREIGN TABLE f.missing (id int, v r.given) SERVER loopback OPTIONS (schema_name 'r', table_name 'unfit');
CREATE FUNCTION r.fail() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'refused' USING ERRCODE = 'ZZ001', DETAIL = 'the detail', HINT = 'the hint';
END $$;
CREATE TABLE r.refusing (id int);
CREATE TRIGGER refuse BEFORE INSERT ON r.refusing FOR EACH ROW EXECUTE FUNCTION r.fail();
CREATE FOREIGN TABLE f.refusing (id int) SERVER loopback OPTIONS (schema_name 'r');
CREATE TABLE r.kept (id int PRIMARY KEY);
CREATE FOREIGN TABLE f.kept (id int) SERVER loopback OPTIONS (schema_name 'r');
