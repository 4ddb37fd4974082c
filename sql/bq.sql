\echo Use "CREATE EXTENSION bq" to load this file. \quit

-- bqvec: a vector as a packed 2-bit code

CREATE TYPE bqvec;

CREATE FUNCTION bqvec_in(cstring, oid, integer) RETURNS bqvec
	AS 'MODULE_PATHNAME' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION bqvec_in(cstring, oid, integer) IS 'I/O';

CREATE FUNCTION bqvec_out(bqvec) RETURNS cstring
	AS 'MODULE_PATHNAME' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION bqvec_out(bqvec) IS 'I/O';

CREATE FUNCTION bqvec_recv(internal, oid, integer) RETURNS bqvec
	AS 'MODULE_PATHNAME' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION bqvec_recv(internal, oid, integer) IS 'I/O';

CREATE FUNCTION bqvec_send(bqvec) RETURNS bytea
	AS 'MODULE_PATHNAME' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION bqvec_send(bqvec) IS 'I/O';

CREATE FUNCTION bqvec_typmod_in(cstring[]) RETURNS integer
	AS 'MODULE_PATHNAME' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION bqvec_typmod_in(cstring[]) IS 'I/O typmod';

CREATE FUNCTION bqvec_typmod_out(integer) RETURNS cstring
	AS 'MODULE_PATHNAME' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION bqvec_typmod_out(integer) IS 'I/O typmod';

-- STORAGE main: a code stays in its row (3072 dimensions are under 800 bytes)
CREATE TYPE bqvec (
	INPUT = bqvec_in,
	OUTPUT = bqvec_out,
	RECEIVE = bqvec_recv,
	SEND = bqvec_send,
	TYPMOD_IN = bqvec_typmod_in,
	TYPMOD_OUT = bqvec_typmod_out,
	ALIGNMENT = int4,
	STORAGE = main
);
COMMENT ON TYPE bqvec IS 'vector as a packed code of two bits per dimension: sign and magnitude';

-- bqquery: a vector prepared for comparison with codes

CREATE TYPE bqquery;

CREATE FUNCTION bqquery_in(cstring) RETURNS bqquery
	AS 'MODULE_PATHNAME' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION bqquery_in(cstring) IS 'I/O';

CREATE FUNCTION bqquery_out(bqquery) RETURNS cstring
	AS 'MODULE_PATHNAME' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION bqquery_out(bqquery) IS 'I/O';

CREATE FUNCTION bqquery_recv(internal) RETURNS bqquery
	AS 'MODULE_PATHNAME' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION bqquery_recv(internal) IS 'I/O';

CREATE FUNCTION bqquery_send(bqquery) RETURNS bytea
	AS 'MODULE_PATHNAME' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION bqquery_send(bqquery) IS 'I/O';

CREATE TYPE bqquery (
	INPUT = bqquery_in,
	OUTPUT = bqquery_out,
	RECEIVE = bqquery_recv,
	SEND = bqquery_send,
	ALIGNMENT = int4,
	STORAGE = external
);
COMMENT ON TYPE bqquery IS 'vector at full precision, prepared for comparison with bqvec codes';

-- functions: vectors to codes and back

CREATE FUNCTION bq_encode("vector" real[], transform integer DEFAULT 0) RETURNS bqvec
	AS 'MODULE_PATHNAME', 'bqvec_encode' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION bq_encode(real[], integer) IS
	'code of a vector; transform 0 keeps the original axes, any other number names a rotation';

CREATE FUNCTION bq_query("vector" real[], transform integer DEFAULT 0) RETURNS bqquery
	AS 'MODULE_PATHNAME' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION bq_query(real[], integer) IS
	'prepare a vector for comparison with codes; transform must be that of the codes';

CREATE FUNCTION bq_decode(bqvec) RETURNS real[]
	AS 'MODULE_PATHNAME', 'bqvec_decode' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION bq_decode(bqvec) IS
	'vector that a code stands for, on the original axes';

CREATE FUNCTION quiver_encode("vector" real[], transform integer DEFAULT 0) RETURNS bqvec
	AS 'MODULE_PATHNAME', 'bqvec_quiver_encode' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION quiver_encode(real[], integer) IS
	'code of a vector as in QuIVer (arXiv 2605.02171): magnitude bits cut at the mean of |x|';

-- functions: code against code

CREATE FUNCTION hamming_distance(bqvec, bqvec) RETURNS float8
	AS 'MODULE_PATHNAME', 'bqvec_hamming_distance' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION hamming_distance(bqvec, bqvec) IS
	'Hamming distance of thermometer codes: sum over dimensions of the difference in levels';

CREATE FUNCTION sign_distance(bqvec, bqvec) RETURNS float8
	AS 'MODULE_PATHNAME', 'bqvec_sign_distance' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION sign_distance(bqvec, bqvec) IS
	'number of dimensions whose signs differ';

CREATE FUNCTION quiver_distance(bqvec, bqvec) RETURNS float8
	AS 'MODULE_PATHNAME', 'bqvec_quiver_distance' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION quiver_distance(bqvec, bqvec) IS
	'distance of QuIVer (arXiv 2605.02171): differing signs count 1, 2 or 4 by their magnitude bits';

-- functions: code against query

CREATE FUNCTION cosine_distance(bqvec, bqquery) RETURNS float8
	AS 'MODULE_PATHNAME', 'bqvec_cosine_distance' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION cosine_distance(bqvec, bqquery) IS
	'cosine distance between a query and the vector that a code stands for';

CREATE FUNCTION inner_product(bqvec, bqquery) RETURNS float8
	AS 'MODULE_PATHNAME', 'bqvec_inner_product' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION inner_product(bqvec, bqquery) IS
	'inner product of a query and the vector that a code stands for';

CREATE FUNCTION negative_inner_product(bqvec, bqquery) RETURNS float8
	AS 'MODULE_PATHNAME', 'bqvec_negative_inner_product' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION negative_inner_product(bqvec, bqquery) IS
	'inner_product() with the opposite sign, so that smaller is nearer';

CREATE FUNCTION l2_distance(bqvec, bqquery) RETURNS float8
	AS 'MODULE_PATHNAME', 'bqvec_l2_distance' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION l2_distance(bqvec, bqquery) IS
	'Euclidean distance between a query and the vector that a code stands for';

-- functions: what a value is made of

CREATE FUNCTION vector_dims(bqvec) RETURNS integer
	AS 'MODULE_PATHNAME', 'bqvec_dims' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION vector_dims(bqvec) IS 'number of dimensions';

CREATE FUNCTION vector_dims(bqquery) RETURNS integer
	AS 'MODULE_PATHNAME', 'bqquery_dims' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION vector_dims(bqquery) IS 'number of dimensions';

CREATE FUNCTION vector_norm(bqvec) RETURNS float8
	AS 'MODULE_PATHNAME', 'bqvec_norm' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION vector_norm(bqvec) IS 'Euclidean norm of the vector that was encoded';

CREATE FUNCTION vector_norm(bqquery) RETURNS float8
	AS 'MODULE_PATHNAME', 'bqquery_norm' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION vector_norm(bqquery) IS 'Euclidean norm';

CREATE FUNCTION transform(bqvec) RETURNS integer
	AS 'MODULE_PATHNAME', 'bqvec_transform' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION transform(bqvec) IS 'number of the rotation; 0 is the original axes';

CREATE FUNCTION transform(bqquery) RETURNS integer
	AS 'MODULE_PATHNAME', 'bqquery_transform' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION transform(bqquery) IS 'number of the rotation; 0 is the original axes';

CREATE FUNCTION bq_simd() RETURNS text
	AS 'MODULE_PATHNAME' LANGUAGE C STABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION bq_simd() IS 'kernel in use: portable, avx2, avx512 or neon (setting bq.kernel)';

-- statistics of vectors and their codes

CREATE TYPE bq_statistics AS (
	count bigint,
	mean float8[],
	m2 float8[],
	code_mean float8[],
	code_m2 float8[],
	comoment float8[],
	positive bigint[],
	searches bigint,
	found_axes bigint[],
	found_rotated bigint[],
	squares bigint[]
);
COMMENT ON TYPE bq_statistics IS
	'per-coordinate statistics of vectors x and of f, what their codes on the original axes stand for; and what searches among some of the vectors find';
COMMENT ON COLUMN bq_statistics.count IS 'number of vectors';
COMMENT ON COLUMN bq_statistics.mean IS 'mean of x';
COMMENT ON COLUMN bq_statistics.m2 IS 'sum of (x - mean)^2';
COMMENT ON COLUMN bq_statistics.code_mean IS 'mean of f';
COMMENT ON COLUMN bq_statistics.code_m2 IS 'sum of (f - code_mean)^2';
COMMENT ON COLUMN bq_statistics.comoment IS 'sum of (x - mean)(f - code_mean)';
COMMENT ON COLUMN bq_statistics.positive IS 'number of vectors with x > 0';
COMMENT ON COLUMN bq_statistics.searches IS
	'number of vectors that others were searched with, for the 10 nearest; the rest are sums over these, by distance and by inner product';
COMMENT ON COLUMN bq_statistics.found_axes IS 'of the nearest, those found by codes on the original axes';
COMMENT ON COLUMN bq_statistics.found_rotated IS 'of the nearest, those found by codes after rotation';
COMMENT ON COLUMN bq_statistics.squares IS 'sum of (found rotated - found on the axes)^2';

CREATE FUNCTION bq_merge(bq_statistics, bq_statistics) RETURNS bq_statistics
	AS 'MODULE_PATHNAME' LANGUAGE C IMMUTABLE PARALLEL SAFE;
COMMENT ON FUNCTION bq_merge(bq_statistics, bq_statistics) IS
	'statistics of two sets of vectors together; null adds nothing';

-- private functions: called by the aggregate only

CREATE FUNCTION bq_statistics_accum(internal, real[]) RETURNS internal
	AS 'MODULE_PATHNAME' LANGUAGE C IMMUTABLE PARALLEL SAFE;
COMMENT ON FUNCTION bq_statistics_accum(internal, real[]) IS 'aggregate transition function';

CREATE FUNCTION bq_statistics_accum_scaled(internal, real[], boolean) RETURNS internal
	AS 'MODULE_PATHNAME' LANGUAGE C IMMUTABLE PARALLEL SAFE;
COMMENT ON FUNCTION bq_statistics_accum_scaled(internal, real[], boolean) IS
	'aggregate transition function';

CREATE FUNCTION bq_statistics_combine(internal, internal) RETURNS internal
	AS 'MODULE_PATHNAME' LANGUAGE C IMMUTABLE PARALLEL SAFE;
COMMENT ON FUNCTION bq_statistics_combine(internal, internal) IS 'aggregate combine function';

CREATE FUNCTION bq_statistics_serialize(internal) RETURNS bytea
	AS 'MODULE_PATHNAME' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION bq_statistics_serialize(internal) IS 'aggregate serial function';

CREATE FUNCTION bq_statistics_deserialize(bytea, internal) RETURNS internal
	AS 'MODULE_PATHNAME' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION bq_statistics_deserialize(bytea, internal) IS 'aggregate deserial function';

CREATE FUNCTION bq_statistics_final(internal) RETURNS bq_statistics
	AS 'MODULE_PATHNAME' LANGUAGE C IMMUTABLE PARALLEL SAFE;
COMMENT ON FUNCTION bq_statistics_final(internal) IS 'aggregate final function';

CREATE AGGREGATE bq_statistics(real[]) (
	SFUNC = bq_statistics_accum,
	STYPE = internal,
	FINALFUNC = bq_statistics_final,
	COMBINEFUNC = bq_statistics_combine,
	SERIALFUNC = bq_statistics_serialize,
	DESERIALFUNC = bq_statistics_deserialize,
	PARALLEL = SAFE
);
COMMENT ON AGGREGATE bq_statistics(real[]) IS
	'per-coordinate statistics of vectors and of their codes on the original axes';

CREATE AGGREGATE bq_statistics("vector" real[], "normalize" boolean) (
	SFUNC = bq_statistics_accum_scaled,
	STYPE = internal,
	FINALFUNC = bq_statistics_final,
	COMBINEFUNC = bq_statistics_combine,
	SERIALFUNC = bq_statistics_serialize,
	DESERIALFUNC = bq_statistics_deserialize,
	PARALLEL = SAFE
);
COMMENT ON AGGREGATE bq_statistics(real[], boolean) IS
	'bq_statistics(vector), of vectors scaled to norm 1 if normalize, as is right for cosine distance';

-- Here and below, operators get just the types they are declared with: others, that lie in
-- this schema when the extension is made, would be preferred to a conversion.
CREATE FUNCTION bq_coordinates(statistics bq_statistics)
	RETURNS TABLE (coordinate integer, mean float8, stddev float8, positive_share float8,
				   code_mean float8, code_stddev float8, kappa float8)
	LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE ROWS 500
BEGIN ATOMIC
	SELECT u.i::integer, u.mean, sqrt(u.m2 / n.count), u.positive::float8 / n.count,
		u.code_mean, sqrt(u.code_m2 / n.count), u.comoment / nullif(u.m2, 0::float8)
	FROM (SELECT nullif((statistics).count, 0)::float8 AS count) AS n,
		unnest((statistics).mean, (statistics).m2, (statistics).positive, (statistics).code_mean,
			   (statistics).code_m2, (statistics).comoment)
			WITH ORDINALITY AS u(mean, m2, positive, code_mean, code_m2, comoment, i);
END;
COMMENT ON FUNCTION bq_coordinates(bq_statistics) IS
	'statistics as one row per coordinate; kappa is Cov(x, f) / Var x, f being what the code on the original axes stands for';

-- private functions: called by casts, operators and operator classes only

CREATE FUNCTION bqvec(bqvec, integer, boolean) RETURNS bqvec
	AS 'MODULE_PATHNAME' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION bqvec(bqvec, integer, boolean) IS 'adjust bqvec() to typmod length';

CREATE FUNCTION array_to_bqvec(real[], integer, boolean) RETURNS bqvec
	AS 'MODULE_PATHNAME' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION array_to_bqvec(real[], integer, boolean) IS 'convert real[] to bqvec';

CREATE FUNCTION bqvec_lt(bqvec, bqvec) RETURNS boolean
	AS 'MODULE_PATHNAME' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION bqvec_lt(bqvec, bqvec) IS 'implementation of < operator';

CREATE FUNCTION bqvec_le(bqvec, bqvec) RETURNS boolean
	AS 'MODULE_PATHNAME' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION bqvec_le(bqvec, bqvec) IS 'implementation of <= operator';

CREATE FUNCTION bqvec_eq(bqvec, bqvec) RETURNS boolean
	AS 'MODULE_PATHNAME' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION bqvec_eq(bqvec, bqvec) IS 'implementation of = operator';

CREATE FUNCTION bqvec_ne(bqvec, bqvec) RETURNS boolean
	AS 'MODULE_PATHNAME' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION bqvec_ne(bqvec, bqvec) IS 'implementation of <> operator';

CREATE FUNCTION bqvec_ge(bqvec, bqvec) RETURNS boolean
	AS 'MODULE_PATHNAME' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION bqvec_ge(bqvec, bqvec) IS 'implementation of >= operator';

CREATE FUNCTION bqvec_gt(bqvec, bqvec) RETURNS boolean
	AS 'MODULE_PATHNAME' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION bqvec_gt(bqvec, bqvec) IS 'implementation of > operator';

CREATE FUNCTION bqvec_cmp(bqvec, bqvec) RETURNS integer
	AS 'MODULE_PATHNAME' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION bqvec_cmp(bqvec, bqvec) IS 'less-equal-greater';

CREATE FUNCTION bqvec_hash(bqvec) RETURNS integer
	AS 'MODULE_PATHNAME' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION bqvec_hash(bqvec) IS 'hash';

CREATE FUNCTION bqvec_hash_extended(bqvec, bigint) RETURNS bigint
	AS 'MODULE_PATHNAME' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION bqvec_hash_extended(bqvec, bigint) IS 'hash';

-- casts

CREATE CAST (bqvec AS bqvec)
	WITH FUNCTION bqvec(bqvec, integer, boolean) AS IMPLICIT;

CREATE CAST (real[] AS bqvec)
	WITH FUNCTION array_to_bqvec(real[], integer, boolean) AS ASSIGNMENT;
COMMENT ON CAST (real[] AS bqvec) IS 'bq_encode(vector, transform of the column, else 0)';

-- explicit only: most of the vector is gone
CREATE CAST (bqvec AS real[])
	WITH FUNCTION bq_decode(bqvec);
COMMENT ON CAST (bqvec AS real[]) IS 'bq_decode(code)';

-- operators: distances

CREATE OPERATOR <~> (
	LEFTARG = bqvec, RIGHTARG = bqvec, FUNCTION = hamming_distance,
	COMMUTATOR = <~>
);
COMMENT ON OPERATOR <~> (bqvec, bqvec) IS 'Hamming distance of thermometer codes';

CREATE OPERATOR <=> (
	LEFTARG = bqvec, RIGHTARG = bqquery, FUNCTION = cosine_distance
);
COMMENT ON OPERATOR <=> (bqvec, bqquery) IS 'cosine distance';

CREATE OPERATOR <#> (
	LEFTARG = bqvec, RIGHTARG = bqquery, FUNCTION = negative_inner_product
);
COMMENT ON OPERATOR <#> (bqvec, bqquery) IS 'negative inner product';

CREATE OPERATOR <-> (
	LEFTARG = bqvec, RIGHTARG = bqquery, FUNCTION = l2_distance
);
COMMENT ON OPERATOR <-> (bqvec, bqquery) IS 'Euclidean distance';

-- operators: order

CREATE OPERATOR < (
	LEFTARG = bqvec, RIGHTARG = bqvec, FUNCTION = bqvec_lt,
	COMMUTATOR = >, NEGATOR = >=,
	RESTRICT = scalarltsel, JOIN = scalarltjoinsel
);
COMMENT ON OPERATOR < (bqvec, bqvec) IS 'less than, in the order of the bytes';

CREATE OPERATOR <= (
	LEFTARG = bqvec, RIGHTARG = bqvec, FUNCTION = bqvec_le,
	COMMUTATOR = >=, NEGATOR = >,
	RESTRICT = scalarlesel, JOIN = scalarlejoinsel
);
COMMENT ON OPERATOR <= (bqvec, bqvec) IS 'less than or equal, in the order of the bytes';

CREATE OPERATOR = (
	LEFTARG = bqvec, RIGHTARG = bqvec, FUNCTION = bqvec_eq,
	COMMUTATOR = =, NEGATOR = <>,
	RESTRICT = eqsel, JOIN = eqjoinsel,
	HASHES, MERGES
);
COMMENT ON OPERATOR = (bqvec, bqvec) IS 'equal: same dimensions, transform, norm and bits';

CREATE OPERATOR <> (
	LEFTARG = bqvec, RIGHTARG = bqvec, FUNCTION = bqvec_ne,
	COMMUTATOR = <>, NEGATOR = =,
	RESTRICT = neqsel, JOIN = neqjoinsel
);
COMMENT ON OPERATOR <> (bqvec, bqvec) IS 'not equal';

CREATE OPERATOR >= (
	LEFTARG = bqvec, RIGHTARG = bqvec, FUNCTION = bqvec_ge,
	COMMUTATOR = <=, NEGATOR = <,
	RESTRICT = scalargesel, JOIN = scalargejoinsel
);
COMMENT ON OPERATOR >= (bqvec, bqvec) IS 'greater than or equal, in the order of the bytes';

CREATE OPERATOR > (
	LEFTARG = bqvec, RIGHTARG = bqvec, FUNCTION = bqvec_gt,
	COMMUTATOR = <, NEGATOR = <=,
	RESTRICT = scalargtsel, JOIN = scalargtjoinsel
);
COMMENT ON OPERATOR > (bqvec, bqvec) IS 'greater than, in the order of the bytes';

-- operator classes: btree and hash

CREATE OPERATOR CLASS bqvec_ops
	DEFAULT FOR TYPE bqvec USING btree AS
	OPERATOR 1 <,
	OPERATOR 2 <=,
	OPERATOR 3 =,
	OPERATOR 4 >=,
	OPERATOR 5 >,
	FUNCTION 1 bqvec_cmp(bqvec, bqvec),
	FUNCTION 4 btequalimage(oid);
COMMENT ON OPERATOR CLASS bqvec_ops USING btree IS 'order of the bytes, for DISTINCT, GROUP BY and joins';

CREATE OPERATOR CLASS bqvec_ops
	DEFAULT FOR TYPE bqvec USING hash AS
	OPERATOR 1 =,
	FUNCTION 1 bqvec_hash(bqvec),
	FUNCTION 2 bqvec_hash_extended(bqvec, bigint);
COMMENT ON OPERATOR CLASS bqvec_ops USING hash IS 'equality, for DISTINCT, GROUP BY and joins';

-- access method

CREATE FUNCTION bqhandler(internal) RETURNS index_am_handler
	AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION bqhandler(internal) IS 'handler of access method bq';

CREATE ACCESS METHOD bq TYPE INDEX HANDLER bqhandler;
COMMENT ON ACCESS METHOD bq IS 'inverted lists over packed codes, for ORDER BY distance';

CREATE OPERATOR CLASS bqvec_distance_ops
	DEFAULT FOR TYPE bqvec USING bq AS
	OPERATOR 1 <~> (bqvec, bqvec) FOR ORDER BY float_ops,
	OPERATOR 2 <=> (bqvec, bqquery) FOR ORDER BY float_ops,
	OPERATOR 3 <#> (bqvec, bqquery) FOR ORDER BY float_ops,
	OPERATOR 4 <-> (bqvec, bqquery) FOR ORDER BY float_ops;
COMMENT ON OPERATOR CLASS bqvec_distance_ops USING bq IS 'all distances of codes: one index serves each of them';

-- operator classes of filter columns: a key of four bytes per value (extension/index/bqkey.c)

CREATE FUNCTION bq_bool_key(internal) RETURNS internal
	AS 'MODULE_PATHNAME' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION bq_bool_key(internal) IS 'how a bq index makes keys of type boolean';

CREATE FUNCTION bq_int2_key(internal) RETURNS internal
	AS 'MODULE_PATHNAME' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION bq_int2_key(internal) IS 'how a bq index makes keys of type smallint';

CREATE FUNCTION bq_int4_key(internal) RETURNS internal
	AS 'MODULE_PATHNAME' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION bq_int4_key(internal) IS 'how a bq index makes keys of type integer';

CREATE FUNCTION bq_int8_key(internal) RETURNS internal
	AS 'MODULE_PATHNAME' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION bq_int8_key(internal) IS 'how a bq index makes keys of type bigint';

CREATE FUNCTION bq_oid_key(internal) RETURNS internal
	AS 'MODULE_PATHNAME' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION bq_oid_key(internal) IS 'how a bq index makes keys of type oid, and of enums';

CREATE FUNCTION bq_float_key(internal) RETURNS internal
	AS 'MODULE_PATHNAME' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION bq_float_key(internal) IS 'how a bq index makes keys of type real and double precision';

CREATE FUNCTION bq_numeric_key(internal) RETURNS internal
	AS 'MODULE_PATHNAME' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION bq_numeric_key(internal) IS 'how a bq index makes keys of type numeric';

CREATE FUNCTION bq_date_key(internal) RETURNS internal
	AS 'MODULE_PATHNAME' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION bq_date_key(internal) IS 'how a bq index makes keys of type date';

CREATE FUNCTION bq_timestamp_key(internal) RETURNS internal
	AS 'MODULE_PATHNAME' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION bq_timestamp_key(internal) IS 'how a bq index makes keys of type timestamp and timestamptz';

CREATE FUNCTION bq_text_key(internal) RETURNS internal
	AS 'MODULE_PATHNAME' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION bq_text_key(internal) IS 'how a bq index makes keys of type text';

CREATE FUNCTION bq_bpchar_key(internal) RETURNS internal
	AS 'MODULE_PATHNAME' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION bq_bpchar_key(internal) IS 'how a bq index makes keys of type character';

CREATE FUNCTION bq_uuid_key(internal) RETURNS internal
	AS 'MODULE_PATHNAME' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION bq_uuid_key(internal) IS 'how a bq index makes keys of type uuid';

CREATE OPERATOR FAMILY integer_ops USING bq;
COMMENT ON OPERATOR FAMILY integer_ops USING bq IS 'filters of a bq index';

CREATE OPERATOR CLASS int2_ops
	DEFAULT FOR TYPE int2 USING bq FAMILY integer_ops AS
	OPERATOR 5 < (int2, int2),
	OPERATOR 6 <= (int2, int2),
	OPERATOR 7 = (int2, int2),
	OPERATOR 8 >= (int2, int2),
	OPERATOR 9 > (int2, int2),
	FUNCTION 2 (int2, int2) bq_int2_key(internal);
COMMENT ON OPERATOR CLASS int2_ops USING bq IS 'filters of a bq index';

CREATE OPERATOR CLASS int4_ops
	DEFAULT FOR TYPE int4 USING bq FAMILY integer_ops AS
	OPERATOR 5 < (int4, int4),
	OPERATOR 6 <= (int4, int4),
	OPERATOR 7 = (int4, int4),
	OPERATOR 8 >= (int4, int4),
	OPERATOR 9 > (int4, int4),
	FUNCTION 2 (int4, int4) bq_int4_key(internal);
COMMENT ON OPERATOR CLASS int4_ops USING bq IS 'filters of a bq index';

CREATE OPERATOR CLASS int8_ops
	DEFAULT FOR TYPE int8 USING bq FAMILY integer_ops AS
	OPERATOR 5 < (int8, int8),
	OPERATOR 6 <= (int8, int8),
	OPERATOR 7 = (int8, int8),
	OPERATOR 8 >= (int8, int8),
	OPERATOR 9 > (int8, int8),
	FUNCTION 2 (int8, int8) bq_int8_key(internal);
COMMENT ON OPERATOR CLASS int8_ops USING bq IS 'filters of a bq index';

ALTER OPERATOR FAMILY integer_ops USING bq ADD
	OPERATOR 5 < (int2, int4),
	OPERATOR 6 <= (int2, int4),
	OPERATOR 7 = (int2, int4),
	OPERATOR 8 >= (int2, int4),
	OPERATOR 9 > (int2, int4),
	OPERATOR 5 < (int2, int8),
	OPERATOR 6 <= (int2, int8),
	OPERATOR 7 = (int2, int8),
	OPERATOR 8 >= (int2, int8),
	OPERATOR 9 > (int2, int8),
	OPERATOR 5 < (int4, int2),
	OPERATOR 6 <= (int4, int2),
	OPERATOR 7 = (int4, int2),
	OPERATOR 8 >= (int4, int2),
	OPERATOR 9 > (int4, int2),
	OPERATOR 5 < (int4, int8),
	OPERATOR 6 <= (int4, int8),
	OPERATOR 7 = (int4, int8),
	OPERATOR 8 >= (int4, int8),
	OPERATOR 9 > (int4, int8),
	OPERATOR 5 < (int8, int2),
	OPERATOR 6 <= (int8, int2),
	OPERATOR 7 = (int8, int2),
	OPERATOR 8 >= (int8, int2),
	OPERATOR 9 > (int8, int2),
	OPERATOR 5 < (int8, int4),
	OPERATOR 6 <= (int8, int4),
	OPERATOR 7 = (int8, int4),
	OPERATOR 8 >= (int8, int4),
	OPERATOR 9 > (int8, int4);

CREATE OPERATOR FAMILY float_ops USING bq;
COMMENT ON OPERATOR FAMILY float_ops USING bq IS 'filters of a bq index';

CREATE OPERATOR CLASS float4_ops
	DEFAULT FOR TYPE float4 USING bq FAMILY float_ops AS
	OPERATOR 5 < (float4, float4),
	OPERATOR 6 <= (float4, float4),
	OPERATOR 7 = (float4, float4),
	OPERATOR 8 >= (float4, float4),
	OPERATOR 9 > (float4, float4),
	FUNCTION 2 (float4, float4) bq_float_key(internal);
COMMENT ON OPERATOR CLASS float4_ops USING bq IS 'filters of a bq index';

CREATE OPERATOR CLASS float8_ops
	DEFAULT FOR TYPE float8 USING bq FAMILY float_ops AS
	OPERATOR 5 < (float8, float8),
	OPERATOR 6 <= (float8, float8),
	OPERATOR 7 = (float8, float8),
	OPERATOR 8 >= (float8, float8),
	OPERATOR 9 > (float8, float8),
	FUNCTION 2 (float8, float8) bq_float_key(internal);
COMMENT ON OPERATOR CLASS float8_ops USING bq IS 'filters of a bq index';

ALTER OPERATOR FAMILY float_ops USING bq ADD
	OPERATOR 5 < (float4, float8),
	OPERATOR 6 <= (float4, float8),
	OPERATOR 7 = (float4, float8),
	OPERATOR 8 >= (float4, float8),
	OPERATOR 9 > (float4, float8),
	OPERATOR 5 < (float8, float4),
	OPERATOR 6 <= (float8, float4),
	OPERATOR 7 = (float8, float4),
	OPERATOR 8 >= (float8, float4),
	OPERATOR 9 > (float8, float4);

CREATE OPERATOR CLASS bool_ops
	DEFAULT FOR TYPE bool USING bq AS
	OPERATOR 5 < (bool, bool),
	OPERATOR 6 <= (bool, bool),
	OPERATOR 7 = (bool, bool),
	OPERATOR 8 >= (bool, bool),
	OPERATOR 9 > (bool, bool),
	FUNCTION 2 (bool, bool) bq_bool_key(internal);
COMMENT ON OPERATOR CLASS bool_ops USING bq IS 'filters of a bq index';

CREATE OPERATOR CLASS oid_ops
	DEFAULT FOR TYPE oid USING bq AS
	OPERATOR 5 < (oid, oid),
	OPERATOR 6 <= (oid, oid),
	OPERATOR 7 = (oid, oid),
	OPERATOR 8 >= (oid, oid),
	OPERATOR 9 > (oid, oid),
	FUNCTION 2 (oid, oid) bq_oid_key(internal);
COMMENT ON OPERATOR CLASS oid_ops USING bq IS 'filters of a bq index';

CREATE OPERATOR CLASS numeric_ops
	DEFAULT FOR TYPE numeric USING bq AS
	OPERATOR 5 < (numeric, numeric),
	OPERATOR 6 <= (numeric, numeric),
	OPERATOR 7 = (numeric, numeric),
	OPERATOR 8 >= (numeric, numeric),
	OPERATOR 9 > (numeric, numeric),
	FUNCTION 2 (numeric, numeric) bq_numeric_key(internal);
COMMENT ON OPERATOR CLASS numeric_ops USING bq IS 'filters of a bq index';

CREATE OPERATOR CLASS date_ops
	DEFAULT FOR TYPE date USING bq AS
	OPERATOR 5 < (date, date),
	OPERATOR 6 <= (date, date),
	OPERATOR 7 = (date, date),
	OPERATOR 8 >= (date, date),
	OPERATOR 9 > (date, date),
	FUNCTION 2 (date, date) bq_date_key(internal);
COMMENT ON OPERATOR CLASS date_ops USING bq IS 'filters of a bq index';

CREATE OPERATOR CLASS timestamp_ops
	DEFAULT FOR TYPE timestamp USING bq AS
	OPERATOR 5 < (timestamp, timestamp),
	OPERATOR 6 <= (timestamp, timestamp),
	OPERATOR 7 = (timestamp, timestamp),
	OPERATOR 8 >= (timestamp, timestamp),
	OPERATOR 9 > (timestamp, timestamp),
	FUNCTION 2 (timestamp, timestamp) bq_timestamp_key(internal);
COMMENT ON OPERATOR CLASS timestamp_ops USING bq IS 'filters of a bq index';

CREATE OPERATOR CLASS timestamptz_ops
	DEFAULT FOR TYPE timestamptz USING bq AS
	OPERATOR 5 < (timestamptz, timestamptz),
	OPERATOR 6 <= (timestamptz, timestamptz),
	OPERATOR 7 = (timestamptz, timestamptz),
	OPERATOR 8 >= (timestamptz, timestamptz),
	OPERATOR 9 > (timestamptz, timestamptz),
	FUNCTION 2 (timestamptz, timestamptz) bq_timestamp_key(internal);
COMMENT ON OPERATOR CLASS timestamptz_ops USING bq IS 'filters of a bq index';

CREATE OPERATOR CLASS enum_ops
	DEFAULT FOR TYPE anyenum USING bq AS
	OPERATOR 7 = (anyenum, anyenum),
	FUNCTION 2 (anyenum, anyenum) bq_oid_key(internal);
COMMENT ON OPERATOR CLASS enum_ops USING bq IS 'filters of a bq index';

CREATE OPERATOR CLASS text_ops
	DEFAULT FOR TYPE text USING bq AS
	OPERATOR 7 = (text, text),
	FUNCTION 2 (text, text) bq_text_key(internal);
COMMENT ON OPERATOR CLASS text_ops USING bq IS 'filters of a bq index';

CREATE OPERATOR CLASS bpchar_ops
	DEFAULT FOR TYPE bpchar USING bq AS
	OPERATOR 7 = (bpchar, bpchar),
	FUNCTION 2 (bpchar, bpchar) bq_bpchar_key(internal);
COMMENT ON OPERATOR CLASS bpchar_ops USING bq IS 'filters of a bq index';

CREATE OPERATOR CLASS uuid_ops
	DEFAULT FOR TYPE uuid USING bq AS
	OPERATOR 7 = (uuid, uuid),
	FUNCTION 2 (uuid, uuid) bq_uuid_key(internal);
COMMENT ON OPERATOR CLASS uuid_ops USING bq IS 'filters of a bq index';

-- index functions

CREATE FUNCTION bq_index_check(index regclass, heapallindexed boolean DEFAULT false) RETURNS void
	AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE STRICT PARALLEL RESTRICTED;
COMMENT ON FUNCTION bq_index_check(regclass, boolean) IS
	'error if a bq index is damaged; with heapallindexed, also if a row of its table is missing or differs. Keeps writers out meanwhile';

CREATE FUNCTION bq_index_info(index regclass,
	OUT format_version integer, OUT dim integer, OUT transform integer,
	OUT lists integer, OUT probes integer, OUT blocks bigint, OUT free_blocks bigint,
	OUT live_rows bigint, OUT free_slots bigint,
	OUT min_rows bigint, OUT median_rows float8, OUT max_rows bigint,
	OUT directory_bytes bigint, OUT header_bytes bigint, OUT code_bytes bigint,
	OUT unused_bytes bigint, OUT total_bytes bigint, OUT build_rows bigint, OUT choice text, OUT hint text)
	AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE STRICT PARALLEL RESTRICTED;
COMMENT ON FUNCTION bq_index_info(regclass) IS
	'what a bq index consists of; free_blocks: of no list, or of one before it was split; min_rows, median_rows, max_rows: per list; choice: of an index on vectors, why its transform; hint: when VACUUM or REINDEX would help, also because the other choice would now be better for the rows';

CREATE FUNCTION bq_index_summary(index regclass,
	OUT total_bytes bigint, OUT format_version integer, OUT dim integer, OUT transform integer,
	OUT lists integer, OUT build_rows bigint, OUT changed_lists integer, OUT last_split timestamptz)
	AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE STRICT PARALLEL RESTRICTED;
COMMENT ON FUNCTION bq_index_summary(regclass) IS
	'what a bq index tells by one page, without waiting for locks; null where it cannot be opened, or for who may neither SELECT from its table nor read all statistics';

CREATE FUNCTION bq_index_statistics(index regclass) RETURNS bq_statistics
	AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE STRICT PARALLEL RESTRICTED;
COMMENT ON FUNCTION bq_index_statistics(regclass) IS
	'statistics of the rows that a bq index on vectors chose its transform by, when it was built; null if it had too few, or was told';

CREATE FUNCTION bq_recall(index regclass, sample integer DEFAULT 100, k integer DEFAULT 10)
	RETURNS float8
	AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE STRICT PARALLEL RESTRICTED;
COMMENT ON FUNCTION bq_recall(regclass, integer, integer) IS
	'share of the k nearest rows (of an index on codes by <=>, on vectors by its own distance) that a scan finds at the current settings, of what it finds in all lists; the queries are rows of the index itself, other queries may find less';

CREATE FUNCTION bq_search(index regclass, queries anyarray, k integer DEFAULT 10,
	OUT query integer, OUT tid tid, OUT distance float8)
	RETURNS SETOF record
	AS 'MODULE_PATHNAME', 'bq_index_search' LANGUAGE C STABLE STRICT PARALLEL RESTRICTED COST 10000;
COMMENT ON FUNCTION bq_search(regclass, anyarray, integer) IS
	'the k nearest rows of each of many queries by a bq index on vectors, as ORDER BY distance LIMIT k finds them one by one: number of the query, from 1; ctid of the row; distance. Queries share the reading of lists';

-- bq_stat_indexes: what monitoring asks for.  The counters of scans are kept in fields of the
-- server's statistics that mean nothing for an index (extension/index/bqstat.c).

CREATE VIEW bq_stat_indexes AS
	SELECT i.indrelid AS relid, i.indexrelid, n.nspname AS schemaname, t.relname,
		x.relname AS indexrelname,
		pg_stat_get_numscans(x.oid) AS idx_scan,
		pg_stat_get_tuples_returned(x.oid) AS idx_tup_read,
		pg_stat_get_tuples_fetched(x.oid) AS idx_tup_fetch,
		pg_stat_get_tuples_hot_updated(x.oid) AS lists_read,
		pg_stat_get_live_tuples(x.oid) AS codes_compared,
		pg_stat_get_mod_since_analyze(x.oid) AS vectors_compared,
		-- VACUUM without dead rows, and ANALYZE after it, count those of the table only
		coalesce(CASE WHEN i.indpred IS NULL AND t.reltuples >= 0::float4 THEN t.reltuples END,
				 CASE WHEN x.reltuples >= 0::float4 THEN x.reltuples END)::bigint AS rows,
		s.total_bytes, s.format_version, s.dim, s.transform, s.lists, s.build_rows,
		s.changed_lists, s.last_split, i.indisvalid AS valid
	FROM pg_class AS x
		JOIN pg_am AS a ON a.oid = x.relam AND a.amname = 'bq'::name
		JOIN pg_index AS i ON i.indexrelid = x.oid
		JOIN pg_class AS t ON t.oid = i.indrelid
		JOIN pg_namespace AS n ON n.oid = x.relnamespace
		CROSS JOIN LATERAL bq_index_summary(x.oid::regclass) AS s
	WHERE x.relkind = 'i'::"char";
COMMENT ON VIEW bq_stat_indexes IS 'one row per bq index of this database: what its scans did, and its state';
COMMENT ON COLUMN bq_stat_indexes.relid IS 'oid of the table';
COMMENT ON COLUMN bq_stat_indexes.indexrelid IS 'oid of the index';
COMMENT ON COLUMN bq_stat_indexes.schemaname IS 'schema of both';
COMMENT ON COLUMN bq_stat_indexes.relname IS 'name of the table';
COMMENT ON COLUMN bq_stat_indexes.indexrelname IS 'name of the index';
COMMENT ON COLUMN bq_stat_indexes.idx_scan IS 'queries answered by the index; each of bq_search() counts';
COMMENT ON COLUMN bq_stat_indexes.idx_tup_read IS 'rows that scans gave out; without those of bq_search()';
COMMENT ON COLUMN bq_stat_indexes.idx_tup_fetch IS 'of these, rows that were visible in the table';
COMMENT ON COLUMN bq_stat_indexes.lists_read IS 'lists that scans read; these three of statements that did not fail';
COMMENT ON COLUMN bq_stat_indexes.codes_compared IS 'codes that scans compared in all dimensions';
COMMENT ON COLUMN bq_stat_indexes.vectors_compared IS
	'rows of the table whose vectors scans compared, 0 of an index on codes';
COMMENT ON COLUMN bq_stat_indexes.rows IS
	'rows of the table, of a partial index those in it, as VACUUM, ANALYZE or CREATE INDEX found; null if never';
COMMENT ON COLUMN bq_stat_indexes.total_bytes IS
	'size; null, as the next seven, while the index is locked, and for who may neither SELECT from the table nor read all statistics';
COMMENT ON COLUMN bq_stat_indexes.format_version IS
	'format of the pages; null if not valid or damaged; the next six are null if it is an old one: REINDEX';
COMMENT ON COLUMN bq_stat_indexes.dim IS 'number of dimensions';
COMMENT ON COLUMN bq_stat_indexes.transform IS 'transform of the codes, null until the first one';
COMMENT ON COLUMN bq_stat_indexes.lists IS 'number of inverted lists';
COMMENT ON COLUMN bq_stat_indexes.build_rows IS 'rows when it was last measured how far queries must go';
COMMENT ON COLUMN bq_stat_indexes.changed_lists IS 'lists that were split since, or made thereby';
COMMENT ON COLUMN bq_stat_indexes.last_split IS 'when VACUUM last split a list, null if never since the index was built';
COMMENT ON COLUMN bq_stat_indexes.valid IS 'false while it is built CONCURRENTLY, and after that failed: REINDEX or DROP it';
GRANT SELECT ON bq_stat_indexes TO PUBLIC;

-- bq_columns: what is known about each managed column.  As pg_statistic and pg_stats: a table
-- that its owner and roles with pg_read_all_data read, and a view for everybody.

CREATE TYPE bq_table;

CREATE FUNCTION bq_table_in(cstring) RETURNS bq_table
	AS 'MODULE_PATHNAME' LANGUAGE C STABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION bq_table_in(cstring) IS 'I/O';

CREATE FUNCTION bq_table_out(bq_table) RETURNS cstring
	AS 'MODULE_PATHNAME' LANGUAGE C STABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION bq_table_out(bq_table) IS 'I/O';

CREATE TYPE bq_table (
	INPUT = bq_table_in,
	OUTPUT = bq_table_out,
	LIKE = oid
);
COMMENT ON TYPE bq_table IS 'as regclass, but the name of a table that does not exist becomes 0: it is read where pg_dump is restored';
CREATE CAST (bq_table AS oid) WITHOUT FUNCTION AS IMPLICIT;
COMMENT ON CAST (bq_table AS oid) IS 'oid of a table';
CREATE CAST (oid AS bq_table) WITHOUT FUNCTION AS ASSIGNMENT;
COMMENT ON CAST (oid AS bq_table) IS 'table of an oid';

CREATE TABLE bq_column_data (
	table_name bq_table NOT NULL,
	code_column name NOT NULL,
	source_column name,
	dim integer NOT NULL CHECK (dim BETWEEN 1 AND 16000),
	metric text NOT NULL CHECK (metric IN ('cosine', 'l2', 'inner_product')),
	transform integer NOT NULL CHECK (transform BETWEEN 0 AND 65535),
	statistics bq_statistics,
	decided_statistics bq_statistics,
	f_axis float8,
	f_rotate float8,
	reason text,
	decided_count bigint,
	decided_at timestamptz,
	next_column name,
	next_transform integer CHECK (next_transform BETWEEN 0 AND 65535),
	calibrations jsonb NOT NULL DEFAULT '[]',
	PRIMARY KEY (table_name, code_column)
);
COMMENT ON TABLE bq_column_data IS 'what the view bq_columns shows; written by functions that check who calls them';

-- A row of a table that is not restored is not, either.
CREATE FUNCTION bq_skip_row() RETURNS trigger
	AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION bq_skip_row() IS 'trigger of bq_column_data: leaves the row out';
CREATE TRIGGER skip_missing_tables BEFORE INSERT ON bq_column_data FOR EACH ROW
	WHEN (new.table_name::oid = 0::oid) EXECUTE FUNCTION bq_skip_row();
COMMENT ON TRIGGER skip_missing_tables ON bq_column_data IS 'a dump may name tables that are not restored';

-- Dumped whoever dumps, if only they may read it: row security would stop pg_dump.  Rows of
-- tables that are gone would come back as those of whoever gets their oid; temporary tables
-- are not dumped.
SELECT pg_catalog.pg_extension_config_dump('bq_column_data',
	'WHERE EXISTS (SELECT FROM pg_catalog.pg_class c WHERE c.oid OPERATOR(pg_catalog.=) table_name::pg_catalog.oid AND c.relpersistence OPERATOR(pg_catalog.<>) ''t'')');

-- Facts for who may read or write in the table; what was learned from its rows for who may
-- read them all, as pg_stats has it.  Rows of tables that are gone for the owner.  Casts leave
-- no choice of function or operator to what else may lie in this schema.
CREATE VIEW bq_columns WITH (security_barrier) AS
	SELECT d.table_name::oid::regclass AS table_name, d.code_column, d.source_column, d.dim,
		d.metric, d.transform,
		CASE WHEN has_table_privilege(d.table_name::oid, 'SELECT'::text) AND
			NOT row_security_active(d.table_name::oid) THEN d.statistics END AS statistics,
		CASE WHEN has_table_privilege(d.table_name::oid, 'SELECT'::text) AND
			NOT row_security_active(d.table_name::oid) THEN d.decided_statistics
			END AS decided_statistics,
		CASE WHEN has_table_privilege(d.table_name::oid, 'SELECT'::text) AND
			NOT row_security_active(d.table_name::oid) THEN d.f_axis END AS f_axis,
		CASE WHEN has_table_privilege(d.table_name::oid, 'SELECT'::text) AND
			NOT row_security_active(d.table_name::oid) THEN d.f_rotate END AS f_rotate,
		CASE WHEN has_table_privilege(d.table_name::oid, 'SELECT'::text) AND
			NOT row_security_active(d.table_name::oid) THEN d.reason END AS reason,
		CASE WHEN has_table_privilege(d.table_name::oid, 'SELECT'::text) AND
			NOT row_security_active(d.table_name::oid) THEN d.decided_count END AS decided_count,
		d.decided_at, d.next_column, d.next_transform, d.calibrations
	FROM bq_column_data AS d
	WHERE coalesce(
		has_any_column_privilege(d.table_name::oid, 'SELECT, INSERT, UPDATE, REFERENCES'::text),
		pg_has_role((SELECT c.relowner FROM pg_class AS c
					 WHERE c.oid = 'bq_column_data'::regclass::oid), 'USAGE'::text));
COMMENT ON VIEW bq_columns IS 'one row per column of codes, or of vectors without, that a driver looks after';
COMMENT ON COLUMN bq_columns.table_name IS 'the table';
COMMENT ON COLUMN bq_columns.code_column IS
	'its column of type bqvec; source_column, if only an index on that is to have this metric and transform';
COMMENT ON COLUMN bq_columns.source_column IS 'its column with the full vectors, null if only codes are stored';
COMMENT ON COLUMN bq_columns.dim IS 'number of dimensions';
COMMENT ON COLUMN bq_columns.metric IS 'distance that searches use: cosine, l2 or inner_product';
COMMENT ON COLUMN bq_columns.transform IS 'transform of the codes and of queries';
COMMENT ON COLUMN bq_columns.statistics IS
	'statistics of all vectors ingested so far; null, as the next five, for who may not read all rows';
COMMENT ON COLUMN bq_columns.decided_statistics IS
	'statistics that transform was decided from, null if it was given; drift is how the others differ from them';
COMMENT ON COLUMN bq_columns.f_axis IS 'predicted fidelity of codes on the original axes, when decided';
COMMENT ON COLUMN bq_columns.f_rotate IS 'predicted fidelity of codes after rotation, when decided';
COMMENT ON COLUMN bq_columns.reason IS 'why transform was chosen, in words';
COMMENT ON COLUMN bq_columns.decided_count IS 'number of vectors known when decided';
COMMENT ON COLUMN bq_columns.decided_at IS 'time of the decision, null if there is none yet';
COMMENT ON COLUMN bq_columns.next_column IS
	'column that is being filled with codes of next_transform, to take the place of code_column';
COMMENT ON COLUMN bq_columns.next_transform IS 'transform of the codes in next_column';
COMMENT ON COLUMN bq_columns.calibrations IS
	'what searches need for a recall, as measured: objects of recall, k, rerank, probes, rows, transform, measured_at';

-- The owner of the extension, who need not be a superuser, dumps and restores the table.  The view
-- stays the superuser's who runs this script: everybody reads it, and calls what it calls.
-- Before GRANT, or pg_dump sees changed privileges.
ALTER TABLE bq_column_data OWNER TO @extowner@;
GRANT SELECT ON bq_columns TO PUBLIC;

-- functions on bq_column_data.  They check what the caller may do with the table described, and
-- change its row as the owner of theirs.  Their search_path leaves nothing to whoever calls them.

CREATE FUNCTION bq_register_column("table" regclass, code_column name, source_column name,
	dim integer, metric text, transform integer DEFAULT NULL, reason text DEFAULT NULL)
	RETURNS void
	AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp;
COMMENT ON FUNCTION bq_register_column(regclass, name, name, integer, text, integer, text) IS
	'enter a code column into bq_columns; transform: decided already, null leaves it to bq_decide. For the owner of the table';

CREATE FUNCTION bq_rename_column("table" regclass, "column" name, new_name name) RETURNS void
	AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE
	SET search_path = pg_catalog, pg_temp;
COMMENT ON FUNCTION bq_rename_column(regclass, name, name) IS
	'follow ALTER TABLE ... RENAME of a code or vector column in bq_columns. For the owner of the table';

CREATE FUNCTION bq_forget_column("table" regclass, code_column name) RETURNS void
	AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE
	SET search_path = pg_catalog, pg_temp;
COMMENT ON FUNCTION bq_forget_column(regclass, name) IS
	'remove a code column from bq_columns. For the owner of the table';

CREATE FUNCTION bq_set_next_column("table" regclass, code_column name, next_column name,
	next_transform integer) RETURNS void
	AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp;
COMMENT ON FUNCTION bq_set_next_column(regclass, name, name, integer) IS
	'say which column is being filled to take the place of a code column; null: none. For the owner of the table';

CREATE FUNCTION bq_decide_again("table" regclass, code_column name, transform integer,
	statistics bq_statistics, f_axis float8, f_rotate float8, reason text) RETURNS void
	AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp;
COMMENT ON FUNCTION bq_decide_again(regclass, name, integer, bq_statistics, float8, float8, text) IS
	'enter the transform of codes that were all made anew; no next column is left. For the owner of the table';

CREATE FUNCTION bq_decide("table" regclass, code_column name, transform integer,
	statistics bq_statistics, f_axis float8, f_rotate float8, reason text) RETURNS integer
	AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp;
COMMENT ON FUNCTION bq_decide(regclass, name, integer, bq_statistics, float8, float8, text) IS
	'decide the transform of a code column, unless it is decided; returns what is decided. Needs INSERT on the table';

CREATE FUNCTION bq_add_statistics("table" regclass, code_column name, statistics bq_statistics)
	RETURNS void
	AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE
	SET search_path = pg_catalog, pg_temp;
COMMENT ON FUNCTION bq_add_statistics(regclass, name, bq_statistics) IS
	'merge statistics of new rows into bq_columns. Needs INSERT on the table';

CREATE FUNCTION bq_keep_calibration("table" regclass, code_column name, recall float8, k integer,
	rerank float8, probes integer, "rows" bigint) RETURNS void
	AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp;
COMMENT ON FUNCTION bq_keep_calibration(regclass, name, float8, integer, float8, integer, bigint) IS
	'enter what searches need for a recall of the k nearest rows, in place of what was measured for the same. For the owner of the table';

CREATE FUNCTION bq_column_statistics("table" regclass, "column" name DEFAULT NULL)
	RETURNS TABLE (code_column name, coordinate integer, mean float8, stddev float8,
				   positive_share float8, code_mean float8, code_stddev float8, kappa float8)
	LANGUAGE sql STABLE PARALLEL SAFE ROWS 500
BEGIN ATOMIC
	SELECT b.code_column, s.*
	FROM bq_columns AS b, bq_coordinates(b.statistics) AS s
	WHERE b.table_name::oid = $1::oid AND (b.code_column = $2 OR $2 IS NULL)
	ORDER BY b.code_column, s.coordinate;
END;
COMMENT ON FUNCTION bq_column_statistics(regclass, name) IS
	'statistics of the rows ingested so far, one row per coordinate, of one or all code columns of a table';

CREATE FUNCTION bq_sample_statistics("table" regclass, code_column name DEFAULT NULL,
	sample integer DEFAULT 20000) RETURNS bq_statistics
	AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL RESTRICTED SET search_path = pg_catalog, pg_temp;
COMMENT ON FUNCTION bq_sample_statistics(regclass, name, integer) IS
	'statistics of about so many of the stored vectors, as bq_columns would have them, from pages drawn at random';

CREATE FUNCTION bq_encode_trigger() RETURNS trigger
	AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION bq_encode_trigger() IS
	'BEFORE INSERT OR UPDATE, FOR EACH ROW: keeps codes in step with vectors; arguments: code column, vector column, perhaps transform, else that of bq_columns';

-- bq_loads: which batches of a source are in a table, so that a load can be resumed.  A load is
-- its loader's: nobody learns of others' sources, or takes batches for done that others say are.
-- Rows come in the transactions of the batches; loads of temporary interest, not dumped.

CREATE TABLE bq_loads (
	loader oid NOT NULL,
	table_name regclass NOT NULL,
	source text NOT NULL,
	batch integer NOT NULL CHECK (batch >= 0),
	batch_rows integer NOT NULL CHECK (batch_rows > 0),
	fingerprint text NOT NULL,
	written bigint NOT NULL CHECK (written >= 0),
	PRIMARY KEY (table_name, loader, source, batch)
);
COMMENT ON TABLE bq_loads IS 'one row per batch of vectors that was written from a source';
COMMENT ON COLUMN bq_loads.loader IS 'oid of the role that wrote it';
COMMENT ON COLUMN bq_loads.table_name IS 'the table it was written to';
COMMENT ON COLUMN bq_loads.source IS 'name of the source, for example of a file';
COMMENT ON COLUMN bq_loads.batch IS 'its number, from 0';
COMMENT ON COLUMN bq_loads.batch_rows IS 'rows in each batch of the source but the last';
COMMENT ON COLUMN bq_loads.fingerprint IS 'what tells a changed source: its rows, dimensions, bytes';
COMMENT ON COLUMN bq_loads.written IS 'rows written: fewer than the batch has if some were skipped';
ALTER TABLE bq_loads OWNER TO @extowner@;
GRANT SELECT ON bq_loads TO PUBLIC;
ALTER TABLE bq_loads ENABLE ROW LEVEL SECURITY;
CREATE POLICY bq_loads_own ON bq_loads FOR SELECT USING (pg_has_role(loader, 'USAGE'::text));

CREATE FUNCTION bq_record_load("table" regclass, source text, batch integer, batch_rows integer,
	fingerprint text, written bigint) RETURNS void
	AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE
	SET search_path = pg_catalog, pg_temp;
COMMENT ON FUNCTION bq_record_load(regclass, text, integer, integer, text, bigint) IS
	'enter a batch into bq_loads, as one of the current role. Needs INSERT on the table';

CREATE FUNCTION bq_forget_load("table" regclass, source text) RETURNS void
	AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE
	SET search_path = pg_catalog, pg_temp;
COMMENT ON FUNCTION bq_forget_load(regclass, text) IS
	'remove the batches of a source that the current role loaded from bq_loads';
