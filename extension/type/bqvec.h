/*
 * bqvec.h: the SQL types `bqvec` (a packed code) and `bqquery` (a prepared query) as
 * varlenas, and the checks that both share.
 */
#ifndef BQVEC_H
#define BQVEC_H

#include "access/tupdesc.h"
#include "bq.h"
#include "core/bqencode.h"
#include "utils/array.h"

/*
 * A code.  Values in tables may have a 1-byte varlena header and then no alignment:
 * look at them through bqvec_view() only.  In memory and on disk the header is in
 * native byte order; on the wire it is the payload of core/bqcode.h.
 */
typedef struct BqVec
{
	int32		vl_len_;		/* varlena header (do not touch directly) */
	BqHeader	header;			/* dim, transform, norm */
	uint8		planes[FLEXIBLE_ARRAY_MEMBER];	/* sign plane, magnitude plane */
} BqVec;

/* A query, always read unpacked: the kernels want aligned floats. */
typedef struct BqQuery
{
	int32		vl_len_;		/* varlena header (do not touch directly) */
	BqHeader	header;			/* norm is |values|, worked out on input */
	float4		values[FLEXIBLE_ARRAY_MEMBER];	/* dim of them, rotated if transform > 0 */
} BqQuery;

StaticAssertDecl(sizeof(BqHeader) == BQ_HEADER_NBYTES,
				 "header of a bqvec must have the size of the payload's");

#define BQVEC_SIZE(dim) (offsetof(BqVec, planes) + bq_planes_nbytes(dim))
#define BQQUERY_SIZE(dim) (offsetof(BqQuery, values) + (size_t) (dim) * sizeof(float4))

/* The varlena as stored, detoasted only if it has to be. */
#define PG_GETARG_BQVEC_PP(n) ((struct varlena *) PG_DETOAST_DATUM_PACKED(PG_GETARG_DATUM(n)))
#define PG_GETARG_BQQUERY_P(n) \
	bqquery_check_length((BqQuery *) PG_DETOAST_DATUM(PG_GETARG_DATUM(n)))
#define PG_RETURN_BQVEC_P(x) PG_RETURN_POINTER(x)
#define PG_RETURN_BQQUERY_P(x) PG_RETURN_POINTER(x)

/* A code where it lies: a copy of its header, and a pointer to its planes. */
typedef struct BqVecView
{
	BqHeader	header;
	const uint8 *planes;
} BqVecView;

static inline BqVecView
bqvec_view(const struct varlena *code)
{
	const uint8 *body = (const uint8 *) VARDATA_ANY(code);
	BqVecView	view;

	Assert(!VARATT_IS_EXTERNAL(code) && !VARATT_IS_COMPRESSED(code));
	memcpy(&view.header, body, sizeof(BqHeader));
	view.planes = body + sizeof(BqHeader);
	/* one comparison between a damaged page and reads past the value */
	if (unlikely(VARSIZE_ANY_EXHDR(code) != bq_nbytes(view.header.dim)))
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("bqvec of %d dimensions has %zu bytes, expected %zu", view.header.dim,
						(size_t) VARSIZE_ANY_EXHDR(code), bq_nbytes(view.header.dim))));
	return view;
}

/* A query that is detoasted; the same for its length. */
static inline BqQuery *
bqquery_check_length(BqQuery *query)
{
	if (unlikely(VARSIZE(query) != BQQUERY_SIZE(query->header.dim)))
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("bqquery of %d dimensions has %zu bytes, expected %zu", query->header.dim,
						(size_t) VARSIZE(query) - VARHDRSZ,
						BQQUERY_SIZE(query->header.dim) - VARHDRSZ)));
	return query;
}

/*
 * Type modifier: dimensions in the low 14 bits; bqvec(dim, transform) has the transform in the
 * next 16, and one bit that says so.  -1 is none of them.
 */
#define BQ_TYPMOD_DIM_BITS 14
#define BQ_TYPMOD_HAS_TRANSFORM (1 << 30)

StaticAssertDecl(BQ_MAX_DIM < (1 << BQ_TYPMOD_DIM_BITS) &&
				 BQ_MAX_TRANSFORM < (BQ_TYPMOD_HAS_TRANSFORM >> BQ_TYPMOD_DIM_BITS),
				 "dimensions and transform must fit a type modifier");

/* Dimensions that a type modifier asks for, -1 if it does not. */
static inline int
bq_typmod_dim(int32 typmod)
{
	return typmod < 0 ? -1 : typmod & ((1 << BQ_TYPMOD_DIM_BITS) - 1);
}

/* Transform that a type modifier asks for, -1 if it does not. */
static inline int
bq_typmod_transform(int32 typmod)
{
	if (typmod < 0 || !(typmod & BQ_TYPMOD_HAS_TRANSFORM))
		return -1;
	return (typmod & ~BQ_TYPMOD_HAS_TRANSFORM) >> BQ_TYPMOD_DIM_BITS;
}

/* bqinput.c: one wording per mistake */
extern int	bq_status_sqlstate(BqStatus status);
extern void bq_check_status(BqStatus status);
extern void bq_check_comparable_failed(const BqHeader *a, const BqHeader *b);
extern bool bq_check_dim(int64 dim, int sqlstate, struct Node *escontext);
extern bool bq_check_typmod(int32 typmod, int dim, int transform, struct Node *escontext);
extern int	bq_check_transform(int32 transform);
extern const float4 *bq_check_array(ArrayType *array, int *dim);
extern bool bq_parse_transform(const char *type, const char *input, const char **position,
							   uint16 *transform, struct Node *escontext);
extern bool bq_parse_float(const char *type, const char *input, const char **position,
						   float4 *value, struct Node *escontext);
extern bool bq_parse_end(const char *type, const char *input, const char *position,
						 struct Node *escontext);
extern bool bq_syntax_error(const char *type, const char *input, struct Node *escontext);
extern const BqRotation *bq_get_rotation(int dim, int transform);

/* Codes, or a code and a query, can be compared only if they lie in the same space. */
static inline void
bq_check_comparable(const BqHeader *a, const BqHeader *b)
{
	if (unlikely(a->dim != b->dim || a->transform != b->transform))
		bq_check_comparable_failed(a, b);
}

/* bqvec_io.c */
extern BqVec *bqvec_alloc(int dim, int transform);
extern int32 bq_column_typmod(TupleDesc tupdesc, AttrNumber column);

/* bqvec_cast.c */
extern BqVec *bqvec_encode_array(ArrayType *array, int32 transform, BqCut cut);

#endif							/* BQVEC_H */
