/* bqvec_ops.c: code against code: distances, order, hash; accessors. */
#include "postgres.h"

#include "common/hashfn.h"
#include "core/bqhamming.h"
#include "type/bqvec.h"

typedef uint32_t (*CodeDistance) (const uint8_t *a, const uint8_t *b, int dim);

/* Inlined into each distance below, so that `distance` is no second indirect call. */
static pg_attribute_always_inline Datum
code_distance(FunctionCallInfo fcinfo, CodeDistance distance)
{
	struct varlena *first = PG_GETARG_BQVEC_PP(0);
	struct varlena *second = PG_GETARG_BQVEC_PP(1);
	BqVecView	a = bqvec_view(first);
	BqVecView	b = bqvec_view(second);
	double		result;

	bq_check_comparable(&a.header, &b.header);
	result = distance(a.planes, b.planes, a.header.dim);

	PG_FREE_IF_COPY(first, 0);
	PG_FREE_IF_COPY(second, 1);
	PG_RETURN_FLOAT8(result);
}

PG_FUNCTION_INFO_V1(bqvec_hamming_distance);

/* SQL: hamming_distance(bqvec, bqvec), <~>: sum of level differences */
Datum
bqvec_hamming_distance(PG_FUNCTION_ARGS)
{
	return code_distance(fcinfo, bq_hamming);
}

PG_FUNCTION_INFO_V1(bqvec_sign_distance);

/* SQL: sign_distance(bqvec, bqvec): number of differing signs */
Datum
bqvec_sign_distance(PG_FUNCTION_ARGS)
{
	return code_distance(fcinfo, bq_hamming_sign);
}

PG_FUNCTION_INFO_V1(bqvec_quiver_distance);

/* SQL: quiver_distance(bqvec, bqvec): differing signs count 1, 2 or 4 */
Datum
bqvec_quiver_distance(PG_FUNCTION_ARGS)
{
	return code_distance(fcinfo, bq_hamming_quiver);
}

/*
 * A total order, that of the payload's bytes: dim, transform, norm, planes.  It says
 * nothing about nearness; it is there for DISTINCT, GROUP BY, merge joins.  Two codes
 * are equal exactly if their bytes are (norm is never NaN or -0).
 */
static int
compare(FunctionCallInfo fcinfo)
{
	struct varlena *first = PG_GETARG_BQVEC_PP(0);
	struct varlena *second = PG_GETARG_BQVEC_PP(1);
	BqVecView	a = bqvec_view(first);
	BqVecView	b = bqvec_view(second);
	int			result;

	if (a.header.dim != b.header.dim)
		result = a.header.dim < b.header.dim ? -1 : 1;
	else if (a.header.transform != b.header.transform)
		result = a.header.transform < b.header.transform ? -1 : 1;
	else if (a.header.norm != b.header.norm)
		result = a.header.norm < b.header.norm ? -1 : 1;
	else
		result = memcmp(a.planes, b.planes, bq_planes_nbytes(a.header.dim));

	PG_FREE_IF_COPY(first, 0);
	PG_FREE_IF_COPY(second, 1);
	return result;
}

PG_FUNCTION_INFO_V1(bqvec_lt);

Datum
bqvec_lt(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(compare(fcinfo) < 0);
}

PG_FUNCTION_INFO_V1(bqvec_le);

Datum
bqvec_le(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(compare(fcinfo) <= 0);
}

PG_FUNCTION_INFO_V1(bqvec_eq);

Datum
bqvec_eq(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(compare(fcinfo) == 0);
}

PG_FUNCTION_INFO_V1(bqvec_ne);

Datum
bqvec_ne(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(compare(fcinfo) != 0);
}

PG_FUNCTION_INFO_V1(bqvec_ge);

Datum
bqvec_ge(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(compare(fcinfo) >= 0);
}

PG_FUNCTION_INFO_V1(bqvec_gt);

Datum
bqvec_gt(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(compare(fcinfo) > 0);
}

PG_FUNCTION_INFO_V1(bqvec_cmp);

Datum
bqvec_cmp(PG_FUNCTION_ARGS)
{
	PG_RETURN_INT32(compare(fcinfo));
}

PG_FUNCTION_INFO_V1(bqvec_hash);

Datum
bqvec_hash(PG_FUNCTION_ARGS)
{
	struct varlena *code = PG_GETARG_BQVEC_PP(0);
	Datum		result = hash_any((unsigned char *) VARDATA_ANY(code), VARSIZE_ANY_EXHDR(code));

	PG_FREE_IF_COPY(code, 0);
	return result;
}

PG_FUNCTION_INFO_V1(bqvec_hash_extended);

Datum
bqvec_hash_extended(PG_FUNCTION_ARGS)
{
	struct varlena *code = PG_GETARG_BQVEC_PP(0);
	Datum		result = hash_any_extended((unsigned char *) VARDATA_ANY(code),
										   VARSIZE_ANY_EXHDR(code), PG_GETARG_INT64(1));

	PG_FREE_IF_COPY(code, 0);
	return result;
}

PG_FUNCTION_INFO_V1(bqvec_dims);

/* SQL: vector_dims(bqvec) */
Datum
bqvec_dims(PG_FUNCTION_ARGS)
{
	PG_RETURN_INT32(bqvec_view(PG_GETARG_BQVEC_PP(0)).header.dim);
}

PG_FUNCTION_INFO_V1(bqvec_norm);

/* SQL: vector_norm(bqvec): norm of the vector that was encoded */
Datum
bqvec_norm(PG_FUNCTION_ARGS)
{
	PG_RETURN_FLOAT8(bqvec_view(PG_GETARG_BQVEC_PP(0)).header.norm);
}

PG_FUNCTION_INFO_V1(bqvec_transform);

/* SQL: transform(bqvec) */
Datum
bqvec_transform(PG_FUNCTION_ARGS)
{
	PG_RETURN_INT32(bqvec_view(PG_GETARG_BQVEC_PP(0)).header.transform);
}
