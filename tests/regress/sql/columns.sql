-- bq_columns: who may see and change which rows, and what a row may hold.

SET client_min_messages = warning;
DROP ROLE IF EXISTS regress_bq_owner, regress_bq_reader, regress_bq_other;
RESET client_min_messages;
CREATE ROLE regress_bq_owner;
CREATE ROLE regress_bq_reader;
CREATE ROLE regress_bq_other;
CREATE FUNCTION fails_directly() RETURNS TABLE (statement text, failure text) LANGUAGE sql AS $$
	SELECT s.statement, fails(s.statement) FROM (VALUES
		('UPDATE bq_columns SET transform = 9'), ('DELETE FROM bq_columns'),
		('INSERT INTO bq_columns (code_column, dim, metric, transform) VALUES (''c2'', 3, ''l2'', 0)'),
		('SELECT 1 FROM bq_columns FOR UPDATE'),
		('LOCK TABLE bq_columns IN ACCESS EXCLUSIVE MODE'), ('LOCK TABLE bq_columns IN ROW EXCLUSIVE MODE'),
		('SELECT 1 FROM bq_column_data'), ('DELETE FROM bq_column_data'), ('TRUNCATE bq_column_data'),
		('LOCK TABLE bq_column_data IN ACCESS SHARE MODE'),
		('INSERT INTO bq_loads SELECT oid, ''items'', ''forged'', 0, 1, ''print'', 1 FROM pg_roles LIMIT 1'),
		('DELETE FROM bq_loads'), ('UPDATE bq_loads SET batch = 9'), ('SELECT 1 FROM bq_loads FOR UPDATE'),
		('LOCK TABLE bq_loads IN ROW EXCLUSIVE MODE')) AS s(statement)
$$;
CREATE TABLE items (id int, code bqvec(3));
CREATE TABLE secrets (id int, code bqvec(3));
CREATE TABLE dropped (id int, code bqvec(3));
ALTER TABLE items OWNER TO regress_bq_owner;
GRANT SELECT ON items TO regress_bq_reader;
SELECT bq_register_column('secrets', 'code', NULL, 3, 'l2', 0);
SELECT bq_register_column('dropped', 'code', NULL, 3, 'cosine', 0);
DROP TABLE dropped;

-- the owner of all this sees rows of tables that are gone, until another column is registered
SELECT count(*) FROM bq_columns;

-- the owner of a table looks after its rows, and those alone, by functions
SET ROLE regress_bq_owner;
SELECT bq_register_column('items', 'code', NULL, 3, 'cosine', 7, 'known');
SELECT table_name, code_column, source_column, dim, metric, transform, reason, decided_count,
	decided_at IS NOT NULL AS decided FROM bq_columns;
SELECT bq_register_column('items', 'c2', 'v', 3, 'l2');
SELECT bq_rename_column('items', 'c2', 'code2'), bq_rename_column('items', 'v', 'embedding');
SELECT bq_set_next_column('items', 'code2', 'code_next', 9);
SELECT code_column, source_column, transform, decided_at, next_column, next_transform
FROM bq_columns WHERE code_column = 'code2';
SELECT bq_decide_again('items', 'code2', 9, NULL, 0.5, 0.75, 'given');
SELECT transform, decided_count, f_axis, f_rotate, reason, decided_at IS NOT NULL AS decided, next_column, next_transform
FROM bq_columns WHERE code_column = 'code2';
SELECT bq_decide_again('items', 'code2', 8, bq_statistics('{1,2,3}'::real[]), 0.5, 0.75, 'measured');
SELECT transform, decided_count, decided_statistics FROM bq_columns WHERE code_column = 'code2';
SELECT bq_set_next_column('items', 'code2', 'code_next', 9), bq_set_next_column('items', 'code2', NULL, NULL);
SELECT next_column, next_transform FROM bq_columns WHERE code_column = 'code2';
SELECT bq_forget_column('items', 'code2');
SELECT statement, fails('SELECT ' || statement) FROM (VALUES
	('bq_register_column(''secrets'', ''c2'', NULL, 3, ''l2'', 0)'),
	('bq_rename_column(''secrets'', ''code'', ''c2'')'),
	('bq_set_next_column(''secrets'', ''code'', ''c2'', 9)'),
	('bq_decide_again(''secrets'', ''code'', 9, NULL, 0, 0, ''why'')'),
	('bq_forget_column(''secrets'', ''code'')'),
	('bq_forget_column(''items'', ''code2'')'),
	('bq_set_next_column(''items'', ''code2'', ''c3'', 1)'),
	('bq_set_next_column(''items'', NULL, ''c3'', 1)'),
	('bq_decide_again(''items'', ''code'', NULL, NULL, 0, 0, ''why'')'),
	('bq_decide_again(''items'', ''code'', 9, (SELECT bq_statistics(''{1,2}''::real[])), 0, 0, ''why'')')) AS s(statement);

-- what a row may hold
SELECT statement, fails('SELECT bq_register_column(''items'', ' || statement || ')') FROM (VALUES
	('''c2'', NULL, 0, ''l2'''), ('''c2'', NULL, 16001, ''l2'''), ('''c2'', NULL, 3, ''manhattan'''),
	('''c2'', NULL, 3, ''l2'', -1'), ('''c2'', NULL, 3, ''l2'', 65536'), ('''c2'', NULL, 3, NULL'),
	('''code'', NULL, 3, ''l2''')) AS s(statement);

-- nobody else writes, or locks what all need
SELECT * FROM fails_directly();

-- a reader reads
SET ROLE regress_bq_reader;
SELECT table_name, dim, metric, transform, reason FROM bq_columns;

-- anyone else sees nothing
SET ROLE regress_bq_other;
SELECT count(*) FROM bq_columns;
SELECT count(*) FROM fails_directly() WHERE failure LIKE '42501: permission denied%';
RESET ROLE;
DROP FUNCTION fails_directly();

SELECT table_name, code_column FROM bq_column_data;

-- loads are of their loaders
GRANT INSERT ON items TO regress_bq_other, regress_bq_reader;
SET ROLE regress_bq_other;
SELECT bq_record_load('items', 'books.npy', 0, 1000, 'print', 999), bq_record_load('items', 'books.npy', 1, 1000, 'print', 5);
SELECT fails('SELECT bq_record_load(''items'', ''books.npy'', 1, 1000, ''print'', 5)');
SELECT fails('SELECT bq_record_load(''secrets'', ''books.npy'', 1, 1000, ''print'', 5)');
SELECT table_name, source, batch, batch_rows, fingerprint, written FROM bq_loads;
SET ROLE regress_bq_owner;
SELECT count(*) FROM bq_loads;
SELECT bq_forget_load('items', 'books.npy');
SELECT bq_record_load('items', 'books.npy', 1, 1000, 'print', 5);
SET ROLE regress_bq_other;
SELECT count(*) FROM bq_loads;
SELECT bq_forget_load('items', 'books.npy');
RESET ROLE;
SELECT pg_get_userbyid(loader) AS loader, count(*) FROM bq_loads GROUP BY 1;
REVOKE INSERT ON items FROM regress_bq_reader;

-- whoever may insert into the table may decide its transform, once, and add statistics
SELECT bq_forget_column('items', 'code'), bq_register_column('items', 'code', NULL, 3, 'cosine');
-- (no function runs on behalf of the owner of bq_columns but that of the extension)
CREATE FUNCTION bq_merge(text, bq_statistics) RETURNS bq_statistics LANGUAGE plpgsql
	AS $$ BEGIN RAISE 'runs as %', current_user; END $$;
SET ROLE regress_bq_other;
SELECT bq_decide('items', 'code', 5, bq_statistics(v), 0.5, 0.75, 'tried') AS decided,
	bq_decide('items', 'code', 6, bq_statistics(v), 0.5, 0.75, 'tried again') AS still
FROM (VALUES ('{1,2,3}'::real[]), ('{3,2,1}')) AS s(v);
SELECT bq_add_statistics('items', 'code', (SELECT bq_statistics('{1,2,3}'::real[])));
SELECT bq_add_statistics('items', 'code', (SELECT bq_statistics('{3,4,5}'::real[])));
-- (facts, but nothing that was learned from rows)
SELECT table_name, transform, decided_at IS NOT NULL AS decided,
	num_nulls(statistics, decided_statistics, f_axis, f_rotate, reason, decided_count) FROM bq_columns;
SELECT statement, fails('SELECT ' || statement) FROM (VALUES
	('bq_add_statistics(''secrets'', ''code'', (SELECT bq_statistics(''{1,2,3}''::real[])))'),
	('bq_decide(''secrets'', ''code'', 1, (SELECT bq_statistics(''{1,2,3}''::real[])), 0, 0, ''why'')'),
	('bq_add_statistics(''items'', ''code'', (SELECT bq_statistics(''{1,2}''::real[])))'),
	('bq_add_statistics(''items'', ''other'', (SELECT bq_statistics(''{1,2,3}''::real[])))'),
	('bq_decide(''items'', ''other'', 1, (SELECT bq_statistics(''{1,2,3}''::real[])), 0, 0, ''why'')'),
	('bq_decide(''items'', ''code'', NULL, (SELECT bq_statistics(''{1,2,3}''::real[])), 0, 0, ''why'')')) AS s(statement);
RESET ROLE;
DROP FUNCTION bq_merge(text, bq_statistics);
SELECT transform, decided_count, f_axis, f_rotate, reason, (decided_statistics).mean, (statistics).count,
	(statistics).mean AS mean_now FROM bq_columns WHERE table_name = 'items'::regclass;

-- statistics as rows, for those who may read the table
SET ROLE regress_bq_reader;
SELECT code_column, coordinate, mean, stddev, positive_share FROM bq_column_statistics('items');
SELECT count(*) FROM bq_column_statistics('items', 'code');
SELECT count(*) FROM bq_column_statistics('items', 'other');
SET ROLE regress_bq_other;
SELECT count(*) FROM bq_column_statistics('items');
RESET ROLE;

-- who may read some rows only learns nothing of the others
ALTER TABLE items ENABLE ROW LEVEL SECURITY;
CREATE POLICY none ON items USING (false);
SET ROLE regress_bq_reader;
SELECT table_name, transform, num_nulls(statistics, decided_statistics, f_axis, f_rotate, reason, decided_count)
FROM bq_columns;
SELECT count(*) FROM bq_column_statistics('items');
SET ROLE regress_bq_owner;
SELECT table_name, transform, num_nulls(statistics, decided_statistics, f_axis, f_rotate, reason, decided_count)
FROM bq_columns;
RESET ROLE;
ALTER TABLE items DISABLE ROW LEVEL SECURITY;

-- pg_dump takes the rows, but those of tables that are gone or temporary; a name that nothing has makes none
SELECT c.condition FROM pg_extension, unnest(extconfig, extcondition) AS c(table_name, condition)
WHERE extname = 'bq' AND c.table_name = 'bq_column_data'::regclass;
COPY bq_column_data (table_name, code_column, dim, metric, transform) FROM stdin;
public.secrets	restored	3	l2	5
public.excluded	code	3	l2	5
"No schema".excluded	code	3	l2	5
4294967295	code	3	l2	5
\.
SELECT table_name, code_column, transform FROM bq_column_data WHERE transform = 5;
SELECT '"Odd ""name"""'::bq_table::oid, fails('SELECT ''a.b.c.d''::bq_table');

DELETE FROM bq_column_data;

-- statistics of a sample: of stored vectors, scaled if the metric is cosine
CREATE TABLE "Sampled" (id int, "V" real[], code bqvec(3), code2 bqvec(3));
INSERT INTO "Sampled" SELECT i, random_vector(3, i) FROM generate_series(1, 3000) AS i;
SELECT bq_register_column('"Sampled"', 'code', 'V', 3, 'l2');
SELECT bq_sample_statistics('"Sampled"') = bq_statistics("V") AS all_rows FROM "Sampled";
UPDATE bq_column_data SET metric = 'cosine' WHERE code_column = 'code';
SELECT bq_sample_statistics('"Sampled"', 'code') = bq_statistics("V", true) AS scaled FROM "Sampled";
ANALYZE "Sampled";
SELECT (bq_sample_statistics('"Sampled"', sample => 1000)).count BETWEEN 1 AND 2999 AS some_rows;
CREATE TABLE parts (id int, v real[], code bqvec(3)) PARTITION BY RANGE (id);
CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (1500);
CREATE TABLE parts_2 PARTITION OF parts FOR VALUES FROM (1500) TO (3001);
INSERT INTO parts SELECT id, "V" FROM "Sampled";
ANALYZE parts;
SELECT bq_register_column('parts', 'code', 'v', 3, 'l2');
SELECT (bq_sample_statistics('parts', sample => 1000)).count BETWEEN 1 AND 2999 AS some_rows;
-- (a table that is gone)
SELECT 'parts'::regclass::oid AS parts \gset
DROP TABLE parts;
SELECT fails(format('SELECT bq_sample_statistics(%L)', :parts)) LIKE '%relation with OID % does not exist%' AS gone;
GRANT SELECT (id, code) ON "Sampled" TO regress_bq_reader;
SET ROLE regress_bq_reader;
SELECT fails('SELECT bq_sample_statistics(''"Sampled"'')');
RESET ROLE;
GRANT SELECT ON "Sampled" TO regress_bq_reader;
SET ROLE regress_bq_reader;
SELECT (bq_sample_statistics('"Sampled"')).count;
RESET ROLE;
ALTER TABLE "Sampled" ENABLE ROW LEVEL SECURITY;
CREATE POLICY few ON "Sampled" USING (id < 10);
SET ROLE regress_bq_reader;
SELECT fails('SELECT bq_sample_statistics(''"Sampled"'')');
RESET ROLE;
ALTER TABLE "Sampled" DISABLE ROW LEVEL SECURITY;
-- code of the owner of a table runs with no more privileges than the owner has, whoever calls
CREATE TYPE spied AS (v real[]);
CREATE FUNCTION spy(spied) RETURNS real[] LANGUAGE plpgsql AS $$
BEGIN
	RAISE 'cast runs as %', current_user;
END
$$;
CREATE CAST (spied AS real[]) WITH FUNCTION spy(spied);
CREATE TABLE trap (v spied, code bqvec(3));
INSERT INTO trap VALUES (ROW('{1,2,3}'));
ALTER TABLE trap OWNER TO regress_bq_owner;
SELECT bq_register_column('trap', 'code', 'v', 3, 'l2');
SELECT fails('SELECT bq_sample_statistics(''trap'')');
SELECT current_user = session_user AS back;
DROP TABLE trap;
DROP CAST (spied AS real[]);
DROP FUNCTION spy(spied);
DROP TYPE spied;
SELECT bq_register_column('"Sampled"', 'code2', NULL, 3, 'l2');
SELECT statement, fails('SELECT ' || statement) FROM (VALUES
	('bq_sample_statistics(''"Sampled"'')'), ('bq_sample_statistics(''"Sampled"'', ''code2'')'),
	('bq_sample_statistics(''items'')'), ('bq_sample_statistics(''"Sampled"'', ''code'', 0)')) AS s(statement);
TRUNCATE "Sampled";
SELECT bq_sample_statistics('"Sampled"', 'code') IS NULL AS of_no_rows;

DELETE FROM bq_column_data;
DELETE FROM bq_loads;
DROP TABLE items, secrets, "Sampled";
DROP ROLE regress_bq_owner, regress_bq_reader, regress_bq_other;
