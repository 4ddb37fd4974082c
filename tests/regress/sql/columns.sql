-- bq_columns: who may see and change which rows, and what a row may hold.

SET client_min_messages = warning;
DROP ROLE IF EXISTS regress_bq_owner, regress_bq_reader, regress_bq_other;
RESET client_min_messages;
CREATE ROLE regress_bq_owner;
CREATE ROLE regress_bq_reader;
CREATE ROLE regress_bq_other;
CREATE TABLE items (id int, code bqvec(3));
CREATE TABLE secrets (id int, code bqvec(3));
CREATE TABLE dropped (id int, code bqvec(3));
ALTER TABLE items OWNER TO regress_bq_owner;
GRANT SELECT ON items TO regress_bq_reader;
INSERT INTO bq_columns (table_name, code_column, dim, metric, transform) VALUES
	('secrets', 'code', 3, 'l2', 0), ('dropped', 'code', 3, 'cosine', 0);
DROP TABLE dropped;

-- the owner of a table looks after its rows, and those alone
SET ROLE regress_bq_owner;
INSERT INTO bq_columns (table_name, code_column, dim, metric, transform, statistics)
SELECT 'items', 'code', 3, 'cosine', 7, bq_statistics('{1,2,3}'::real[]);
UPDATE bq_columns SET statistics = bq_merge(statistics, (SELECT bq_statistics('{3,2,1}'::real[])));
SELECT table_name, code_column, transform, statistics FROM bq_columns;
SELECT statement, fails(statement) FROM (VALUES
	('INSERT INTO bq_columns (table_name, code_column, dim, metric, transform) VALUES (''secrets'', ''c2'', 3, ''l2'', 0)'),
	('UPDATE bq_columns SET table_name = ''secrets''')) AS s(statement);
WITH d AS (DELETE FROM bq_columns WHERE code_column <> 'code' OR metric = 'l2' RETURNING 1)
SELECT count(*) AS deleted FROM d;

-- a reader reads
SET ROLE regress_bq_reader;
SELECT table_name, dim, metric, transform, (statistics).mean FROM bq_columns;
WITH u AS (UPDATE bq_columns SET dim = 4 RETURNING 1) SELECT count(*) AS updated FROM u;
WITH d AS (DELETE FROM bq_columns RETURNING 1) SELECT count(*) AS deleted FROM d;
SELECT fails('INSERT INTO bq_columns (table_name, code_column, dim, metric, transform) VALUES (''items'', ''c2'', 3, ''l2'', 0)');

-- anyone else sees nothing
SET ROLE regress_bq_other;
SELECT count(*) FROM bq_columns;
SELECT fails('TRUNCATE bq_columns');
RESET ROLE;

-- whoever may insert into the table may decide its transform, once, and add statistics
GRANT INSERT ON items TO regress_bq_other;
UPDATE bq_columns SET statistics = NULL WHERE table_name = 'items'::regclass;
-- (no function runs on behalf of the owner of bq_columns but that of the extension)
CREATE FUNCTION bq_merge(text, bq_statistics) RETURNS bq_statistics LANGUAGE plpgsql
	AS $$ BEGIN RAISE 'runs as %', current_user; END $$;
SET ROLE regress_bq_other;
SELECT bq_decide('items', 'code', 5, bq_statistics(v), 0.5, 0.75, 'tried') AS decided,
	bq_decide('items', 'code', 6, bq_statistics(v), 0.5, 0.75, 'tried again') AS still
FROM (VALUES ('{1,2,3}'::real[]), ('{3,2,1}')) AS s(v);
SELECT bq_add_statistics('items', 'code', (SELECT bq_statistics('{1,2,3}'::real[])));
SELECT bq_add_statistics('items', 'code', (SELECT bq_statistics('{3,4,5}'::real[])));
SELECT count(*) FROM bq_columns;
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

-- what a row may hold
SELECT statement, fails('UPDATE bq_columns SET ' || statement) FROM (VALUES
	('dim = 0'), ('dim = 16001'), ('metric = ''manhattan'''), ('transform = -1'), ('transform = 65536'),
	('metric = NULL')) AS s(statement);
SELECT fails('INSERT INTO bq_columns (table_name, code_column, dim, metric, transform) VALUES (''items'', ''code'', 3, ''l2'', 0)');

-- pg_dump takes the rows, but those of tables that are gone
SELECT c.condition FROM pg_extension, unnest(extconfig, extcondition) AS c(table_name, condition)
WHERE extname = 'bq' AND c.table_name = 'bq_columns'::regclass;
SELECT count(*) AS rows, count(*) FILTER (WHERE EXISTS (SELECT FROM pg_class AS c WHERE c.oid = table_name)) AS dumped
FROM bq_columns;

DELETE FROM bq_columns;

-- statistics of a sample: of stored vectors, scaled if the metric is cosine
CREATE TABLE "Sampled" (id int, "V" real[], code bqvec(3), code2 bqvec(3));
INSERT INTO "Sampled" SELECT i, random_vector(3, i) FROM generate_series(1, 3000) AS i;
INSERT INTO bq_columns (table_name, code_column, source_column, dim, metric, transform)
VALUES ('"Sampled"', 'code', 'V', 3, 'l2', 0);
SELECT bq_sample_statistics('"Sampled"') = bq_statistics("V") AS all_rows FROM "Sampled";
UPDATE bq_columns SET metric = 'cosine' WHERE code_column = 'code';
SELECT bq_sample_statistics('"Sampled"', 'code') = bq_statistics("V", true) AS scaled FROM "Sampled";
ANALYZE "Sampled";
SELECT (bq_sample_statistics('"Sampled"', sample => 1000)).count BETWEEN 1 AND 2999 AS some_rows;
CREATE TABLE parts (id int, v real[], code bqvec(3)) PARTITION BY RANGE (id);
CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (1500);
CREATE TABLE parts_2 PARTITION OF parts FOR VALUES FROM (1500) TO (3001);
INSERT INTO parts SELECT id, "V" FROM "Sampled";
ANALYZE parts;
INSERT INTO bq_columns (table_name, code_column, source_column, dim, metric, transform)
VALUES ('parts', 'code', 'v', 3, 'l2', 0);
SELECT (bq_sample_statistics('parts', sample => 1000)).count BETWEEN 1 AND 2999 AS some_rows;
-- (a table that is gone)
SELECT 'parts'::regclass::oid AS parts \gset
DROP TABLE parts;
SELECT fails(format('SELECT bq_sample_statistics(%L)', :parts)) LIKE '%could not open relation%' AS gone;
GRANT SELECT (id, code) ON "Sampled" TO regress_bq_reader;
SET ROLE regress_bq_reader;
SELECT fails('SELECT bq_sample_statistics(''"Sampled"'')');
RESET ROLE;
INSERT INTO bq_columns (table_name, code_column, dim, metric, transform) VALUES ('"Sampled"', 'code2', 3, 'l2', 0);
SELECT statement, fails('SELECT ' || statement) FROM (VALUES
	('bq_sample_statistics(''"Sampled"'')'), ('bq_sample_statistics(''"Sampled"'', ''code2'')'),
	('bq_sample_statistics(''items'')'), ('bq_sample_statistics(''"Sampled"'', ''code'', 0)')) AS s(statement);
TRUNCATE "Sampled";
SELECT bq_sample_statistics('"Sampled"', 'code') IS NULL AS of_no_rows;

DELETE FROM bq_columns;
DROP TABLE items, secrets, "Sampled";
DROP ROLE regress_bq_owner, regress_bq_reader, regress_bq_other;
