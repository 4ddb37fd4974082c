/* bqsource.c: columns that can be indexed, their types of vectors, and reading their values. */
#include "postgres.h"

#include "catalog/pg_amop.h"
#include "catalog/pg_opfamily.h"
#include "core/bqhalf.h"
#include "index/bqkey.h"
#include "index/bqsource.h"
#include "type/bqvec.h"
#include "utils/lsyscache.h"

/* pgvector's vector and halfvec: header, number of elements, unused, elements. */
typedef struct VectorHeader
{
	int32		vl_len_;		/* varlena header (do not touch directly) */
	int16		dim;
	int16		unused;
} VectorHeader;

static const float *
read_floats(const char *elements, int n, float *room)
{
	(void) n;
	(void) room;
	return (const float *) elements;
}

static const float *
read_halfs(const char *elements, int n, float *room)
{
	bq_widen_half((const uint16 *) elements, room, n);
	return room;
}

static const BqSource vector_source = {"vector", sizeof(float), read_floats};
static const BqSource halfvec_source = {"halfvec", sizeof(uint16), read_halfs};

PG_FUNCTION_INFO_V1(bq_vector_source);
Datum
bq_vector_source(PG_FUNCTION_ARGS)
{
	(void) fcinfo;
	PG_RETURN_POINTER(&vector_source);
}

PG_FUNCTION_INFO_V1(bq_halfvec_source);
Datum
bq_halfvec_source(PG_FUNCTION_ARGS)
{
	(void) fcinfo;
	PG_RETURN_POINTER(&halfvec_source);
}

/* How an index reads its column; NULL if that has codes. */
const BqSource *
bq_get_source(Relation index)
{
	if (!OidIsValid(index_getprocid(index, 1, BQ_SOURCE_PROC)))
		return NULL;
	return (const BqSource *)
		DatumGetPointer(FunctionCall1(index_getprocinfo(index, 1, BQ_SOURCE_PROC),
									  PointerGetDatum(NULL)));
}

/* The one distance that an index on vectors is for: the strategy of its operator class. */
int
bq_index_metric(Relation index)
{
	for (int strategy = BQ_STRATEGY_COSINE; strategy <= BQ_DISTANCES; strategy++)
		if (OidIsValid(get_opfamily_member(index->rd_opfamily[0], index->rd_opcintype[0],
										   index->rd_opcintype[0], strategy)))
			return strategy;
	elog(ERROR, "operator class of index \"%s\" has no distance", RelationGetRelationName(index));
	return 0;					/* keep compiler quiet */
}

/* The function of that distance's operator. */
void
bq_distance_function(Relation index, int metric, FmgrInfo *function, Oid *collation)
{
	Oid			type = index->rd_opcintype[0];
	Oid			operator = get_opfamily_member(index->rd_opfamily[0], type, type, metric);

	if (!OidIsValid(operator))
		elog(ERROR, "operator class of index \"%s\" has no distance",
			 RelationGetRelationName(index));
	fmgr_info(get_opcode(operator), function);
	*collation = index->rd_indcollation[0];
}

/*
 * The elements of a value, which must have `dim` of them.  They lie in the value itself, in a
 * copy of it that was made to detoast it, or in `room`.
 */
const float *
bq_read_vector(const BqSource *source, Datum value, int dim, float *room)
{
	const VectorHeader *vector = (const VectorHeader *) PG_DETOAST_DATUM(value);
	Size		nbytes = VARSIZE(vector);

	if (nbytes < sizeof(VectorHeader) || vector->dim < 1 ||
		nbytes != sizeof(VectorHeader) + vector->dim * source->element_nbytes)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("%s of %d dimensions has %zu bytes", source->type,
						nbytes < sizeof(VectorHeader) ? 0 : vector->dim, nbytes)));
	if (vector->dim != dim)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_EXCEPTION),
				 errmsg("different %s dimensions %d and %d", source->type, dim, vector->dim)));
	return source->read((const char *) (vector + 1), dim, room);
}

/* Dimensions of the column of an index that is being built; an error says what it lacks. */
int
bq_column_dim(Relation index)
{
	/* pgvector's types have no other modifier either */
	int			dim = bq_typmod_dim(bq_column_typmod(RelationGetDescr(index), 1));
	const BqSource *source = bq_get_source(index);
	const char *type = source != NULL ? source->type : "bqvec";
	bool		expression = index->rd_index->indkey.values[0] == InvalidAttrNumber;
	/* that of CREATE INDEX CONCURRENTLY has been committed, and is valid only in the end */
	const char *leftover = index->rd_index->indisvalid ? "" :
		psprintf(" First drop index \"%s\", which is left invalid.",
				 RelationGetRelationName(index));

	if (OidIsValid(index_getprocid(index, 1, BQ_KEY_PROC)))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("first column of a bq index must have vectors or codes"),
				 errhint("Name it before the columns to filter by.")));

	if (dim < 1 && expression)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("expression does not have dimensions"),
				 errhint("Cast it to a type that has them, for example (%s::%s(384)).%s",
						 source != NULL ? "embedding" : "bq_encode(embedding::real[], 1)", type,
						 leftover)));
	if (dim < 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("column does not have dimensions"),
				 errhint("Declare it with them, for example with ALTER TABLE ... ALTER COLUMN ... TYPE %s(384).%s",
						 type, leftover)));
	if (dim > BQ_INDEX_MAX_DIM)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("column cannot have more than %d dimensions for a bq index",
						BQ_INDEX_MAX_DIM)));
	return dim;
}
