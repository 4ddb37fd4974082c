-- bqquery: text, binary, COPY, and what they reject.

SELECT '0:[1,-2.5,3e-30]'::bqquery;
SELECT ' 65535:[ 1, 2 ,3] '::bqquery;
SELECT bq_query('{1,2,3}'), bq_query('{1,2,3}', 0), bq_query('{0,0}', 9);
SELECT vector_dims(bq_query('{3,4}')), vector_norm(bq_query('{3,4}')), transform(bq_query('{3,4}'));
SELECT vector_dims(bq_query('{3,4}', 7)), round(vector_norm(bq_query('{3,4}', 7))::numeric, 6),
	transform(bq_query('{3,4}', 7));

-- The wire format: dim, transform, values.
SELECT bqquery_send('258:[1.5,-0,0]');

-- Text and binary give back what they were given, the norm (not part of either) included.
CREATE TABLE queries AS
	SELECT dim, transform, bq_query(random_vector(dim, dim), transform) AS query
	FROM generate_series(1, 130) AS dim, (VALUES (0), (1), (65535)) AS t(transform);
INSERT INTO queries
	SELECT dim, 3, bq_query(random_vector(dim, dim), 3)
	FROM (VALUES (384), (1000), (1536), (16000)) AS d(dim);
INSERT INTO queries VALUES (NULL, NULL, NULL), (3, 2, bq_query('{1e-45,0,-1.2e36}', 2));
SELECT count(*) FROM queries;
SELECT count(*) AS changed_by_text FROM queries
WHERE query::text::bqquery::text <> query::text OR
	bqquery_send(query::text::bqquery) <> bqquery_send(query) OR
	vector_norm(query::text::bqquery) <> vector_norm(query);
SELECT count(*) AS misread FROM queries
WHERE vector_dims(query) <> dim OR transform(query) <> queries.transform OR
	length(bqquery_send(query)) <> 4 + 4 * dim;

SELECT current_setting('data_directory') || '/bq_regress' AS file \gset
CREATE TABLE copied (dim int, transform int, query bqquery);
COPY queries TO :'file' (FORMAT binary);
COPY copied FROM :'file' (FORMAT binary);
SELECT count(*), count(*) FILTER (WHERE bqquery_send(c.query) = bqquery_send(q.query) AND
	vector_norm(c.query) = vector_norm(q.query)) AS same
FROM copied AS c JOIN queries AS q USING (dim, transform);
DROP TABLE copied, queries;

-- Rotation keeps lengths.
SELECT max(abs(vector_norm(bq_query(x, 5)) / vector_norm(bq_query(x)) - 1)) < 1e-6 AS kept
FROM (SELECT random_vector(dim, 1) AS x FROM generate_series(1, 130) AS dim) AS r;

-- Text that is rejected
SELECT input, fails(format('SELECT %L::bqquery', input)) FROM (VALUES
	(''), ('0'), ('0:'), ('0:1'), ('0:['), ('0:[]'), ('0:[1'), ('0:[1,'), ('0:[1,]'), ('0:[,1]'),
	('0:[1 2]'), ('0:[1]2'), ('0:[1],'), ('[1,2]'), ('x:[1]'), ('-1:[1]'), ('65536:[1]'),
	('0:[nan]'), ('0:[1,inf]'), ('0:[1e39]'), ('0:[1e-60]'), ('0:[3e36]'),
	('0:[2e36,2e36]'), ('{1,2}')) AS i(input);
SELECT fails(format('SELECT %L::bqquery', '0:[' || repeat('1,', 16000) || '1]'));

-- Bytes that are rejected: COPY a bytea, read it as a bqquery.
CREATE TABLE received (query bqquery);
CREATE FUNCTION receive(bytes bytea, file text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE format('COPY (SELECT %L::bytea) TO %L (FORMAT binary)', bytes, file);
	RETURN fails(format('COPY received FROM %L (FORMAT binary)', file));
END
$$;
SELECT what, receive(bytes, :'file') FROM (VALUES
	('good', '\x00020102 3fc00000 c0000000'::bytea),
	('good, zero', '\x00010000 80000000'),
	('empty', '\x'),
	('dim only', '\x0002'),
	('three bytes', '\x000200'),
	('header only', '\x00020000'),
	('one value', '\x00020000 3fc00000'),
	('one and a half', '\x00020000 3fc00000 3fc0'),
	('a byte too many', '\x00020000 3fc00000 3fc00000 00'),
	('no dimensions', '\x00000000'),
	('16001 dimensions', '\x3e810000 3fc00000'),
	('NaN', '\x00020000 3fc00000 7fc00000'),
	('signalling NaN', '\x00020000 3fc00000 ff800001'),
	('infinite', '\x00020000 ff800000 3fc00000'),
	('norm too large', '\x00020000 7c000000 7c000000')) AS b(what, bytes);
SELECT * FROM received;
COPY (SELECT) TO PROGRAM 'cat > /dev/null && rm bq_regress';
DROP FUNCTION receive;
DROP TABLE received;

-- What a damaged page may hold: another length than that of its dimensions
CREATE CAST (bytea AS bqvec) WITHOUT FUNCTION;
CREATE CAST (bytea AS bqquery) WITHOUT FUNCTION;
CREATE TABLE damaged (code bqvec(3), code_of bytea, query_of bytea);
CREATE INDEX damaged_code ON damaged USING bq (code);
INSERT INTO damaged VALUES (bq_encode('{1,2,3}'), '\x0300000000000000', '\x0300000000000000');
SELECT statement, fails('SELECT ' || statement || ' FROM damaged') FROM (VALUES
	('code_of::bqvec::text'), ('code <~> code_of::bqvec'), ('query_of::bqquery::text'), ('vector_norm(query_of::bqquery)'),
	('bqquery_send(query_of::bqquery)'), ('code <=> query_of::bqquery')) AS s(statement);
SET enable_seqscan = off;
SET enable_sort = off;
SELECT fails('SELECT code FROM damaged ORDER BY code <-> ''\x0300000000000000''::bytea::bqquery');
SELECT fails('SELECT code FROM damaged ORDER BY code <-> (SELECT query_of::bqquery FROM damaged)');
RESET enable_seqscan;
RESET enable_sort;
DROP TABLE damaged;
DROP CAST (bytea AS bqvec);
DROP CAST (bytea AS bqquery);
