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
DROP TABLE items, secrets;
DROP ROLE regress_bq_owner, regress_bq_reader, regress_bq_other;
