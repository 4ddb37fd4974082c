-- Beside pgvector; expected/vector_1.out is for servers that do not have it.

SELECT count(*) = 0 AS missing FROM pg_available_extensions WHERE name = 'vector' \gset
\if :missing
\echo pgvector is not available
\quit
\endif
SET client_min_messages = warning;
CREATE EXTENSION vector;
RESET client_min_messages;

-- Its types become codes through real[], in a generated column too.
CREATE TABLE items (
	id int PRIMARY KEY,
	embedding vector(3),
	half halfvec(3),
	code bqvec(3) GENERATED ALWAYS AS (bq_encode(embedding::real[])) STORED,
	half_code bqvec(3) GENERATED ALWAYS AS (bq_encode(half::real[], 5)) STORED
);
INSERT INTO items (id, embedding, half) VALUES
	(1, '[1,-2,3]', '[1,-2,3]'), (2, '[3,2,1]', '[3,2,1]'), (3, '[0,0,0]', '[0,0,0]'), (4, NULL, NULL);
SELECT id, code, half_code, code = bq_encode(embedding::real[]) AS same FROM items ORDER BY id;
INSERT INTO items (id, embedding) VALUES (5, bq_decode(bq_encode('{1,2,3}'))::vector);
SELECT (bq_statistics(embedding::real[])).count, (bq_statistics(half::real[])).mean FROM items;

-- Operators and functions of the same name find their types.
SELECT id, round((embedding <=> '[1,2,3]')::numeric, 6) AS exact, round((code <=> bq_query('{1,2,3}'))::numeric, 6) AS estimate,
	code <=> bq_query('{1,2,3}') = code <=> bq_query('[1,2,3]'::vector::real[]) AS from_vector,
	code <=> bq_query('{1,2,3}') = code <=> '0:[1,2,3]' AS literal
FROM items WHERE id < 3 ORDER BY id;
SELECT round(cosine_distance(embedding, '[1,2,3]')::numeric, 6) AS exact,
	round(cosine_distance(code, '0:[1,2,3]')::numeric, 6) AS estimate,
	vector_dims(embedding), vector_dims(half), vector_dims(code), vector_dims(bq_query('{1}')),
	round(vector_norm(embedding)::numeric, 6) AS norm, round(vector_norm(code)::numeric, 6) AS norm_of_code
FROM items WHERE id = 2;
SELECT hamming_distance(B'101', B'110') AS bits, hamming_distance(code, code) AS codes,
	B'101' <~> B'110' AS bit_operator, code <~> '0:1:333' AS code_operator
FROM items WHERE id = 2;

-- Two steps: candidates by code, exact order by vector
SELECT id FROM (
	SELECT id, embedding FROM items WHERE id <> 4 ORDER BY code <=> bq_query('{3,2,1}') LIMIT 2) AS c
ORDER BY embedding <=> '[3,2,1]' LIMIT 1;
DROP TABLE items;
DROP EXTENSION vector;
