/* bqvec_cast.c: real[] -> bqvec and back; a bqvec into a column of given dimensions. */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "type/bqvec.h"

/* Encode an array, or error out. */
BqVec *
bqvec_encode_array(ArrayType *array, int32 transform, BqCut cut)
{
	int			dim;
	const float4 *x = bq_check_array(array, &dim);
	const BqRotation *rotation = bq_get_rotation(dim, bq_check_transform(transform));
	float4	   *scratch = rotation != NULL ? palloc(sizeof(float4) * dim) : NULL;
	BqVec	   *code = bqvec_alloc(dim, transform);

	bq_check_status(bq_encode(x, dim, cut, rotation, scratch, code->planes, &code->header.norm));
	if (scratch != NULL)
		pfree(scratch);
	return code;
}

PG_FUNCTION_INFO_V1(bqvec_encode);

/* SQL: bq_encode(real[], transform) */
Datum
bqvec_encode(PG_FUNCTION_ARGS)
{
	PG_RETURN_BQVEC_P(bqvec_encode_array(PG_GETARG_ARRAYTYPE_P(0), PG_GETARG_INT32(1), BQ_CUT_RMS));
}

PG_FUNCTION_INFO_V1(bqvec_quiver_encode);

/* SQL: quiver_encode(real[], transform) */
Datum
bqvec_quiver_encode(PG_FUNCTION_ARGS)
{
	PG_RETURN_BQVEC_P(bqvec_encode_array(PG_GETARG_ARRAYTYPE_P(0), PG_GETARG_INT32(1), BQ_CUT_MEAN));
}

PG_FUNCTION_INFO_V1(array_to_bqvec);

/* Cast real[] -> bqvec: with the transform of the column, else the original axes. */
Datum
array_to_bqvec(PG_FUNCTION_ARGS)
{
	int32		typmod = PG_GETARG_INT32(1);
	int			transform = Max(bq_typmod_transform(typmod), 0);
	BqVec	   *code = bqvec_encode_array(PG_GETARG_ARRAYTYPE_P(0), transform, BQ_CUT_RMS);

	(void) bq_check_typmod(typmod, code->header.dim, transform, NULL);
	PG_RETURN_BQVEC_P(code);
}

PG_FUNCTION_INFO_V1(bqvec);

/* Cast bqvec -> bqvec(dim, transform): checks both, changes nothing. */
Datum
bqvec(PG_FUNCTION_ARGS)
{
	struct varlena *code = PG_GETARG_BQVEC_PP(0);
	BqHeader	header = bqvec_view(code).header;

	(void) bq_check_typmod(PG_GETARG_INT32(1), header.dim, header.transform, NULL);
	PG_RETURN_POINTER(code);
}

PG_FUNCTION_INFO_V1(bqvec_decode);

/* SQL: bq_decode(bqvec), on the original axes */
Datum
bqvec_decode(PG_FUNCTION_ARGS)
{
	BqVecView	code = bqvec_view(PG_GETARG_BQVEC_PP(0));
	int			dim = code.header.dim;
	Size		nbytes = ARR_OVERHEAD_NONULLS(1) + sizeof(float4) * dim;
	ArrayType  *array = palloc0(nbytes);

	SET_VARSIZE(array, nbytes);
	array->ndim = 1;
	array->dataoffset = 0;		/* no nulls */
	array->elemtype = FLOAT4OID;
	ARR_DIMS(array)[0] = dim;
	ARR_LBOUND(array)[0] = 1;
	bq_decode(code.planes, dim, code.header.norm, bq_get_rotation(dim, code.header.transform),
			  (float4 *) ARR_DATA_PTR(array));
	PG_RETURN_ARRAYTYPE_P(array);
}
