-- bq.kernel, bq_simd(), the reserved prefix.  Nothing here depends on this machine's CPU.

SELECT bq_simd() IN ('portable', 'avx2', 'avx512', 'neon') AS known;
SHOW bq.kernel;
SET bq.kernel = portable;
SELECT bq_simd();
RESET bq.kernel;
SELECT enumvals, context, vartype FROM pg_settings WHERE name = 'bq.kernel';
SET bq.kernel = sse;
-- One of these is for another architecture.
DO $$
BEGIN
	SET LOCAL bq.kernel = avx2;
	SET LOCAL bq.kernel = neon;
	RAISE EXCEPTION 'avx2 and neon on one CPU';
EXCEPTION WHEN invalid_parameter_value THEN
	RAISE NOTICE '%', regexp_replace(SQLERRM, 'avx2|neon', '...');
END
$$;
SELECT fails('SET bq.nonsense = 1');
