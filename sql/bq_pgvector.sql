-- bq_pgvector: access method bq on pgvector's types.  The operator classes have the names that
-- pgvector gives those of hnsw: CREATE INDEX ... USING bq (embedding vector_cosine_ops).

\echo Use "CREATE EXTENSION bq_pgvector" to load this file. \quit

-- support functions: how an index reads its column (extension/index/bqsource.c)

CREATE FUNCTION bq_vector_source(internal) RETURNS internal
	AS 'MODULE_PATHNAME' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION bq_vector_source(internal) IS 'how a bq index reads columns of type vector';

CREATE FUNCTION bq_halfvec_source(internal) RETURNS internal
	AS 'MODULE_PATHNAME' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION bq_halfvec_source(internal) IS 'how a bq index reads columns of type halfvec';

-- operator classes: numbers of operators as in those of bqvec

CREATE OPERATOR CLASS vector_cosine_ops
	FOR TYPE vector USING bq AS
	OPERATOR 2 <=> (vector, vector) FOR ORDER BY float_ops,
	FUNCTION 1 (vector, vector) bq_vector_source(internal);
COMMENT ON OPERATOR CLASS vector_cosine_ops USING bq IS 'cosine distance';

CREATE OPERATOR CLASS vector_ip_ops
	FOR TYPE vector USING bq AS
	OPERATOR 3 <#> (vector, vector) FOR ORDER BY float_ops,
	FUNCTION 1 (vector, vector) bq_vector_source(internal);
COMMENT ON OPERATOR CLASS vector_ip_ops USING bq IS 'negative inner product';

CREATE OPERATOR CLASS vector_l2_ops
	FOR TYPE vector USING bq AS
	OPERATOR 4 <-> (vector, vector) FOR ORDER BY float_ops,
	FUNCTION 1 (vector, vector) bq_vector_source(internal);
COMMENT ON OPERATOR CLASS vector_l2_ops USING bq IS 'Euclidean distance';

CREATE OPERATOR CLASS halfvec_cosine_ops
	FOR TYPE halfvec USING bq AS
	OPERATOR 2 <=> (halfvec, halfvec) FOR ORDER BY float_ops,
	FUNCTION 1 (halfvec, halfvec) bq_halfvec_source(internal);
COMMENT ON OPERATOR CLASS halfvec_cosine_ops USING bq IS 'cosine distance';

CREATE OPERATOR CLASS halfvec_ip_ops
	FOR TYPE halfvec USING bq AS
	OPERATOR 3 <#> (halfvec, halfvec) FOR ORDER BY float_ops,
	FUNCTION 1 (halfvec, halfvec) bq_halfvec_source(internal);
COMMENT ON OPERATOR CLASS halfvec_ip_ops USING bq IS 'negative inner product';

CREATE OPERATOR CLASS halfvec_l2_ops
	FOR TYPE halfvec USING bq AS
	OPERATOR 4 <-> (halfvec, halfvec) FOR ORDER BY float_ops,
	FUNCTION 1 (halfvec, halfvec) bq_halfvec_source(internal);
COMMENT ON OPERATOR CLASS halfvec_l2_ops USING bq IS 'Euclidean distance';
