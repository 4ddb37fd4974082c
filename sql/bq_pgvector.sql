-- bq_pgvector: access method bq on pgvector's types.  The operator classes have the names that
-- pgvector gives those of hnsw: CREATE INDEX ... USING bq (embedding vector_cosine_ops).

\echo Use "CREATE EXTENSION bq_pgvector" to load this file. \quit

-- What is named below must be pgvector's.  The schema of this extension, and that of bq, are searched
-- before pgvector's, and whoever creates it need not be a superuser, as whom the script runs: a
-- type of theirs would be read by C code, an operator of theirs called by everybody's queries.
DO $$
DECLARE
	stranger text;
BEGIN
	SELECT pg_catalog.format('%s %s', its.type, its.identity) INTO stranger
	FROM (SELECT 'pg_type'::regclass::oid, name::regtype::oid
		  FROM pg_catalog.unnest('{vector,halfvec}'::text[]) AS name
		  UNION ALL
		  SELECT 'pg_operator'::regclass::oid,
			  pg_catalog.format('%1$s(%2$s,%2$s)', sign, name)::regoperator::oid
		  FROM pg_catalog.unnest('{<=>,<#>,<->}'::text[]) AS sign,
			  pg_catalog.unnest('{vector,halfvec}'::text[]) AS name) AS used(class, object),
		pg_catalog.pg_identify_object(used.class, used.object, 0) AS its
	WHERE NOT EXISTS (
		SELECT FROM pg_depend AS d JOIN pg_extension AS e ON e.oid = d.refobjid
		WHERE d.classid = used.class AND d.objid = used.object AND d.deptype = 'e'
			AND d.refclassid = 'pg_extension'::regclass::oid AND e.extname = 'vector');
	IF stranger IS NOT NULL THEN
		RAISE EXCEPTION '% is not of extension "vector"', stranger
			USING ERRCODE = 'duplicate_object',
				HINT = 'Drop or rename it, or create the extension in another schema.';
	END IF;
END
$$;

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
