-- What the extension puts into the catalogs: documented, declared, validated.

CREATE TEMP VIEW members AS
	SELECT d.classid, d.objid FROM pg_depend AS d JOIN pg_extension AS e ON e.oid = d.refobjid
	WHERE d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e' AND e.extname = 'bq';

-- Everything but what PostgreSQL makes by itself (array types, a table's row type,
-- operator families, the cast between a type and itself) has a comment.
SELECT pg_describe_object(classid, objid, 0) AS without_comment FROM members
WHERE obj_description(objid, classid::regclass::name) IS NULL AND NOT (
	classid = 'pg_opfamily'::regclass OR
	classid = 'pg_type'::regclass AND EXISTS (SELECT FROM pg_type AS t WHERE t.oid = objid AND
		(t.typelem <> 0 OR t.typtype = 'c' AND t.typname IN ('bq_columns', 'bq_column_data', 'bq_loads', 'bq_stat_indexes'))) OR
	classid = 'pg_cast'::regclass AND EXISTS (SELECT FROM pg_cast AS c WHERE c.oid = objid AND
		c.castsource = c.casttarget))
ORDER BY 1;
SELECT a.attrelid::regclass, a.attname AS without_comment FROM pg_attribute AS a
WHERE a.attrelid IN ('bq_columns'::regclass, 'bq_loads'::regclass, 'bq_statistics'::regclass, 'bq_stat_indexes'::regclass) AND a.attnum > 0 AND
	NOT a.attisdropped AND col_description(a.attrelid, a.attnum) IS NULL;

-- Functions: parallel safe; immutable but for those that read a setting or a table, and
-- the index handler; strict but for those for which null means something
SELECT p.oid::regprocedure AS not_parallel_safe FROM pg_proc AS p JOIN members AS m ON m.objid = p.oid
WHERE m.classid = 'pg_proc'::regclass AND p.proparallel <> 's' ORDER BY p.oid::regprocedure::text;
SELECT p.oid::regprocedure AS not_immutable, p.provolatile FROM pg_proc AS p JOIN members AS m ON m.objid = p.oid
WHERE m.classid = 'pg_proc'::regclass AND p.provolatile <> 'i' ORDER BY p.oid::regprocedure::text;
SELECT p.oid::regprocedure AS not_strict FROM pg_proc AS p JOIN members AS m ON m.objid = p.oid
WHERE m.classid = 'pg_proc'::regclass AND NOT p.proisstrict AND p.prokind = 'f' ORDER BY p.oid::regprocedure::text;

-- Operators and types
SELECT o.oid::regoperator AS operator, o.oprcode::regprocedure AS function, o.oprcom::regoperator AS commutator,
	o.oprnegate::regoperator AS negator, o.oprcanhash, o.oprcanmerge
FROM pg_operator AS o JOIN members AS m ON m.objid = o.oid
WHERE m.classid = 'pg_operator'::regclass ORDER BY o.oid::regoperator::text COLLATE "C";
SELECT typname, typlen, typalign, typstorage FROM pg_type WHERE typname IN ('bqvec', 'bqquery', 'bq_table') ORDER BY 1;
SELECT c.castsource::regtype, c.casttarget::regtype, c.castcontext, nullif(c.castfunc, 0)::regprocedure AS castfunc
FROM pg_cast AS c JOIN members AS m ON m.objid = c.oid AND m.classid = 'pg_cast'::regclass ORDER BY 1, 2;

-- Operator classes
SELECT am.amname, c.opcname, amvalidate(c.oid) FROM pg_opclass AS c
JOIN members AS m ON m.objid = c.oid AND m.classid = 'pg_opclass'::regclass
JOIN pg_am AS am ON am.oid = c.opcmethod ORDER BY 1, 2;

-- The extension can be moved, and dropped without a trace.
SELECT extrelocatable FROM pg_extension WHERE extname = 'bq';
CREATE SCHEMA elsewhere;
ALTER EXTENSION bq SET SCHEMA elsewhere;
SELECT elsewhere.bq_encode('{1,2}') OPERATOR(elsewhere.<~>) '0:1:33'::elsewhere.bqvec AS moved,
	count(*) FROM elsewhere.bq_columns;
ALTER EXTENSION bq SET SCHEMA public;
DROP SCHEMA elsewhere;

BEGIN;
SET LOCAL client_min_messages = warning;
CREATE TEMP TABLE were_members AS SELECT classid, objid FROM members;
DROP EXTENSION bq CASCADE;
SELECT count(*) > 0 AS were, count(d.objid) AS left_over
FROM were_members AS m LEFT JOIN pg_depend AS d USING (classid, objid);
ROLLBACK;
