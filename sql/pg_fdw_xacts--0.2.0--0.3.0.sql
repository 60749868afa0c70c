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

-- Where a participant was: two servers of one image cannot be told apart otherwise. Not known of those from before.
ALTER TABLE fdw_xacts.participant ADD COLUMN address text COLLATE "C";

-- Traces of labels are looked up by it.
CREATE INDEX expired_trace ON fdw_xacts.expired (trace);

CREATE FUNCTION pg_fdw_xacts_reads(OUT cuts bigint, OUT rounds bigint, OUT windows bigint, OUT too_old bigint,
    OUT in_doubt bigint) RETURNS SETOF record ROWS 1
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

-- Sharding by one call: pg_fdw_xacts_distribute(), pg_fdw_xacts_move_partition(), pg_fdw_xacts_replicate().
--
-- Each makes a plan, an array of {server, statement} pairs where NULL is this server, and has pg_fdw_xacts_run() run it
-- in the caller's transaction, with the caller's rights. They are SQL so that everybody can read what they do. Names
-- are quoted and qualified; search_path is pg_catalog here and on the servers, so that nothing else can be meant.

-- Runs a plan, or only tells it. What INSERTs have inserted must be what SELECT count(*) finds.
CREATE FUNCTION pg_fdw_xacts_run(plan text[], dry_run boolean, OUT server name, OUT statement text, OUT rows bigint)
    RETURNS SETOF record LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    step text[];
    inserted bigint := 0;
    counted bigint := 0;
BEGIN
    IF dry_run IS NOT TRUE AND current_setting('pg_fdw_xacts.two_phase_commit') = 'off' THEN
        RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = 'cannot move rows between servers without two-phase commit',
            HINT = 'Set pg_fdw_xacts.two_phase_commit to auto.';
    ELSIF dry_run IS NOT TRUE AND current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = 'cannot move rows in a transaction that is not READ COMMITTED',
            DETAIL = 'Its snapshot may be older than rows that have to be moved.';
    END IF;
    FOREACH step SLICE 1 IN ARRAY plan LOOP
        server := step[1];
        statement := step[2];
        rows := NULL;
        IF dry_run THEN
            NULL;
        ELSIF server IS NOT NULL THEN
            PERFORM @extschema@.pg_fdw_xacts_exec(server, format(
                'SELECT pg_catalog.set_config(''px.caller_path'', pg_catalog.current_setting(''search_path''), true); '
                'SET LOCAL search_path = pg_catalog, pg_temp; %s; '
                'SELECT pg_catalog.set_config(''search_path'', pg_catalog.current_setting(''px.caller_path''), true)',
                statement));
        ELSIF starts_with(statement, 'SELECT count(*) ') THEN
            EXECUTE statement INTO rows;
            counted := counted + rows;
        ELSIF starts_with(statement, 'INSERT ') THEN
            EXECUTE statement;
            GET DIAGNOSTICS rows = ROW_COUNT;
            inserted := inserted + rows;
        ELSE
            EXECUTE statement;
        END IF;
        RETURN NEXT;
    END LOOP;
    IF inserted <> counted THEN
        RAISE EXCEPTION USING ERRCODE = 'data_exception',
            MESSAGE = format('%s rows were sent, but %s have arrived', inserted, counted),
            HINT = 'Look for triggers and rules that the servers add to new tables.';
    END IF;
END $$;

-- How a table on a server, or here where that is NULL, is made: one row per statement or fact.
--   table        CREATE TABLE, with defaults only where it is on a server: the coordinator's are its own
--   columns      the same list of columns by itself
--   column       the name of a column that is given values; generated: of one that is not
--   constraint, index, foreign key
--   grant        GRANT … ON %s …; owner: ALTER TABLE %s OWNER TO …, unless it is the current user. For format() with
--                the name of the table that it is given to
-- With "drops", for a caller who drops the table: it is an error if anything would be lost.
CREATE FUNCTION pg_fdw_xacts_definition(server name, relation text, drops boolean, OUT part text, OUT statement text)
    RETURNS SETOF record LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    lost text[] := '{}';
    found_table boolean := false;
    is_ordinary boolean := true;
    place text := coalesce(' on server "' || server || '"', '');
    query text := $query$
WITH r AS (
    SELECT c.*, format('%I.%I', n.nspname, c.relname) AS name
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = to_regclass(:relation)
), a AS (
    SELECT a.*, pg_get_expr(d.adbin, d.adrelid) AS expression
    FROM r JOIN pg_attribute a ON a.attrelid = r.oid AND a.attnum > 0 AND NOT a.attisdropped
    LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
), columns AS (
    SELECT string_agg(format('%I %s', attname, format_type(atttypid, atttypmod))
        || CASE WHEN attcollation <> t.typcollation THEN format(' COLLATE %I.%I', n.nspname, l.collname) ELSE '' END
        || CASE WHEN attgenerated <> '' THEN format(' GENERATED ALWAYS AS (%s) %s', expression,
                CASE attgenerated WHEN 's' THEN 'STORED' ELSE 'VIRTUAL' END)
            WHEN :remote AND expression IS NOT NULL THEN ' DEFAULT ' || expression ELSE '' END
        || CASE WHEN attnotnull THEN ' NOT NULL' ELSE '' END, ', ' ORDER BY attnum) AS list
    FROM a JOIN pg_type t ON t.oid = atttypid
    LEFT JOIN pg_collation l ON l.oid = attcollation LEFT JOIN pg_namespace n ON n.oid = l.collnamespace
), own AS (
    SELECT 'pg_constraint'::regclass AS classid, oid AS objid FROM pg_constraint
    WHERE conrelid = (SELECT oid FROM r) AND contype <> 't'
    UNION ALL SELECT 'pg_attrdef'::regclass, oid FROM pg_attrdef WHERE adrelid = (SELECT oid FROM r)
    UNION ALL SELECT 'pg_class'::regclass, indexrelid FROM pg_index WHERE indrelid = (SELECT oid FROM r)
    UNION ALL SELECT 'pg_class'::regclass, oid FROM pg_class WHERE relkind = 'S'
    UNION ALL SELECT 'pg_trigger'::regclass, oid FROM pg_trigger WHERE tgrelid = (SELECT oid FROM r) AND tgparentid <> 0
), acl AS (
    SELECT NULL AS attname, r.relowner, x.* FROM r, aclexplode(r.relacl) x
    UNION ALL SELECT a.attname, r.relowner, x.* FROM r, a, aclexplode(a.attacl) x
)
SELECT part, statement FROM (
SELECT 'kind' AS part, NULL AS statement, 0 AS n FROM r
WHERE relkind <> 'r' AND (relkind <> 'f' OR :remote) OR relpersistence <> 'p' OR reloftype <> 0
    OR NOT relispartition AND EXISTS (SELECT FROM pg_inherits WHERE inhrelid = r.oid)
UNION ALL SELECT 'obstacle', 'row security', 0 FROM r WHERE relrowsecurity
UNION ALL SELECT 'obstacle', format('identity column %I', attname), 0 FROM a WHERE attidentity <> '' AND :remote
UNION ALL SELECT DISTINCT 'obstacle', pg_describe_object(d.classid, d.objid, d.objsubid), 0 FROM r, pg_depend d
WHERE d.deptype IN ('n', 'a') AND (d.classid, d.objid) NOT IN (SELECT classid, objid FROM own)
    AND (d.refclassid = 'pg_class'::regclass AND d.refobjid = r.oid
        OR d.refclassid = 'pg_type'::regclass
            AND d.refobjid IN (SELECT unnest(ARRAY[t.oid, t.typarray]) FROM pg_type t WHERE t.oid = r.reltype))
UNION ALL SELECT 'columns', list, 0 FROM columns
UNION ALL SELECT 'table', format('CREATE TABLE %s (%s)%s', r.name, list,
    ' WITH (' || array_to_string(r.reloptions, ', ') || ')'), 0 FROM r, columns
UNION ALL SELECT CASE WHEN attgenerated = '' THEN 'column' ELSE 'generated' END, attname, attnum::integer FROM a
UNION ALL SELECT CASE WHEN contype = 'f' THEN 'foreign key' ELSE 'constraint' END,
    format('ALTER TABLE %s ADD CONSTRAINT %I %s', r.name, conname, pg_get_constraintdef(c.oid)), 0
FROM r JOIN pg_constraint c ON conrelid = r.oid WHERE contype IN ('p', 'u', 'x', 'c', 'f')
UNION ALL SELECT 'index', pg_get_indexdef(indexrelid), 0 FROM r JOIN pg_index i ON indrelid = r.oid
WHERE indisvalid AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = indexrelid AND contype IN ('p', 'u', 'x'))
UNION ALL SELECT 'grant', format('GRANT %s%s ON %%s TO %s%s', privilege_type,
    replace(format(CASE WHEN attname IS NULL THEN '' ELSE ' (%I)' END, attname), '%', '%%'),
    replace(CASE WHEN grantee = 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(grantee)) END, '%', '%%'),
    CASE WHEN is_grantable THEN ' WITH GRANT OPTION' ELSE '' END), 0 FROM acl WHERE grantee <> relowner
UNION ALL SELECT 'owner', 'ALTER TABLE %s OWNER TO ' || replace(quote_ident(pg_get_userbyid(relowner)), '%', '%%'), 0
FROM r WHERE pg_get_userbyid(relowner) <> current_user
) parts ORDER BY part, n, statement
$query$;
BEGIN
    query := replace(query, ':remote', (server IS NOT NULL)::text);
    query := replace(query, ':relation', quote_literal(relation));
    IF server IS NOT NULL THEN
        PERFORM @extschema@.pg_fdw_xacts_exec(server,
            'SELECT pg_catalog.set_config(''px.caller_path'', pg_catalog.current_setting(''search_path''), true); '
            'SET LOCAL search_path = pg_catalog, pg_temp');
        query := format('SELECT * FROM @extschema@.pg_fdw_xacts_query(%L, %L) AS t (part text, statement text)',
            server, query);
    END IF;
    FOR part, statement IN EXECUTE query LOOP
        IF part = 'obstacle' THEN
            lost := lost || statement;
        ELSIF part = 'kind' THEN
            is_ordinary := false;
        ELSE
            found_table := found_table OR part = 'table';
            RETURN NEXT;
        END IF;
    END LOOP;
    IF server IS NOT NULL THEN
        PERFORM @extschema@.pg_fdw_xacts_exec(server,
            'SELECT pg_catalog.set_config(''search_path'', pg_catalog.current_setting(''px.caller_path''), true)');
    END IF;
    IF NOT found_table THEN
        RAISE EXCEPTION USING ERRCODE = 'undefined_table',
            MESSAGE = format('table %s does not exist%s', relation, place);
    ELSIF drops AND NOT is_ordinary THEN
        RAISE EXCEPTION USING ERRCODE = 'wrong_object_type',
            MESSAGE = format('cannot move table %s%s', relation, place),
            DETAIL = 'It is no ordinary, permanent table without parents and children.';
    ELSIF drops AND lost <> '{}' THEN
        RAISE EXCEPTION USING ERRCODE = 'feature_not_supported',
            MESSAGE = format('cannot move table %s%s', relation, place),
            DETAIL = format('These would be lost: %s.', array_to_string(lost, ', ')),
            HINT = 'Drop them, and create them again where they belong, in the same transaction.';
    END IF;
END $$;

-- A name of at most 63 bytes: the base, as much of it as there is room for, and the suffix.
CREATE FUNCTION pg_fdw_xacts_name(base text, suffix text) RETURNS name
    LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
    SELECT coalesce(
        (SELECT left(base, n) || '_' || suffix FROM generate_series(length(base), 1, -1) n
            WHERE octet_length(left(base, n) || '_' || suffix) <= 63 LIMIT 1),
        md5(base || '_' || suffix))::name
$$;

-- The trigger of a replicated table that writes to one copy, which is its argument.
CREATE FUNCTION pg_fdw_xacts_replicate_row() RETURNS trigger
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    copy regclass := TG_ARGV[0];
    names text;
    news text;
    sets text;
    is_old text;
    written bigint;
    pending text[];
BEGIN
    IF TG_OP = 'TRUNCATE' THEN
        EXECUTE format('TRUNCATE %s', copy);
        RETURN NULL;
    END IF;
    SELECT string_agg(quote_ident(attname), ', '), string_agg(format('($1).%I', attname), ', '),
        string_agg(format('%I = ($1).%I', attname, attname), ', ') INTO names, news, sets
    FROM pg_attribute WHERE attrelid = TG_RELID AND attnum > 0 AND NOT attisdropped AND attgenerated = '';
    IF TG_OP = 'INSERT' THEN
        EXECUTE format('INSERT INTO %s (%s) VALUES (%s)', copy, names, news) USING NEW;
        RETURN NULL;
    END IF;
    SELECT string_agg(format('%I OPERATOR(%I.%s) ($2).%I', a.attname, n.nspname, o.oprname, a.attname), ' AND ')
    INTO is_old FROM pg_index i CROSS JOIN unnest(i.indkey::int2[], i.indclass::oid[]) k (attnum, opclass)
    JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
    JOIN pg_opclass c ON c.oid = k.opclass
    JOIN pg_amop m ON m.amopfamily = c.opcfamily AND m.amoplefttype = c.opcintype AND m.amoprighttype = c.opcintype
        AND m.amopstrategy = 3
    JOIN pg_operator o ON o.oid = m.amopopr JOIN pg_namespace n ON n.oid = o.oprnamespace
    WHERE i.indrelid = TG_RELID AND i.indisprimary;
    LOOP
        IF TG_OP = 'UPDATE' THEN
            EXECUTE format('UPDATE %s SET %s WHERE %s', copy, sets, is_old) USING NEW, OLD;
        ELSE
            EXECUTE format('DELETE FROM %s WHERE %s', copy, is_old) USING NULL::text, OLD;
        END IF;
        GET DIAGNOSTICS written = ROW_COUNT;
        EXIT WHEN written <> 0 OR pending IS NOT NULL;
        -- The transaction that has written the row may have committed here, and still be delivered there. One that is
        -- not decided may wait for this one, which is why it is not waited for without end.
        pending := ARRAY(SELECT identifier FROM @extschema@.pg_fdw_xacts
            WHERE status IN ('prepared', 'committing')
                AND serverid = (SELECT ftserver FROM pg_foreign_table WHERE ftrelid = copy));
        FOR i IN 1 .. 1000 LOOP
            EXIT WHEN NOT EXISTS (SELECT FROM @extschema@.pg_fdw_xacts WHERE identifier = ANY (pending));
            PERFORM pg_sleep(0.01);
        END LOOP;
    END LOOP;
    IF written <> 1 THEN
        RAISE EXCEPTION USING ERRCODE = 'data_exception',
            MESSAGE = format('%s has %s rows instead of one to %s', copy, written, lower(TG_OP)),
            DETAIL = format('It is a copy of %s, and is not the same any more.', TG_RELID::regclass),
            HINT = 'Find the differences with EXCEPT, and write them to the copy itself.';
    END IF;
    RETURN NULL;
END $$;

-- The copies that pg_fdw_xacts_replicate() has made of a table.
CREATE FUNCTION pg_fdw_xacts_copies(relation regclass, OUT copy regclass, OUT server name) RETURNS SETOF record
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT f.ftrelid::regclass, s.srvname
    FROM pg_trigger t
    JOIN pg_foreign_table f ON f.ftrelid = CASE
        WHEN t.tgfoid = '@extschema@.pg_fdw_xacts_replicate_row'::regproc
        THEN to_regclass(convert_from(substr(t.tgargs, 1, octet_length(t.tgargs) - 1), getdatabaseencoding())) END
    JOIN pg_foreign_server s ON s.oid = f.ftserver
    WHERE t.tgrelid = relation AND t.tgtype & 1 = 1
    ORDER BY 2
$$;

-- Makes an ordinary table one that is spread over servers, with its rows.
CREATE FUNCTION pg_fdw_xacts_distribute(relation regclass, key name, servers name[], partitions integer DEFAULT NULL,
    bounds text[] DEFAULT NULL, dry_run boolean DEFAULT false, OUT server name, OUT statement text, OUT rows bigint)
    RETURNS SETOF record LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    number integer := coalesce(cardinality(bounds) + 1, partitions, 4 * cardinality(servers));
    wrong text;
    t record;
    d record;
    place text;
    partition text;
    templates text;
    columns text;
    owner text;
    plan text[];
    identities text[] := '{}';
    afterwards text[] := '{}';
BEGIN
    IF coalesce(cardinality(servers), 0) = 0 OR array_position(servers, NULL) IS NOT NULL
        OR number < cardinality(servers) OR bounds IS NOT NULL AND partitions <> number THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = 'there have to be servers, and at least as many partitions',
            HINT = 'Bounds make one partition more than there are of them.';
    END IF;
    SELECT c.relkind, n.nspname, c.relname, c.reloptions, format('%I.%I', n.nspname, c.relname) AS name,
        format('%I.%I', n.nspname, 'fdw_xacts_' || c.oid) AS old, obj_description(c.oid, 'pg_class') AS comment
        INTO STRICT t FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = relation;
    IF t.relkind = 'p' THEN
        RAISE EXCEPTION USING ERRCODE = 'wrong_object_type',
            MESSAGE = format('table %s is partitioned already', t.name),
            HINT = 'Move its partitions with pg_fdw_xacts_move_partition().';
    END IF;
    RETURN QUERY SELECT * FROM @extschema@.pg_fdw_xacts_run(
        ARRAY[[NULL, format('LOCK TABLE %s IN ACCESS EXCLUSIVE MODE', t.name)]], dry_run);
    IF to_regclass(t.name) IS DISTINCT FROM relation THEN
        RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = format('table %s was changed while its lock was waited for', t.name);
    END IF;

    -- What the partitioned table is, and that it can be.
    plan := ARRAY[[NULL, format('ALTER TABLE %s RENAME TO %I', t.name, 'fdw_xacts_' || relation::oid)]];
    -- LIKE would give an identity column a sequence of another name, without its privileges.
    FOR d IN SELECT a.attname, a.attidentity, c.oid, c.relacl, c.relowner, q.*,
            format('%I.%I', n.nspname, c.relname) AS name, format('%I.%I', n.nspname, 'fdw_xacts_' || c.oid) AS old
        FROM pg_depend p JOIN pg_class c ON c.oid = p.objid JOIN pg_sequence q ON q.seqrelid = c.oid
        JOIN pg_namespace n ON n.oid = c.relnamespace
        JOIN pg_attribute a ON a.attrelid = p.refobjid AND a.attnum = p.refobjsubid
        WHERE p.classid = 'pg_class'::regclass AND p.refclassid = 'pg_class'::regclass AND p.refobjid = relation
            AND p.deptype = 'i' LOOP
        plan := plan || ARRAY[[NULL, format('ALTER SEQUENCE %s RENAME TO %I', d.name, 'fdw_xacts_' || d.oid)]];
        identities := identities || ARRAY[
            [NULL, format('ALTER TABLE %s ALTER COLUMN %I ADD GENERATED %s AS IDENTITY (SEQUENCE NAME %s INCREMENT %s '
                'MINVALUE %s MAXVALUE %s START %s CACHE %s %s)', t.name, d.attname,
                CASE d.attidentity WHEN 'a' THEN 'ALWAYS' ELSE 'BY DEFAULT' END, d.name, d.seqincrement, d.seqmin,
                d.seqmax, d.seqstart, d.seqcache, CASE WHEN d.seqcycle THEN 'CYCLE' ELSE 'NO CYCLE' END)],
            [NULL, format('SELECT setval(%L, last_value, is_called) FROM %s', d.name, d.old)]]
            || coalesce((SELECT array_agg(ARRAY[NULL::text, format('GRANT %s ON SEQUENCE %s TO %s%s', privilege_type,
                    d.name, CASE WHEN grantee = 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(grantee)) END,
                    CASE WHEN is_grantable THEN ' WITH GRANT OPTION' ELSE '' END)])
                FROM aclexplode(d.relacl) WHERE grantee <> d.relowner), '{}');
    END LOOP;
    plan := plan || ARRAY[[NULL, format(
        'CREATE TABLE %s (LIKE %s INCLUDING ALL EXCLUDING IDENTITY EXCLUDING INDEXES EXCLUDING STATISTICS) '
        'PARTITION BY %s (%I)', t.name, t.old, CASE WHEN bounds IS NULL THEN 'HASH' ELSE 'RANGE' END, key)]];
    FOR d IN SELECT * FROM @extschema@.pg_fdw_xacts_definition(NULL, t.name, true) LOOP
        IF d.part = 'column' THEN
            columns := concat_ws(', ', columns, quote_ident(d.statement));
        ELSIF d.part IN ('grant', 'owner') THEN
            plan := plan || ARRAY[[NULL, format(d.statement, t.name)]];
            owner := CASE d.part WHEN 'owner' THEN d.statement ELSE owner END;
        END IF;
    END LOOP;
    plan := plan || identities;
    IF t.comment IS NOT NULL THEN
        plan := plan || ARRAY[[NULL, format('COMMENT ON TABLE %s IS %L', t.name, t.comment)]];
    END IF;
    SELECT string_agg(quote_ident(c.relname), ', ') INTO wrong FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
    WHERE i.indrelid = relation AND (i.indisexclusion OR i.indisunique AND NOT EXISTS (
        SELECT FROM unnest(i.indkey::int2[], i.indcollation::oid[]) k (attnum, coll)
        JOIN pg_attribute a ON a.attrelid = relation AND a.attname = key AND a.attnum = k.attnum
        LEFT JOIN pg_collation l ON l.oid = k.coll
        -- What is equal in the index has to be so in the key. Columns that are only included have no collation.
        WHERE k.coll = a.attcollation OR l.collisdeterministic));
    IF wrong IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'feature_not_supported',
            MESSAGE = format('the key column "%s" is not in each unique index of table %s', key, t.name),
            DETAIL = format('Without it, these would hold within one partition only: %s.', wrong),
            HINT = 'Add the key column to them, or drop them.';
    END IF;
    SELECT string_agg(format('%I to %s', c.conname, c.confrelid::regclass), ', ') INTO wrong FROM pg_constraint c
    WHERE c.conrelid = relation AND c.contype = 'f'
        AND NOT servers <@ ARRAY(SELECT x.server FROM @extschema@.pg_fdw_xacts_copies(c.confrelid) x);
    IF wrong IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'feature_not_supported',
            MESSAGE = format('table %s has foreign keys to tables that are not on each server', t.name),
            DETAIL = format('These are: %s.', wrong),
            HINT = 'Copy the tables to all servers with pg_fdw_xacts_replicate(), or drop the foreign keys.';
    END IF;
    FOR d IN SELECT a.attname, s.oid::regclass AS sequence FROM pg_depend p
        JOIN pg_class s ON s.oid = p.objid AND s.relkind = 'S'
        JOIN pg_attribute a ON a.attrelid = p.refobjid AND a.attnum = p.refobjsubid
        WHERE p.classid = 'pg_class'::regclass AND p.refclassid = 'pg_class'::regclass AND p.refobjid = relation
            AND p.deptype = 'a' LOOP
        plan := plan || ARRAY[[NULL, format('ALTER SEQUENCE %s OWNED BY %s.%I', d.sequence, t.name, d.attname)]];
    END LOOP;

    -- A partition's table has the names that PostgreSQL gives to one that is made here like it; all at a time, so that
    -- these names differ.
    FOR i IN 0 .. number - 1 LOOP
        place := servers[1 + i % cardinality(servers)];
        partition := format('%I.%I', t.nspname, @extschema@.pg_fdw_xacts_name(t.relname, i::text));
        EXECUTE format('CREATE TABLE %s (LIKE %s INCLUDING CONSTRAINTS INCLUDING GENERATED INCLUDING INDEXES)',
            partition, t.name);
        IF t.reloptions IS NOT NULL THEN
            EXECUTE format('ALTER TABLE %s SET (%s)', partition, array_to_string(t.reloptions, ', '));
        END IF;
        FOR d IN SELECT * FROM @extschema@.pg_fdw_xacts_definition(NULL, partition, false) LOOP
            IF d.part = 'table' THEN
                plan := plan || ARRAY[[place, d.statement]];
            ELSIF d.part IN ('constraint', 'index') THEN
                afterwards := afterwards || ARRAY[[place, d.statement]];
            END IF;
        END LOOP;
        templates := concat_ws(', ', templates, partition);
        FOR d IN SELECT conname, pg_get_constraintdef(oid) AS definition FROM pg_constraint
            WHERE conrelid = relation AND contype = 'f' LOOP
            afterwards := afterwards || ARRAY[[place,
                format('ALTER TABLE %s ADD CONSTRAINT %I %s', partition, d.conname, d.definition)]];
        END LOOP;
        plan := plan || ARRAY[[NULL, format(
            'CREATE FOREIGN TABLE %s PARTITION OF %s FOR VALUES %s SERVER %I OPTIONS (schema_name %L, table_name %L)',
            partition, t.name, CASE
                WHEN bounds IS NULL THEN format('WITH (MODULUS %s, REMAINDER %s)', number, i)
                ELSE format('FROM (%s) TO (%s)', coalesce(quote_literal(bounds[i]), 'MINVALUE'),
                    coalesce(quote_literal(bounds[i + 1]), 'MAXVALUE')) END,
            place, t.nspname, @extschema@.pg_fdw_xacts_name(t.relname, i::text))]];
        IF owner IS NOT NULL THEN
            plan := plan || ARRAY[[NULL, format(owner, partition)]];
        END IF;
        afterwards := afterwards || ARRAY[[NULL, format('SELECT count(*) FROM %s', partition)]];
    END LOOP;
    EXECUTE format('DROP TABLE %s', templates);
    RETURN QUERY SELECT * FROM @extschema@.pg_fdw_xacts_run(plan || ARRAY[[NULL,
            format('INSERT INTO %s (%s) OVERRIDING SYSTEM VALUE SELECT %s FROM %s', t.name, columns, columns, t.old)]]
        || afterwards || ARRAY[[NULL, format('DROP TABLE %s', t.old)]], dry_run);
END $$;

-- Moves a partition, with its rows, to another server, or from here to a server.
CREATE FUNCTION pg_fdw_xacts_move_partition(partition regclass, to_server name, dry_run boolean DEFAULT false,
    OUT server name, OUT statement text, OUT rows bigint)
    RETURNS SETOF record LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    parent regclass := (SELECT inhparent FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
        WHERE i.inhrelid = partition AND c.relispartition);
    parent_name text := parent;
    p record;
    here record;
    d record;
    there text[] := '{}';
    wrong text;
    plan text[];
    afterwards text[] := '{}';
    grants text[] := '{}';
    own text[];
    own_statement text;
BEGIN
    IF parent IS NULL OR to_server IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'wrong_object_type',
            MESSAGE = format('%s is not a partition that can be moved', partition);
    END IF;
    RETURN QUERY SELECT * FROM @extschema@.pg_fdw_xacts_run(
        ARRAY[[NULL, format('LOCK TABLE ONLY %s IN ACCESS EXCLUSIVE MODE', parent)]], dry_run);
    SELECT q.*, format('%I.%I', schema, table_name) AS remote INTO p FROM (
        SELECT c.relkind, s.srvname AS server, format('%I.%I', n.nspname, c.relname) AS name,
            format('%I.%I', n.nspname, 'fdw_xacts_' || c.oid) AS transport,
            coalesce(max(o.option_value) FILTER (WHERE o.option_name = 'schema_name'), n.nspname) AS schema,
            coalesce(max(o.option_value) FILTER (WHERE o.option_name = 'table_name'), c.relname) AS table_name,
            coalesce(string_agg(format(', %I %L', o.option_name, o.option_value), '')
                FILTER (WHERE o.option_name NOT IN ('schema_name', 'table_name')), '') AS other_options,
            pg_get_expr(c.relpartbound, c.oid) AS bound
        FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid JOIN pg_namespace n ON n.oid = c.relnamespace
        LEFT JOIN pg_foreign_table f ON f.ftrelid = c.oid LEFT JOIN pg_foreign_server s ON s.oid = f.ftserver
        LEFT JOIN pg_options_to_table(f.ftoptions) o ON true
        WHERE i.inhrelid = partition AND i.inhparent = parent
        GROUP BY c.oid, n.oid, s.oid) q;
    SELECT string_agg(i.indexrelid::regclass::text, ', ') INTO wrong FROM pg_index i
    WHERE i.indisunique AND i.indrelid IN (SELECT relid FROM pg_partition_ancestors(parent));
    IF p.name IS NULL OR to_regclass(parent_name) IS DISTINCT FROM parent THEN
        RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = format('table %s was changed while its lock was waited for', parent_name);
    ELSIF p.server = to_server THEN
        RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = format('partition %s is on server "%s" already', p.name, to_server);
    ELSIF wrong IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'feature_not_supported',
            MESSAGE = format('partition %s cannot become a foreign table', p.name),
            DETAIL = format('A partitioned table with these unique indexes has no foreign partitions: %s.', wrong),
            HINT = 'Drop them, and give each partition its own.';
    END IF;

    -- What the partition has here and its parent has not. Detaching it would hide the difference. The constraints of a
    -- table here go to the server with it.
    own := ARRAY(
        SELECT format('ALTER FOREIGN TABLE %s ALTER COLUMN %I ', p.name, attname) || action
        FROM (SELECT a.*, b.attnotnull AS is_parents, pg_get_expr(x.adbin, x.adrelid) AS value,
                pg_get_expr(y.adbin, y.adrelid) AS parents
            FROM pg_attribute a JOIN pg_attribute b ON b.attrelid = parent AND b.attname = a.attname
            LEFT JOIN pg_attrdef x ON x.adrelid = a.attrelid AND x.adnum = a.attnum
            LEFT JOIN pg_attrdef y ON y.adrelid = b.attrelid AND y.adnum = b.attnum
            WHERE a.attrelid = partition AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '') a,
        LATERAL (VALUES (CASE WHEN value IS DISTINCT FROM parents
                THEN coalesce('SET DEFAULT ' || value, 'DROP DEFAULT') END),
            (CASE WHEN attnotnull AND NOT is_parents THEN 'SET NOT NULL' END)) v (action)
        WHERE action IS NOT NULL
        UNION ALL SELECT format('ALTER FOREIGN TABLE %s ADD CONSTRAINT %I %s', p.name, conname,
            pg_get_constraintdef(oid))
        FROM pg_constraint WHERE conrelid = partition AND contype = 'c' AND coninhcount = 0 AND p.server IS NOT NULL
        UNION ALL SELECT format('COMMENT ON FOREIGN TABLE %s IS %L', p.name, description)
        FROM pg_description WHERE objoid = partition AND classoid = 'pg_class'::regclass AND objsubid = 0
        UNION ALL SELECT format('COMMENT ON COLUMN %s.%I IS %L', p.name, attname, description)
        FROM pg_description JOIN pg_attribute ON attrelid = objoid AND attnum = objsubid
        WHERE objoid = partition AND classoid = 'pg_class'::regclass AND objsubid <> 0);

    -- Nobody else reads or writes it from here on: no session of this server, no transaction that is still to be
    -- delivered on its server, and nobody who is connected to that.
    plan := ARRAY[[NULL, format('ALTER TABLE %s DETACH PARTITION %s', parent, p.name)]];
    IF p.server IS NOT NULL THEN
        plan := plan || ARRAY[[p.server::text, format('LOCK TABLE %s IN ACCESS EXCLUSIVE MODE', p.remote)]];
    END IF;
    RETURN QUERY SELECT * FROM @extschema@.pg_fdw_xacts_run(plan, dry_run);
    IF p.server IS NOT NULL AND dry_run IS NOT TRUE AND (SELECT isolation <> 'read committed'
            FROM @extschema@.pg_fdw_xacts_query(p.server,
                'SELECT pg_catalog.current_setting(''transaction_isolation'')') AS q (isolation text)) THEN
        RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = format('the transaction on server "%s" is not READ COMMITTED', p.server),
            DETAIL = 'Its snapshot may be older than rows that have to be moved.',
            HINT = 'Move the partition in a transaction of its own, with pg_fdw_xacts.remote_isolation = match.';
    END IF;

    -- The columns that are given values, as they are called here and there.
    SELECT string_agg(quote_ident(name), ', ') FILTER (WHERE is_given) AS names,
        string_agg(format('%I %s OPTIONS (column_name %L)', name, type, remote), ', ') FILTER (WHERE is_given)
            AS definitions,
        array_agg(CASE WHEN is_given THEN 'column ' ELSE 'generated ' END || remote) AS facts,
        coalesce(array_agg(ARRAY[NULL::text,
            format('ALTER FOREIGN TABLE %s ALTER COLUMN %I OPTIONS (%s)', p.name, name, options)])
            FILTER (WHERE options IS NOT NULL), '{}') AS options
        INTO here FROM (
            SELECT a.attname AS name, a.attgenerated = '' AS is_given, format_type(a.atttypid, a.atttypmod) AS type,
                coalesce(max(o.option_value) FILTER (WHERE o.option_name = 'column_name'), a.attname) AS remote,
                string_agg('ADD ' || quote_ident(o.option_name) || ' ' || quote_literal(o.option_value), ', ')
                    AS options
            FROM pg_attribute a LEFT JOIN pg_options_to_table(a.attfdwoptions) o ON true
            WHERE a.attrelid = partition AND a.attnum > 0 AND NOT a.attisdropped
            GROUP BY a.attnum, a.attname, a.attgenerated, a.atttypid, a.atttypmod ORDER BY a.attnum) a;
    FOR d IN SELECT * FROM @extschema@.pg_fdw_xacts_definition(p.server, p.remote, true) LOOP
        CASE d.part
            WHEN 'table' THEN plan := ARRAY[[to_server::text, d.statement]];
            WHEN 'column', 'generated' THEN there := there || (d.part || ' ' || d.statement);
            WHEN 'constraint', 'foreign key', 'index' THEN
                afterwards := afterwards || ARRAY[[to_server::text, d.statement]];
            WHEN 'grant' THEN grants := grants || ARRAY[[to_server::text, format(d.statement, p.remote)]];
            ELSE NULL;
        END CASE;
    END LOOP;
    IF NOT (here.facts @> there AND there @> here.facts) THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_table_definition',
            MESSAGE = format('table %s on server "%s" has other columns than the partition', p.remote, p.server),
            HINT = 'Rows are moved column by column. Add what is missing here or there.';
    END IF;
    IF p.server IS NOT NULL THEN
        afterwards := afterwards || grants || ARRAY[
            [p.server::text, format('DROP TABLE %s', p.remote)], [NULL, format('DROP FOREIGN TABLE %s', p.name)]];
    ELSE
        afterwards := afterwards || ARRAY[[NULL, format('DROP TABLE %s', p.name)]];
    END IF;
    afterwards := afterwards || ARRAY[[NULL, format(
        'CREATE FOREIGN TABLE %s PARTITION OF %s %s SERVER %I OPTIONS (schema_name %L, table_name %L%s)',
        p.name, parent, p.bound, to_server, p.schema, p.table_name, p.other_options)]] || here.options;
    FOREACH own_statement IN ARRAY own LOOP
        afterwards := afterwards || ARRAY[[NULL, own_statement]];
    END LOOP;
    -- The partition's own owner and privileges, and that nothing depends on it.
    FOR d IN SELECT * FROM @extschema@.pg_fdw_xacts_definition(NULL, p.name, true) LOOP
        IF d.part IN ('grant', 'owner') THEN
            afterwards := afterwards || ARRAY[[NULL, format(d.statement, p.name)]];
        END IF;
    END LOOP;
    RETURN QUERY SELECT * FROM @extschema@.pg_fdw_xacts_run(plan || ARRAY[
            [NULL, format('CREATE FOREIGN TABLE %s (%s) SERVER %I OPTIONS (schema_name %L, table_name %L)',
                p.transport, here.definitions, to_server, p.schema, p.table_name)],
            [NULL, format('INSERT INTO %s (%s) SELECT %s FROM %s', p.transport, here.names, here.names, p.name)],
            [NULL, format('SELECT count(*) FROM %s', p.transport)],
            [NULL, format('DROP FOREIGN TABLE %s', p.transport)]]
        || afterwards, dry_run);
END $$;

-- Copies a small table to servers, and keeps the copies the same: what is written here is written there in the same
-- transaction.
CREATE FUNCTION pg_fdw_xacts_replicate(relation regclass, servers name[], dry_run boolean DEFAULT false,
    OUT server name, OUT statement text, OUT rows bigint)
    RETURNS SETOF record LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
#variable_conflict use_variable
DECLARE
    t record;
    d record;
    place text;
    copy_name name;
    copy text;
    columns text;
    names text;
    wrong text;
    plan text[] := '{}';
    afterwards text[];
    on_row name;
    on_truncate name;
BEGIN
    SELECT c.relkind, c.relpersistence, c.relrowsecurity, n.nspname, c.relname,
        format('%I.%I', n.nspname, c.relname) AS name
        INTO STRICT t FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = relation;
    IF coalesce(cardinality(servers), 0) = 0 OR array_position(servers, NULL) IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = 'there have to be servers';
    ELSIF t.relkind <> 'r' OR t.relpersistence <> 'p'
        OR EXISTS (SELECT FROM pg_inherits WHERE relation IN (inhrelid, inhparent))
        OR NOT EXISTS (SELECT FROM pg_index WHERE indrelid = relation AND indisprimary) THEN
        RAISE EXCEPTION USING ERRCODE = 'wrong_object_type',
            MESSAGE = format('table %s cannot be replicated', t.name),
            DETAIL = 'It has to be an ordinary, permanent table with a primary key, and without parents and children.';
    ELSIF t.relrowsecurity THEN
        RAISE EXCEPTION USING ERRCODE = 'feature_not_supported',
            MESSAGE = format('table %s with row security cannot be replicated', t.name),
            DETAIL = 'Its policies would not hold for the foreign tables of its copies.';
    END IF;
    SELECT string_agg(format('"%s"', c.server), ', ') INTO wrong FROM @extschema@.pg_fdw_xacts_copies(relation) c
    WHERE c.server = ANY (servers);
    IF wrong IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'duplicate_table',
            MESSAGE = format('table %s is replicated to %s already', t.name, wrong);
    END IF;
    RETURN QUERY SELECT * FROM @extschema@.pg_fdw_xacts_run(
        ARRAY[[NULL, format('LOCK TABLE %s IN SHARE ROW EXCLUSIVE MODE', t.name)]], dry_run);
    IF to_regclass(t.name) IS DISTINCT FROM relation THEN
        RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = format('table %s was changed while its lock was waited for', t.name);
    END IF;
    -- A copy is written row by row, after the statement here. Its unique constraints must not be checked earlier than
    -- here; foreign keys would be, and are left out: they are checked here.
    FOREACH place IN ARRAY servers LOOP
        copy_name := @extschema@.pg_fdw_xacts_name(t.relname, place);
        copy := format('%I.%I', t.nspname, copy_name);
        -- Triggers fire in the order of their names. These go first: what another trigger writes to the same row is
        -- written to the copy after it.
        on_row := @extschema@.pg_fdw_xacts_name('!' || t.relname, place);
        on_truncate := @extschema@.pg_fdw_xacts_name('!' || t.relname, place || '_truncate');
        names := NULL;
        afterwards := '{}';
        FOR d IN SELECT * FROM @extschema@.pg_fdw_xacts_definition(NULL, t.name, false) LOOP
            CASE d.part
                WHEN 'table' THEN plan := plan || ARRAY[[place, d.statement]];
                WHEN 'columns' THEN columns := d.statement;
                WHEN 'column' THEN names := concat_ws(', ', names, quote_ident(d.statement));
                WHEN 'constraint' THEN
                    afterwards := afterwards || ARRAY[[place, d.statement
                        || CASE WHEN d.statement LIKE '% DEFERRABLE' THEN ' INITIALLY DEFERRED' ELSE '' END]];
                WHEN 'index' THEN afterwards := afterwards || ARRAY[[place, d.statement]];
                WHEN 'grant', 'owner' THEN afterwards := afterwards || ARRAY[[NULL, format(d.statement, copy)]];
                ELSE NULL;
            END CASE;
        END LOOP;
        plan := plan || ARRAY[
            [NULL, format('CREATE FOREIGN TABLE %s (%s) SERVER %I OPTIONS (schema_name %L, table_name %L)',
                copy, columns, place, t.nspname, t.relname)],
            [NULL, format('INSERT INTO %s (%s) SELECT %s FROM %s', copy, names, names, t.name)],
            [NULL, format('SELECT count(*) FROM %s', copy)]] || afterwards || ARRAY[
            [NULL, format('CREATE TRIGGER %I AFTER INSERT OR UPDATE OR DELETE ON %s FOR EACH ROW '
                'EXECUTE FUNCTION @extschema@.pg_fdw_xacts_replicate_row(%L)', on_row, t.name, copy)],
            [NULL, format('CREATE TRIGGER %I AFTER TRUNCATE ON %s FOR EACH STATEMENT '
                'EXECUTE FUNCTION @extschema@.pg_fdw_xacts_replicate_row(%L)', on_truncate, t.name, copy)],
            [NULL, format('ALTER TABLE %s ENABLE ALWAYS TRIGGER %I, ENABLE ALWAYS TRIGGER %I',
                t.name, on_row, on_truncate)]];
    END LOOP;
    RETURN QUERY SELECT * FROM @extschema@.pg_fdw_xacts_run(plan, dry_run);
END $$;
