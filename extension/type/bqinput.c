/* bqinput.c: checks that every value from outside passes, in one wording each. */
#include "postgres.h"

#include <math.h>

#include "catalog/pg_type.h"
#include "nodes/nodes.h"
#include "type/bqvec.h"

#define BQ_WHITE_SPACE " \t\n\r\v\f"

/* SQLSTATE of what the core found wrong. */
int
bq_status_sqlstate(BqStatus status)
{
	return status == BQ_NORM_RANGE ? ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE : ERRCODE_DATA_EXCEPTION;
}

/* Error out unless the core found everything right. */
void
bq_check_status(BqStatus status)
{
	if (unlikely(status != BQ_OK))
		ereport(ERROR,
				(errcode(bq_status_sqlstate(status)),
				 errmsg("%s", bq_status_message(status))));
}

/* Error of bq_check_comparable(), kept out of its callers' loops. */
void
bq_check_comparable_failed(const BqHeader *a, const BqHeader *b)
{
	if (a->dim != b->dim)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_EXCEPTION),
				 errmsg("different bqvec dimensions %d and %d", a->dim, b->dim)));
	ereport(ERROR,
			(errcode(ERRCODE_DATA_EXCEPTION),
			 errmsg("different transforms %d and %d", a->transform, b->transform),
			 errhint("Give bq_query() or bq_encode() the transform of the stored codes; "
					 "transform(code) tells it.")));
}

/* Is this a number of dimensions that a code can have? */
bool
bq_check_dim(int64 dim, int sqlstate, struct Node *escontext)
{
	if (dim < 1 || dim > BQ_MAX_DIM)
		ereturn(escontext, false,
				(errcode(sqlstate),
				 errmsg("%s, not %lld", bq_status_message(BQ_BAD_DIM), (long long) dim)));
	return true;
}

/* Does a value fit the dimensions and the transform declared for its column? */
bool
bq_check_typmod(int32 typmod, int dim, int transform, struct Node *escontext)
{
	int			column_dim = bq_typmod_dim(typmod);
	int			column_transform = bq_typmod_transform(typmod);

	if (column_dim >= 0 && column_dim != dim)
		ereturn(escontext, false,
				(errcode(ERRCODE_DATA_EXCEPTION),
				 errmsg("expected %d dimensions, not %d", column_dim, dim)));
	if (column_transform >= 0 && column_transform != transform)
		ereturn(escontext, false,
				(errcode(ERRCODE_DATA_EXCEPTION),
				 errmsg("expected transform %d, not %d", column_transform, transform),
				 errhint("Encode for a column of type bqvec(%d,%d) with bq_encode(vector, %d).",
						 column_dim, column_transform, column_transform)));
	return true;
}

int
bq_check_transform(int32 transform)
{
	if (transform < 0 || transform > BQ_MAX_TRANSFORM)
		ereport(ERROR,
				(errcode(ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE),
				 errmsg("transform must be between 0 and %d, not %d",
						BQ_MAX_TRANSFORM, transform)));
	return transform;
}

/* The values of a real[] that is a vector; NaN and infinity are the core's to find. */
const float4 *
bq_check_array(ArrayType *array, int *dim)
{
	Assert(ARR_ELEMTYPE(array) == FLOAT4OID);

	if (ARR_NDIM(array) > 1)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_EXCEPTION),
				 errmsg("array must be one-dimensional, not of %d dimensions", ARR_NDIM(array))));
	if (array_contains_nulls(array))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("array must not contain nulls")));
	*dim = ARR_NDIM(array) == 0 ? 0 : ARR_DIMS(array)[0];
	(void) bq_check_dim(*dim, ERRCODE_DATA_EXCEPTION, NULL);
	return (const float4 *) ARR_DATA_PTR(array);
}

/* Read the "transform:" that a value of `type` starts with; *position goes behind the colon. */
bool
bq_parse_transform(const char *type, const char *input, const char **position, uint16 *transform,
				   struct Node *escontext)
{
	const char *start = input + strspn(input, BQ_WHITE_SPACE);
	size_t		ndigits = strspn(start, "0123456789");
	long		value = strtol(start, NULL, 10);	/* LONG_MAX if too long */

	if (ndigits == 0 || start[ndigits] != ':')
		return bq_syntax_error(type, input, escontext);
	if (value > BQ_MAX_TRANSFORM)
		ereturn(escontext, false,
				(errcode(ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE),
				 errmsg("transform must be between 0 and %d, not %.*s",
						BQ_MAX_TRANSFORM, (int) ndigits, start)));
	*transform = (uint16) value;
	*position = start + ndigits + 1;
	return true;
}

/*
 * Read a float4 and the white space around it; *position goes behind them.  As in
 * float4in(), what does not fit is an error but a denormal is not; NaN and infinity
 * pass here and are the core's to reject.
 */
bool
bq_parse_float(const char *type, const char *input, const char **position, float4 *value,
			   struct Node *escontext)
{
	const char *start = *position;
	char	   *end;

	errno = 0;
	*value = strtof(start, &end);
	if (end == start)
		return bq_syntax_error(type, input, escontext);
	if (errno == ERANGE && (*value == 0 || isinf(*value)))
		ereturn(escontext, false,
				(errcode(ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE),
				 errmsg("\"%.*s\" is out of range for type real", (int) (end - start), start)));
	*position = end + strspn(end, BQ_WHITE_SPACE);
	return true;
}

/* Check that nothing but white space is left. */
bool
bq_parse_end(const char *type, const char *input, const char *position, struct Node *escontext)
{
	if (position[strspn(position, BQ_WHITE_SPACE)] != '\0')
		return bq_syntax_error(type, input, escontext);
	return true;
}

/* Always false, so that callers can return it. */
bool
bq_syntax_error(const char *type, const char *input, struct Node *escontext)
{
	ereturn(escontext, false,
			(errcode(ERRCODE_INVALID_TEXT_REPRESENTATION),
			 errmsg("invalid input syntax for type %s: \"%s\"", type, input)));
}

/*
 * The rotation of a transform, NULL for the original axes.  The last one is kept: a
 * statement encodes with one transform.
 */
const BqRotation *
bq_get_rotation(int dim, int transform)
{
	static BqRotation rotation;	/* dim 0 until first used */

	if (transform == 0)
		return NULL;
	if (rotation.dim != dim || rotation.transform != transform)
		bq_rotation_init(&rotation, dim, transform);
	return &rotation;
}
