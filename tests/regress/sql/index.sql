-- The access method bq: what is refused, what the operator functions say.

CREATE TABLE items (id int PRIMARY KEY, code bqvec(8), other text);
INSERT INTO items SELECT i, bq_encode(random_vector(8, i)) FROM generate_series(1, 500) AS i;
INSERT INTO items VALUES (501, NULL), (502, bq_encode('{0,0,0,0,0,0,0,0}')), (503, bq_encode(random_vector(8, 1)));
CREATE INDEX items_code ON items USING bq (code);

SELECT bq_index_check('items_code'), bq_index_check('items_code', true);
SELECT * FROM bq_index_info('items_code') \gx
SELECT bq_recall('items_code') AS flat_recall, bq_recall('items_code', 10, 600) AS all_rows;

-- A flat index is exact: each order is that of a sequential scan, ties apart.
CREATE FUNCTION same_order(operator text, operand text) RETURNS bool LANGUAGE plpgsql AS $$
DECLARE
	statement text := format('SELECT array_agg(d) FROM (SELECT code %1$s %2$s AS d FROM items
		WHERE code IS NOT NULL ORDER BY code %1$s %2$s) AS s', operator, operand);
	plan text = '';
	line text;
	by_index float8[];
	by_sort float8[];
BEGIN
	SET LOCAL enable_seqscan = off;
	SET LOCAL enable_sort = off;
	FOR line IN EXECUTE 'EXPLAIN (COSTS OFF) ' || statement LOOP
		plan := plan || line;
	END LOOP;
	IF plan NOT LIKE '%Index Scan using items_code%' THEN
		RAISE EXCEPTION 'not by the index: %', plan;
	END IF;
	EXECUTE statement INTO by_index;
	SET LOCAL enable_seqscan = on;
	SET LOCAL enable_sort = on;
	SET LOCAL enable_indexscan = off;
	EXECUTE statement INTO by_sort;
	RESET enable_indexscan;
	RETURN by_index = by_sort AND cardinality(by_index) > 0;
END
$$;
SELECT same_order('<~>', 'bq_encode(random_vector(8, 1000))') AS hamming,
	same_order('<=>', 'bq_query(random_vector(8, 1000))') AS cosine,
	same_order('<#>', 'bq_query(random_vector(8, 1000))') AS inner_product,
	same_order('<->', 'bq_query(random_vector(8, 1000))') AS l2;
SELECT same_order('<~>', 'bq_encode(''{0,0,0,0,0,0,0,0}'')') AS hamming,
	same_order('<=>', 'bq_query(''{0,0,0,0,0,0,0,0}'')') AS cosine,
	same_order('<#>', 'bq_query(''{0,0,0,0,0,0,0,0}'')') AS inner_product,
	same_order('<->', 'bq_query(''{0,0,0,0,0,0,0,0}'')') AS l2;

-- Queries that do not belong
SET enable_seqscan = off;
SELECT fails('SELECT id FROM items ORDER BY code <=> bq_query(''{1,2}'') LIMIT 1');
SELECT fails('SELECT id FROM items ORDER BY code <=> bq_query(''{1,2,3,4,5,6,7,8}'', 1) LIMIT 1');
RESET enable_seqscan;

-- Rows that do not belong
CREATE TABLE mixed (code bqvec(8));
INSERT INTO mixed VALUES (bq_encode(random_vector(8, 1), 0)), (bq_encode(random_vector(8, 1), 1));
SELECT fails('CREATE INDEX ON mixed USING bq (code)');
DELETE FROM mixed WHERE transform(code) = 1;
CREATE INDEX mixed_code ON mixed USING bq (code);
SELECT fails('INSERT INTO mixed VALUES (bq_encode(random_vector(8, 1), 1))');
TRUNCATE mixed;
INSERT INTO mixed VALUES (bq_encode(random_vector(8, 1), 1));
SELECT transform, live_rows FROM bq_index_info('mixed_code');
SELECT bq_index_check('mixed_code', true);

-- VACUUM lets an index without rows take any transform again.
TRUNCATE mixed;
BEGIN;
INSERT INTO mixed VALUES (bq_encode(random_vector(8, 1), 5));
ROLLBACK;
SELECT fails('INSERT INTO mixed VALUES (bq_encode(random_vector(8, 1), 6))');
VACUUM mixed;
SELECT transform, live_rows FROM bq_index_info('mixed_code');
SELECT bq_index_check('mixed_code', true);
INSERT INTO mixed VALUES (bq_encode(random_vector(8, 1), 6));
SELECT transform, live_rows FROM bq_index_info('mixed_code');
VACUUM mixed;
SELECT transform, live_rows FROM bq_index_info('mixed_code');

-- Columns that cannot be indexed
CREATE TABLE loose (code bqvec, large bqvec(8001), largest_possible bqvec(8000), number int);
SELECT fails('CREATE INDEX ON loose USING bq (code)');
SELECT fails('CREATE INDEX ON loose USING bq ((bq_encode(bq_decode(code), 1)))');
SELECT fails('CREATE INDEX ON loose USING bq (large)');
SELECT fails('CREATE INDEX ON loose USING bq (largest_possible)');
SELECT fails('CREATE INDEX ON loose USING bq (number)');
SELECT fails('CREATE INDEX ON loose USING bq (largest_possible, largest_possible)');
SELECT fails('CREATE UNIQUE INDEX ON loose USING bq (largest_possible)');

-- A domain has the dimensions of its type.
CREATE DOMAIN small_code AS bqvec(8);
CREATE DOMAIN named_code AS small_code CHECK (value IS NOT NULL);
CREATE DOMAIN loose_code AS bqvec;
CREATE TABLE domains (code named_code, loose loose_code);
INSERT INTO domains SELECT bq_encode(random_vector(8, i)) FROM generate_series(1, 50) AS i;
CREATE INDEX domains_code ON domains USING bq (code);
INSERT INTO domains SELECT bq_encode(random_vector(8, i)) FROM generate_series(51, 100) AS i;
SELECT dim, live_rows FROM bq_index_info('domains_code');
SELECT bq_index_check('domains_code', true);
SET enable_seqscan = off;
EXPLAIN (COSTS OFF) SELECT code FROM domains ORDER BY code <=> bq_query(random_vector(8, 7)) LIMIT 1;
SELECT code = bq_encode(random_vector(8, 7)) AS nearest FROM domains ORDER BY code <=> bq_query(random_vector(8, 7)) LIMIT 1;
RESET enable_seqscan;
SELECT fails('CREATE INDEX ON domains USING bq (loose)');
DROP TABLE domains;
DROP DOMAIN named_code, small_code, loose_code;

-- A column of given transform: so is its index, whatever an aborted insert did.
CREATE TABLE typed (code bqvec(8,5));
CREATE INDEX typed_code ON typed USING bq (code);
SELECT dim, transform, live_rows FROM bq_index_info('typed_code');
SELECT fails('INSERT INTO typed VALUES (bq_encode(random_vector(8, 1), 6))');
BEGIN;
INSERT INTO typed VALUES (bq_encode(random_vector(8, 1), 5));
ROLLBACK;
INSERT INTO typed VALUES (bq_encode(random_vector(8, 1), 5));
SELECT dim, transform, live_rows FROM bq_index_info('typed_code');
SELECT bq_index_check('typed_code', true);
DROP TABLE typed;

-- A column may lose its dimensions, but not its index.
ALTER TABLE mixed ALTER COLUMN code TYPE bqvec;
SELECT bq_index_check('mixed_code', true);
INSERT INTO mixed VALUES (bq_encode(random_vector(8, 2), 6));
SELECT fails('INSERT INTO mixed VALUES (bq_encode(random_vector(9, 2), 6))');
SELECT live_rows FROM bq_index_info('mixed_code');

-- Options and settings
SELECT fails('CREATE INDEX ON items USING bq (code) WITH (lists = -1)');
SELECT fails('CREATE INDEX ON items USING bq (code) WITH (lists = 65537)');
SELECT fails('CREATE INDEX ON items USING bq (code) WITH (probes = -1)');
SELECT fails('CREATE INDEX ON items USING bq (code) WITH (probes = 65537)');
SELECT fails('CREATE INDEX ON items USING bq (code) WITH (list = 1)');
SELECT fails('SET bq.probes = -1');
SELECT fails('SET bq.probes = 65537');
SELECT fails('SET bq.max_scan_tuples = -2');
SELECT fails('SET bq.unknown = 1');
CREATE INDEX items_lists ON items USING bq (code) WITH (lists = 20, probes = 7);
SELECT lists, probes, live_rows FROM bq_index_info('items_lists');
ALTER INDEX items_lists SET (probes = 100);
SELECT probes FROM bq_index_info('items_lists');
SELECT bq_recall('items_lists') AS all_lists;
SET bq.probes = 1;
SET bq.iterative_scan = off;
SELECT bq_recall('items_lists') < 1 AS one_list;
SELECT bq_recall('items_lists', 5, 600) < 0.5 AS no_more_than_one_list;
RESET bq.probes;
RESET bq.iterative_scan;
-- no more lists than rows
CREATE INDEX items_many ON items USING bq (code) WITH (lists = 65536);
SELECT lists, live_rows FROM bq_index_info('items_many');
SELECT bq_index_check('items_many', true);

-- VACUUM splits the list of what was made on an empty table.
CREATE TABLE grown (code bqvec(8));
CREATE INDEX grown_code ON grown USING bq (code) WITH (lists = 40);
INSERT INTO grown SELECT bq_encode(random_vector(8, i)) FROM generate_series(1, 300) AS i;
SELECT lists, live_rows, build_rows, unused_bytes, hint FROM bq_index_info('grown_code');
VACUUM grown;
SELECT lists, live_rows, build_rows, unused_bytes > 0 AS unused, hint FROM bq_index_info('grown_code');
SELECT bq_index_check('grown_code', true);
INSERT INTO grown SELECT bq_encode(random_vector(8, i)) FROM generate_series(301, 400) AS i;
SELECT bq_index_check('grown_code', true);
SELECT live_rows FROM bq_index_info('grown_code');
DELETE FROM grown WHERE ctid > '(0,9)';
VACUUM grown;
SELECT bq_index_check('grown_code', true);
SELECT live_rows FROM bq_index_info('grown_code');

-- Operator functions: of what, and by whom
SELECT fails('SELECT bq_index_check(''items'')');
SELECT fails('SELECT bq_index_check(''items_pkey'')');
SELECT fails('SELECT bq_index_info(''items_pkey'')');
SELECT fails('SELECT bq_recall(''items_pkey'')');
SELECT fails('SELECT bq_recall(''items_code'', 0)');
SELECT fails('SELECT bq_recall(''items_code'', 10, 0)');
SELECT fails('SELECT bq_search(''items_pkey'', ''{}''::bqvec[])');
SELECT fails('SELECT bq_search(''items_code'', ''{}''::bqvec[])');
SELECT fails('SELECT bq_search(''items_code'', ''{}''::bqvec[], 0)');
CREATE TABLE parts (id int, code bqvec(8)) PARTITION BY RANGE (id);
CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (100);
CREATE INDEX parts_code ON parts USING bq (code);
SELECT fails('SELECT bq_index_check(''parts_code'')');
SELECT bq_index_check('parts_1_code_idx', true), bq_recall('parts_1_code_idx');
SELECT live_rows, transform FROM bq_index_info('parts_1_code_idx');

CREATE ROLE bq_regress_reader;
GRANT USAGE ON SCHEMA public TO bq_regress_reader;
SET ROLE bq_regress_reader;
SELECT fails('SELECT bq_index_check(''public.items_code'')');
SELECT fails('SELECT bq_index_info(''public.items_code'')');
SELECT fails('SELECT bq_recall(''public.items_code'')');
RESET ROLE;
GRANT SELECT ON items TO bq_regress_reader;
SET ROLE bq_regress_reader;
SELECT fails('SELECT bq_index_check(''public.items_code'')');
SELECT live_rows FROM bq_index_info('public.items_code');
SELECT bq_recall('public.items_code');
RESET ROLE;
REVOKE ALL ON items FROM bq_regress_reader;
REVOKE ALL ON SCHEMA public FROM bq_regress_reader;
DROP ROLE bq_regress_reader;

-- Operator classes that are wrong are found so.
CREATE OPERATOR CLASS wrong_ops FOR TYPE bqvec USING bq AS
	OPERATOR 1 <~> (bqvec, bqvec) FOR ORDER BY float_ops,
	OPERATOR 4 < (bqvec, bqvec);
SELECT amvalidate(oid) FROM pg_opclass WHERE opcname = 'wrong_ops';
DROP OPERATOR FAMILY wrong_ops USING bq;

DROP TABLE items, mixed, loose, grown, parts;
DROP FUNCTION same_order;
