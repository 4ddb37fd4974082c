-- Distances, against their definitions in SQL, and on every kernel.

-- All pairs of levels: code against code
SELECT a, b,
	hamming_distance(('0:1:' || a)::bqvec, ('0:1:' || b)::bqvec) AS hamming,
	sign_distance(('0:1:' || a)::bqvec, ('0:1:' || b)::bqvec) AS sign,
	quiver_distance(('0:1:' || a)::bqvec, ('0:1:' || b)::bqvec) AS quiver
FROM generate_series(0, 3) AS a, generate_series(0, 3) AS b ORDER BY a, b;

CREATE TABLE codes AS
	SELECT dim, transform, bq_encode(random_vector(dim, 1), transform) AS a,
		bq_encode(random_vector(dim, 2), transform) AS b,
		bq_query(random_vector(dim, 3), transform) AS q
	FROM generate_series(1, 130) AS dim, (VALUES (0), (1)) AS t(transform)
	UNION ALL
	SELECT dim, 2, bq_encode(random_vector(dim, 1), 2), bq_encode(random_vector(dim, 2), 2),
		bq_query(random_vector(dim, 3), 2)
	FROM (VALUES (384), (768), (1000), (1536), (3072), (16000)) AS d(dim);

SELECT count(*),
	count(*) FILTER (WHERE a <~> b = e.hamming AND hamming_distance(a, b) = e.hamming) AS hamming,
	count(*) FILTER (WHERE sign_distance(a, b) = e.sign) AS sign,
	count(*) FILTER (WHERE quiver_distance(a, b) = e.quiver) AS quiver,
	count(*) FILTER (WHERE b <~> a = a <~> b AND a <~> a = 0) AS symmetric
FROM codes, LATERAL (
	SELECT sum(abs(la.level - lb.level)) AS hamming,
		count(*) FILTER (WHERE (la.level < 2) <> (lb.level < 2)) AS sign,
		coalesce(sum((1 + (la.level IN (0, 3))::int) * (1 + (lb.level IN (0, 3))::int))
			FILTER (WHERE (la.level < 2) <> (lb.level < 2)), 0) AS quiver
	FROM levels(a) AS la JOIN levels(b) AS lb USING (i)) AS e;

-- Code against query: distances to what the code stands for, which the original axes
-- show (transform 0) and rotation does not change
SELECT count(*),
	count(*) FILTER (WHERE abs((a <=> q) - e.cosine) < 1e-5) AS cosine,
	count(*) FILTER (WHERE abs((a <#> q) + e.product) < 1e-5 * e.norms) AS product,
	count(*) FILTER (WHERE abs((a <-> q) - e.l2) < 1e-5 * e.l2) AS l2,
	count(*) FILTER (WHERE (a <=> q) = cosine_distance(a, q) AND
		(a <#> q) = negative_inner_product(a, q) AND (a <#> q) = -inner_product(a, q) AND
		(a <-> q) = l2_distance(a, q)) AS functions
FROM codes, LATERAL (
	SELECT sum(v * x) AS product, sqrt(sum(v * v) * sum(x * x)) AS norms,
		1 - sum(v * x) / sqrt(sum(v * v) * sum(x * x)) AS cosine, sqrt(sum((v - x) ^ 2)) AS l2
	FROM unnest(bq_decode(a)::float8[], random_vector(dim, 3)::float8[]) AS u(v, x)) AS e;

SELECT round((code <=> bq_query('{1,2,3,4}'))::numeric, 6) AS cosine,
	round((code <#> bq_query('{1,2,3,4}'))::numeric, 6) AS product,
	round((code <-> bq_query('{1,2,3,4}'))::numeric, 6) AS l2,
	round((code <=> '0:[-1,-2,-3,-4]')::numeric, 6) AS literal
FROM (SELECT bq_encode('{1,2,3,4}') AS code) AS c;

-- A zero vector is at cosine distance 1 from everything, on either side.
SELECT bq_encode('{0,0}') <=> bq_query('{1,2}') AS zero_code,
	bq_encode('{1,2}') <=> bq_query('{0,0}') AS zero_query,
	bq_encode('{0,0}') <#> bq_query('{1,2}') AS product,
	bq_encode('{0,0}') <-> bq_query('{3,4}') AS l2,
	bq_encode('{3,4}') <-> bq_query('{0,0}') AS l2_to_zero;
-- The largest values stay finite.
SELECT bq_encode('{-2.6e36}') <-> bq_query('{2.6e36}') AS l2,
	bq_encode('{-2.6e36}') <=> bq_query('{2.6e36}') AS cosine;
SELECT bq_encode('{1}') <~> NULL AS code, bq_encode('{1}') <=> NULL AS query,
	NULL <-> bq_query('{1}') AS code_null;

-- Every kernel that runs here gives the same bits.
DO $$
DECLARE
	kernel text;
	truth text;
	found text;
	digest CONSTANT text := 'SELECT md5(string_agg(format(''%s %s %s %s %s %s %s %s %s'', a <~> b,
		sign_distance(a, b), quiver_distance(a, b), a <=> q, a <#> q, a <-> q,
		bq_encode(random_vector(dim, 4), transform), bq_query(random_vector(dim, 5), transform),
		bq_decode(a)), '','' ORDER BY dim, transform)) FROM codes';
BEGIN
	SET LOCAL bq.kernel = portable;
	EXECUTE digest INTO truth;
	FOREACH kernel IN ARRAY '{auto,avx2,avx512,neon}'::text[] LOOP
		BEGIN
			PERFORM set_config('bq.kernel', kernel, true);
		EXCEPTION WHEN invalid_parameter_value THEN
			CONTINUE;			-- not on this CPU
		END;
		IF kernel <> 'auto' AND bq_simd() <> kernel THEN
			RAISE EXCEPTION 'asked for kernel %, got %', kernel, bq_simd();
		END IF;
		EXECUTE digest INTO found;
		IF found <> truth THEN
			RAISE EXCEPTION 'kernel % differs from portable', bq_simd();
		END IF;
	END LOOP;
END
$$;

-- A query from a table: inline, packed (short header), and toasted, row after row
CREATE TABLE queries (dim int, transform int, q bqquery);
INSERT INTO queries SELECT dim, transform, q FROM codes;
SELECT pg_relation_size(reltoastrelid) > 0 AS toasted FROM pg_class WHERE oid = 'queries'::regclass;
SELECT count(*), count(*) FILTER (WHERE (c.a <=> t.q) = (c.a <=> c.q) AND (c.b <-> t.q) = (c.b <-> c.q))
	AS same
FROM codes AS c JOIN queries AS t USING (dim, transform);
-- one query against many codes, and another query after it
CREATE TABLE stored (id int, code bqvec(1000));
INSERT INTO stored SELECT i, bq_encode(random_vector(1000, i)) FROM generate_series(1, 50) AS i;
CREATE TABLE asked (id int, x real[], q bqquery);
INSERT INTO asked SELECT i, x, bq_query(x)
FROM (SELECT i, random_vector(1000, i) AS x FROM generate_series(1, 5) AS i) AS r;
SET enable_hashjoin = off;
SET enable_mergejoin = off;
SELECT count(*), count(*) FILTER (WHERE (code <=> q) = (code <=> bq_query(x))) AS same,
	count(*) FILTER (WHERE asked.id = stored.id AND (code <=> q) < 0.2) AS own,
	count(*) FILTER (WHERE asked.id <> stored.id AND (code <=> q) > 0.5) AS others
FROM asked, stored;
RESET enable_hashjoin;
RESET enable_mergejoin;
-- each query finds its own vector first
SELECT asked.id, nearest.id AS nearest
FROM asked, LATERAL (SELECT id FROM stored ORDER BY code <=> q LIMIT 1) AS nearest ORDER BY 1;
DROP TABLE stored, asked, queries, codes;

-- What cannot be compared
SELECT statement, fails('SELECT ' || statement) FROM (VALUES
	('bq_encode(''{1,2}'') <~> bq_encode(''{1,2,3}'')'),
	('bq_encode(''{1,2}'') <~> bq_encode(''{1,2}'', 3)'),
	('sign_distance(bq_encode(''{1,2}''), bq_encode(''{1,2,3}''))'),
	('quiver_distance(bq_encode(''{1,2}'', 2), bq_encode(''{1,2}'', 1))'),
	('bq_encode(''{1,2}'') <=> bq_query(''{1,2,3}'')'),
	('bq_encode(''{1,2}'', 5) <=> bq_query(''{1,2}'')'),
	('bq_encode(''{1,2}'', 5) <#> bq_query(''{1,2}'', 6)'),
	('bq_encode(''{1,2}'', 5) <-> bq_query(''{1}'', 6)'),
	('inner_product(bq_encode(''{1,2}''), bq_query(''{1}''))')) AS s(statement);
