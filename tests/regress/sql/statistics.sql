-- bq_statistics: the aggregate, its parallel form, bq_merge.

CREATE TABLE vectors AS
	SELECT i AS id, random_vector(5, i) AS x FROM generate_series(1, 5000) AS i;
INSERT INTO vectors VALUES (0, NULL), (5001, '{0,0,0,0,0}'), (5002, '{1000,-1000,1e-30,0,1}');
ANALYZE vectors;

SELECT bq_statistics(x) FROM vectors WHERE id IN (5001, 5002);
SELECT bq_statistics(x) IS NULL AS of_no_rows FROM vectors WHERE id < 0;
SELECT bq_statistics(x) IS NULL AS of_nulls FROM vectors WHERE id = 0;
SELECT bq_statistics(x) FROM vectors WHERE id IN (0, 5001);

-- Against SQL's own aggregates
CREATE TABLE expected AS
	SELECT array_agg(mean ORDER BY i) AS mean, array_agg(m2 ORDER BY i) AS m2,
		array_agg(code_mean ORDER BY i) AS code_mean, array_agg(code_m2 ORDER BY i) AS code_m2,
		array_agg(comoment ORDER BY i) AS comoment, array_agg(positive ORDER BY i) AS positive,
		max(n) AS count
	FROM (
		SELECT u.i, count(*) AS n, avg(v::float8) AS mean, regr_sxx(f, v) AS m2,
			avg(f::float8) AS code_mean, regr_syy(f, v) AS code_m2, regr_sxy(f, v) AS comoment,
			count(*) FILTER (WHERE v > 0) AS positive
		FROM vectors, unnest(x, bq_decode(bq_encode(x))) WITH ORDINALITY AS u(v, f, i)
		WHERE x IS NOT NULL
		GROUP BY u.i) AS s;
CREATE FUNCTION close(a float8[], b float8[]) RETURNS boolean LANGUAGE sql AS $$
	SELECT cardinality(a) = cardinality(b) AND
		bool_and(abs(v - w) <= 1e-9 * greatest(abs(v), abs(w))) FROM unnest(a, b) AS u(v, w)
$$;
CREATE FUNCTION close(a bq_statistics, b bq_statistics) RETURNS boolean LANGUAGE sql AS $$
	SELECT a.count = b.count AND a.positive = b.positive AND close(a.mean, b.mean) AND
		close(a.m2, b.m2) AND close(a.code_mean, b.code_mean) AND close(a.code_m2, b.code_m2) AND
		close(a.comoment, b.comoment)
$$;
SELECT close(s, ROW(e.count, e.mean, e.m2, e.code_mean, e.code_m2, e.comoment, e.positive, 0, '{0,0}', '{0,0}', '{0,0}')::bq_statistics)
	AS as_expected
FROM (SELECT bq_statistics(x) AS s FROM vectors) AS a, expected AS e;

-- The same in parallel workers
CREATE TABLE alone AS SELECT bq_statistics(x) AS s FROM vectors;
SET parallel_setup_cost = 0;
SET parallel_tuple_cost = 0;
SET min_parallel_table_scan_size = 0;
SET max_parallel_workers_per_gather = 2;
ALTER TABLE vectors SET (parallel_workers = 2);
EXPLAIN (COSTS OFF) SELECT bq_statistics(x) FROM vectors;
SELECT close(bq_statistics(x), (SELECT s FROM alone)) AS same FROM vectors;
SELECT bq_statistics(x) IS NULL AS of_no_rows FROM vectors WHERE id < 0;
RESET parallel_setup_cost;
RESET parallel_tuple_cost;
RESET min_parallel_table_scan_size;
RESET max_parallel_workers_per_gather;

-- Searches: of a row in so many, and the state goes on after it was read
SELECT (s).searches, (s).found_axes[1] BETWEEN 1 AND 640 AS axes, (s).found_rotated[1] BETWEEN 1 AND 640 AS rotated,
	(s).squares[1] BETWEEN 1 AND 64000 AS squares FROM alone;
SELECT id, (bq_statistics(x) OVER (ORDER BY id)).searches FROM vectors WHERE id <= 2100 ORDER BY id % 700, id DESC LIMIT 4;

-- bq_merge: parts give the whole, in any order; null adds nothing
SELECT close(bq_merge(a.s, b.s), alone.s) AS parts, close(bq_merge(b.s, a.s), alone.s) AS other_order,
	bq_merge(alone.s, NULL) = alone.s AS left_only, bq_merge(NULL, alone.s) = alone.s AS right_only
FROM (SELECT bq_statistics(x) AS s FROM vectors WHERE id % 3 = 0) AS a,
	(SELECT bq_statistics(x) AS s FROM vectors WHERE id % 3 <> 0) AS b, alone;
SELECT bq_merge(NULL, NULL) IS NULL AS nothing;
SELECT bq_merge(s, ROW(0, '{0,0,0,0,0}', '{0,0,0,0,0}', '{0,0,0,0,0}', '{0,0,0,0,0}', '{0,0,0,0,0}', '{0,0,0,0,0}', 0, '{0,0}', '{0,0}', '{0,0}'))
	= s AS empty_adds_nothing FROM alone;
-- What is out of range for vectors, however many, is refused; what was made up and passed stays in range
CREATE TEMP TABLE forged AS SELECT ROW(9007199254740992, '{3e38}', '{1e92}', '{-3e38}', '{1e92}', '{-1e92}',
	'{9007199254740992}', 0, '{0,0}', '{0,0}', '{0,0}')::bq_statistics AS s;
SELECT bq_merge(s, s), bq_merge(bq_merge(s, s), bq_statistics('{-1}'::real[])) FROM forged GROUP BY s;
SELECT (bq_merge(bq_merge(ROW(n, '{3e38}', '{0}', '{3e38}', '{0}', '{0}', ARRAY[n], 0, '{0,0}', '{0,0}', '{0,0}')::bq_statistics,
	ROW(n, '{-3e38}', '{0}', '{-3e38}', '{0}', '{0}', '{0}', 0, '{0,0}', '{0,0}', '{0,0}')::bq_statistics), NULL)).count FROM (VALUES (4503599627370496)) AS v(n);
-- through text, as in a dump
SELECT s::text::bq_statistics = s AS kept FROM alone;

-- Scaled to norm 1; null does not scale, and zero stays zero
CREATE TABLE scaled AS SELECT id, array_agg(v / vector_norm(bq_encode(x))::real ORDER BY i) AS x
FROM vectors, unnest(x) WITH ORDINALITY AS u(v, i) WHERE id BETWEEN 1 AND 100 GROUP BY id;
SELECT close(bq_statistics(x, true), (SELECT bq_statistics(x) FROM scaled)) AS scaled,
	close(bq_statistics(x, NULL), bq_statistics(x)) AS null_does_not, close(bq_statistics(x, false), bq_statistics(x)) AS nor_false
FROM vectors WHERE id BETWEEN 1 AND 100;
SELECT bq_statistics(x, true) FROM vectors WHERE id = 5001;

-- As rows
SELECT coordinate, round(mean::numeric, 6) AS mean, round(stddev::numeric, 6) AS stddev, positive_share,
	round(code_mean::numeric, 6) AS code_mean, round(code_stddev::numeric, 6) AS code_stddev, round(kappa::numeric, 6) AS kappa
FROM bq_coordinates((SELECT bq_statistics(v) FROM (VALUES ('{1,0,-4}'::real[]), ('{3,0,-2}')) AS s(v)));
SELECT count(*) AS of_nothing FROM bq_coordinates(NULL);

-- In groups, and as a window
SELECT id % 2 AS g, (bq_statistics(x)).count FROM vectors GROUP BY 1 ORDER BY 1;
SELECT id, (bq_statistics(x) OVER (ORDER BY id DESC)).count FROM vectors ORDER BY id DESC LIMIT 3;

-- What is rejected
SELECT statement, fails('SELECT ' || statement) FROM (VALUES
	('bq_statistics(x) FROM (VALUES (''{1,2}''::real[]), (''{1}'')) AS v(x)'),
	('bq_statistics(''{1,nan}''::real[])'),
	('bq_statistics(''{1,NULL}''::real[])'),
	('bq_statistics(''{}''::real[])'),
	('bq_merge((SELECT s FROM alone), (SELECT bq_statistics(''{1,2}''::real[])))'),
	('bq_merge(ROW(1, NULL, ''{0}'', ''{0}'', ''{0}'', ''{0}'', ''{0}'', 0, ''{0,0}'', ''{0,0}'', ''{0,0}''), NULL)'),
	('bq_merge(ROW(NULL, ''{0}'', ''{0}'', ''{0}'', ''{0}'', ''{0}'', ''{0}'', 0, ''{0,0}'', ''{0,0}'', ''{0,0}''), NULL)'),
	('bq_merge(ROW(-1, ''{0}'', ''{0}'', ''{0}'', ''{0}'', ''{0}'', ''{0}'', 0, ''{0,0}'', ''{0,0}'', ''{0,0}''), NULL)'),
	('bq_merge(ROW(1, ''{0}'', ''{0}'', ''{0}'', ''{0}'', ''{0,1}'', ''{0}'', 0, ''{0,0}'', ''{0,0}'', ''{0,0}''), NULL)'),
	('bq_merge(ROW(1, ''{0}'', ''{0}'', ''{0}'', ''{NULL}'', ''{0}'', ''{0}'', 0, ''{0,0}'', ''{0,0}'', ''{0,0}''), NULL)'),
	('bq_merge(ROW(1, ''{nan}'', ''{0}'', ''{0}'', ''{0}'', ''{0}'', ''{0}'', 0, ''{0,0}'', ''{0,0}'', ''{0,0}''), NULL)'),
	('bq_merge(ROW(1, ''{0}'', ''{-1}'', ''{0}'', ''{0}'', ''{0}'', ''{0}'', 0, ''{0,0}'', ''{0,0}'', ''{0,0}''), NULL)'),
	('bq_merge(ROW(1, ''{0}'', ''{0}'', ''{0}'', ''{0}'', ''{0}'', ''{2}'', 0, ''{0,0}'', ''{0,0}'', ''{0,0}''), NULL)'),
	('bq_merge(ROW(9007199254740993, ''{0}'', ''{0}'', ''{0}'', ''{0}'', ''{0}'', ''{0}'', 0, ''{0,0}'', ''{0,0}'', ''{0,0}''), NULL)'),
	('bq_merge(ROW(4611686018427387904, ''{0}'', ''{0}'', ''{0}'', ''{0}'', ''{0}'', ''{0}'', 0, ''{0,0}'', ''{0,0}'', ''{0,0}''), NULL)'),
	('bq_merge(ROW(1, ''{1e308}'', ''{0}'', ''{0}'', ''{0}'', ''{0}'', ''{0}'', 0, ''{0,0}'', ''{0,0}'', ''{0,0}''), NULL)'),
	('bq_merge(ROW(1, ''{0}'', ''{0}'', ''{0}'', ''{1e308}'', ''{0}'', ''{0}'', 0, ''{0,0}'', ''{0,0}'', ''{0,0}''), NULL)'),
	('bq_merge(ROW(1, ''{0}'', ''{0}'', ''{0}'', ''{0}'', ''{-1e308}'', ''{0}'', 0, ''{0,0}'', ''{0,0}'', ''{0,0}''), NULL)'),
	('bq_merge(ROW(1, ''{}'', ''{}'', ''{}'', ''{}'', ''{}'', ''{}'', 0, ''{0,0}'', ''{0,0}'', ''{0,0}''), NULL)'),
	('bq_merge(ROW(1, ''{{0}}'', ''{{0}}'', ''{{0}}'', ''{{0}}'', ''{{0}}'', ''{{0}}'', 0, ''{0,0}'', ''{0,0}'', ''{0,0}''), NULL)'),
	('bq_merge(ROW(9, ''{0}'', ''{0}'', ''{0}'', ''{0}'', ''{0}'', ''{0}'', 10, ''{0,0}'', ''{0,0}'', ''{0,0}''), NULL)'),
	('bq_merge(ROW(9, ''{0}'', ''{0}'', ''{0}'', ''{0}'', ''{0}'', ''{0}'', -1, ''{0,0}'', ''{0,0}'', ''{0,0}''), NULL)'),
	('bq_merge(ROW(9, ''{0}'', ''{0}'', ''{0}'', ''{0}'', ''{0}'', ''{0}'', 2, ''{0,21}'', ''{0,0}'', ''{0,0}''), NULL)'),
	('bq_merge(ROW(9, ''{0}'', ''{0}'', ''{0}'', ''{0}'', ''{0}'', ''{0}'', 2, ''{0,0}'', ''{-1,0}'', ''{0,0}''), NULL)'),
	('bq_merge(ROW(9, ''{0}'', ''{0}'', ''{0}'', ''{0}'', ''{0}'', ''{0}'', 2, ''{0,0}'', ''{0,0}'', ''{201,0}''), NULL)'),
	('bq_merge(ROW(9, ''{0}'', ''{0}'', ''{0}'', ''{0}'', ''{0}'', ''{0}'', 2, ''{0,0}'', ''{0}'', ''{0,0}''), NULL)'),
	('bq_merge(ROW(9, ''{0}'', ''{0}'', ''{0}'', ''{0}'', ''{0}'', ''{0}'', 2, ''{0,NULL}'', ''{0,0}'', ''{0,0}''), NULL)')) AS s(statement);
DROP FUNCTION close(bq_statistics, bq_statistics), close(float8[], float8[]);
DROP TABLE vectors, expected, alone, scaled;
