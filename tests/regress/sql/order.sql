-- Equality, order and hash: for DISTINCT, GROUP BY, joins, UNIQUE.

SELECT a::text, b::text, a < b AS lt, a <= b AS le, a = b AS eq, a <> b AS ne, a >= b AS ge, a > b AS gt,
	sign(bqvec_cmp(a, b)) AS cmp
FROM (VALUES
	('0:1:01'::bqvec, '0:1:01'::bqvec),
	('0:1:33', '0:1:000'),
	('0:1:33', '1:1:00'),
	('0:1:33', '0:1.5:00'),
	('0:1:12', '0:1:21'),
	('0:1:12', '0:1:11'),
	('0:1:12', '0:1:02')) AS p(a, b);

-- The order is that of the wire's bytes; equal codes have equal bytes and hashes.
CREATE TABLE codes AS
	SELECT bq_encode(random_vector(1 + i % 20, i % 100), i % 3) AS code FROM generate_series(1, 1000) AS i;
SELECT count(*) AS misordered FROM codes AS a, codes AS b
WHERE (a.code < b.code) <> (bqvec_send(a.code) < bqvec_send(b.code)) OR
	(a.code = b.code) <> (bqvec_send(a.code) = bqvec_send(b.code)) OR
	(a.code = b.code AND bqvec_hash(a.code) <> bqvec_hash(b.code)) OR
	(a.code = b.code AND bqvec_hash_extended(a.code, 7) <> bqvec_hash_extended(b.code, 7));
SELECT count(DISTINCT bqvec_hash(code)) > 0.99 * count(DISTINCT code) AS hashes_differ,
	count(*) FILTER (WHERE bqvec_hash_extended(code, 0) & 4294967295 <> bqvec_hash(code)::bigint & 4294967295)
		AS low_halves_differ
FROM codes;

-- DISTINCT, GROUP BY and joins, by sorting and by hashing
SELECT count(DISTINCT code), count(DISTINCT bqvec_send(code)) AS expected FROM codes;
SET enable_sort = off;
EXPLAIN (COSTS OFF) SELECT code, count(*) FROM codes GROUP BY code;
SELECT count(*) FROM (SELECT code, count(*) FROM codes GROUP BY code) AS g;
RESET enable_sort;
SET enable_hashagg = off;
EXPLAIN (COSTS OFF) SELECT DISTINCT code FROM codes;
SELECT count(*) FROM (SELECT DISTINCT code FROM codes) AS d;
RESET enable_hashagg;
SET enable_nestloop = off;
SET enable_mergejoin = off;
EXPLAIN (COSTS OFF) SELECT count(*) FROM codes AS a JOIN codes AS b USING (code);
SELECT count(*) FROM codes AS a JOIN codes AS b USING (code);
RESET enable_mergejoin;
SET enable_hashjoin = off;
EXPLAIN (COSTS OFF) SELECT count(*) FROM codes AS a JOIN codes AS b USING (code);
SELECT count(*) FROM codes AS a JOIN codes AS b USING (code);
RESET enable_hashjoin;
RESET enable_nestloop;

-- Indexes
CREATE TABLE once AS SELECT DISTINCT code FROM codes;
CREATE UNIQUE INDEX once_code ON once (code);
SELECT fails('INSERT INTO once SELECT code FROM once ORDER BY code LIMIT 1');
CREATE INDEX once_hash ON once USING hash (code);
SET enable_seqscan = off;
SET enable_bitmapscan = off;
EXPLAIN (COSTS OFF) SELECT * FROM once WHERE code < '1:1:0';
SELECT count(*) FROM once WHERE code < '0:1:00000';
SET enable_indexscan = on;
DROP INDEX once_code;
EXPLAIN (COSTS OFF) SELECT * FROM once WHERE code = '0:1:3';
SELECT count(*) FROM once AS a WHERE EXISTS (SELECT FROM once AS b WHERE b.code = a.code);
RESET enable_seqscan;
RESET enable_bitmapscan;
DROP TABLE codes, once;
