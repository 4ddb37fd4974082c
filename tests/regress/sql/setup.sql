-- What the other files use; the extension itself is loaded by pg_regress.

-- One line for one mistake: SQLSTATE, message, hint.
CREATE FUNCTION fails(statement text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	state text;
	message text;
	hint text;
BEGIN
	EXECUTE statement;
	RETURN 'no error';
EXCEPTION WHEN others THEN
	GET STACKED DIAGNOSTICS state = RETURNED_SQLSTATE, message = MESSAGE_TEXT,
		hint = PG_EXCEPTION_HINT;
	RETURN state || ': ' || message || coalesce(E'\nHINT: ' || nullif(hint, ''), '');
END
$$;

-- Coordinates between -1 and 1, the same for the same arguments.
CREATE FUNCTION random_vector(dim int, seed int) RETURNS real[] LANGUAGE sql IMMUTABLE AS $$
	SELECT array_agg((hashint4extended(i, seed) / 9223372036854775808.0)::real ORDER BY i)
	FROM generate_series(1, dim) AS i
$$;

SELECT random_vector(3, 1) = random_vector(3, 1) AS same,
	random_vector(3, 1) <> random_vector(3, 2) AS different;

-- Levels of a code, one row per dimension.
CREATE FUNCTION levels(code bqvec) RETURNS TABLE (i int, level int) LANGUAGE sql AS $$
	SELECT l.i::int, l.level::int
	FROM string_to_table(split_part(code::text, ':', 3), NULL) WITH ORDINALITY AS l(level, i)
$$;

SELECT * FROM levels('0:1:0312');
