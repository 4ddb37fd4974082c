-- bq_encode, quiver_encode, bq_decode, casts; in a generated column and an index.

SELECT bq_encode('{1,-2,3}'), bq_encode('{1,-2,3}', 0), bq_encode('{1,-2,3}', transform => 1);
SELECT bq_encode(ARRAY[0.5, -0.5]::real[]), bq_encode('{0,0,0}'), bq_encode('{0,0,0}', 5),
	bq_encode('{1e-45}'), bq_encode('{-2.6e36}');
SELECT bq_encode(NULL), bq_encode('{1}', NULL), bq_decode(NULL), quiver_encode(NULL);
-- A lower bound other than 1 is no matter.
SELECT bq_encode('[5:7]={1,-2,3}');

-- By the definition: x > 0, |x| > 0.9816 rms(x).
CREATE FUNCTION expected_levels(x real[], threshold float8) RETURNS text LANGUAGE sql AS $$
	SELECT string_agg(CASE WHEN v > 0 THEN CASE WHEN v > threshold THEN '3' ELSE '2' END
		ELSE CASE WHEN -v > threshold THEN '0' ELSE '1' END END, '' ORDER BY i)
	FROM unnest(x) WITH ORDINALITY AS u(v, i)
$$;
CREATE TABLE vectors AS
	SELECT dim, random_vector(dim, dim) AS x FROM generate_series(1, 130) AS dim
	UNION ALL
	SELECT dim, random_vector(dim, dim)
	FROM (VALUES (384), (768), (1000), (1536), (3072), (16000)) AS d(dim);
SELECT count(*), count(*) FILTER (WHERE split_part(bq_encode(x)::text, ':', 3) =
	expected_levels(x, (SELECT 0.9816 * sqrt(avg(v::float8 * v)) FROM unnest(x) AS v))) AS as_defined
FROM vectors;
-- QuIVer cuts at mean |x|.
SELECT count(*), count(*) FILTER (WHERE split_part(quiver_encode(x)::text, ':', 3) =
	expected_levels(x, (SELECT avg(abs(v::float8)) FROM unnest(x) AS v))) AS as_defined
FROM vectors;
SELECT max(abs(vector_norm(bq_encode(x)) / (SELECT sqrt(sum(v::float8 * v)) FROM unnest(x) AS v) - 1))
	< 1e-7 AS norm_kept
FROM vectors;

-- A code stands for level values 0.4528 and 1.510, scaled to the norm.
SELECT max(abs(d.v / (vector_norm(code) * e.value / scale) - 1)) < 1e-6 AS as_defined
FROM (SELECT bq_encode(x) AS code FROM vectors WHERE dim IN (1, 7, 130, 384)) AS c,
	LATERAL (SELECT sqrt(sum(CASE WHEN level IN (0, 3) THEN 1.510 ^ 2 ELSE 0.4528 ^ 2 END)) AS scale
		FROM levels(code)) AS s,
	LATERAL unnest(bq_decode(code)) WITH ORDINALITY AS d(v, i)
		JOIN LATERAL (SELECT l.i, (ARRAY[-1.510, -0.4528, 0.4528, 1.510])[level + 1] AS value
			FROM levels(code) AS l) AS e USING (i);

-- Decoding turns back: a rotated code still stands for something near its vector.
SELECT transform, min(cosine) > 0.85 AS near, avg(cosine) > 0.93 AS nearer
FROM (VALUES (0), (1), (2), (65535)) AS t(transform), vectors,
	LATERAL (SELECT sum(a::float8 * b) / sqrt(sum(a::float8 * a) * sum(b::float8 * b)) AS cosine
		FROM unnest(x, bq_decode(bq_encode(x, transform))) AS u(a, b)) AS c
WHERE dim >= 64
GROUP BY transform ORDER BY transform;

-- Casts
SELECT ARRAY[1, -2, 3]::real[]::bqvec, bq_encode('{1,-2,3}')::real[] = bq_decode(bq_encode('{1,-2,3}')) AS same;
SELECT fails('SELECT ARRAY[1, 2]::real[]::bqvec(3)');
-- not implicit: a query against an array is most likely a mistake
SELECT fails('SELECT bq_encode(''{1,2}'') <=> ''{1,2}''::real[]');

-- In a generated column, a default, a check and an index
CREATE TABLE items (
	id int PRIMARY KEY,
	x real[],
	code bqvec(3) GENERATED ALWAYS AS (bq_encode(x, 7)) STORED,
	CHECK (vector_dims(code) = 3)
);
INSERT INTO items VALUES (1, '{1,-2,3}'), (2, NULL), (3, '{0,0,0}');
UPDATE items SET x = '{-1,2,3}' WHERE id = 2;
SELECT id, code, code = bq_encode(x, 7) AS same FROM items ORDER BY id;
CREATE INDEX ON items (bq_encode(x));
SELECT fails('INSERT INTO items VALUES (4, ''{1,2}'')');
DROP TABLE items;

-- What is rejected
SELECT x, fails(format('SELECT bq_encode(%L)', x)) AS bq_encode FROM (VALUES
	('{}'), ('{{1,2},{3,4}}'), ('{1,NULL}'), ('{nan}'), ('{1,inf}'), ('{-inf,inf}'), ('{3e36}'),
	('{3.4e38,3.4e38}')) AS i(x);
SELECT x, fails(format('SELECT bq_query(%L)', x)) AS bq_query FROM (VALUES
	('{}'), ('{{1,2},{3,4}}'), ('{1,NULL}'), ('{nan}'), ('{3e36}')) AS i(x);
SELECT x, fails(format('SELECT quiver_encode(%L)', x)) AS quiver_encode FROM (VALUES
	('{}'), ('{nan}')) AS i(x);
SELECT fails('SELECT bq_encode(array_fill(1::real, ARRAY[16001]))');
SELECT fails('SELECT bq_encode(''{1}'', -1)'), fails('SELECT bq_query(''{1}'', 65536)');
DROP TABLE vectors;
DROP FUNCTION expected_levels;
