/*
 * bqform.c: what an index keeps of a value of its column.
 *
 * Of a code: the code.  Of a vector: its code by the transform of the index, and, in the
 * place of the code's inverse length, the inverse of <x, levels> / |x|.  With it the
 * estimate of a cosine, <q, levels> / <x, levels> * |x|, is right on average (RaBitQ, arXiv
 * 2405.12497); a code alone cannot tell it.
 */
#include "postgres.h"

#include <math.h>

#include "index/bqsource.h"
#include "type/bqvec.h"

/* 1 / length of the level values, in BQ_INVERSE_UNIT / sqrt(dim); 0 for norm 0. */
uint16
bq_inverse_pack(const uint8 *planes, int dim, float norm)
{
	if (norm == 0)
		return 0;
	return (uint16) (sqrt(dim) / bq_decoded_norm(planes, dim) / BQ_INVERSE_UNIT + 0.5);
}

/* Does a code belong into, or a query fit, this index? */
void
bq_check_code(Relation index, const BqLayout *layout, const BqHeader *header)
{
	if (header->dim != layout->dim)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_EXCEPTION),
				 errmsg("expected %d dimensions, not %d", layout->dim, header->dim)));
	if (layout->transform >= 0 && header->transform != layout->transform)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_EXCEPTION),
				 errmsg("different transforms %d and %d", layout->transform, header->transform),
				 errdetail("All codes of index \"%s\" have transform %d.",
						   RelationGetRelationName(index), layout->transform),
				 errhint("Encode codes and queries of a column with the same transform.")));
}

/*
 * Make a row of a code; returns what it says of itself.  Whether that fits the index is for the
 * caller to check, who knows what it means if not.  Detoasts into the current memory context.
 */
BqHeader
bq_form_code(Datum value, ItemPointer tid, BqRow *row)
{
	BqVecView	code = bqvec_view(PG_DETOAST_DATUM_PACKED(value));

	row->tid = *tid;
	row->norm = code.header.norm;
	row->inverse = bq_inverse_pack(code.planes, code.header.dim, code.header.norm);
	row->planes = code.planes;
	return code.header;
}

/*
 * Rows of vectors
 */

/* Prepare to make rows; in the current memory context, which must outlive it. */
BqForm *
bq_begin_forming(Relation index, int dim, int transform)
{
	BqForm	   *form = (BqForm *) palloc0(sizeof(BqForm));

	form->source = bq_get_source(index);
	form->dim = dim;
	form->metric = bq_index_metric(index);
	form->transform = transform;
	form->room = (float *) palloc(dim * sizeof(float));
	form->rotated = (float *) palloc(dim * sizeof(float));
	form->planes = (uint8 *) palloc(bq_planes_nbytes(dim));
	return form;
}

/* 1 / (<x, levels> / |x|), in BQ_VECTOR_INVERSE_UNIT / sqrt(dim); at most what fits. */
static uint16
pack_projection(const float *x, const uint8 *planes, int dim, float norm)
{
	double		projection;
	double		packed;

	if (norm == 0)
		return 0;
	projection = bq_inner_product(x, planes, dim, 1) * bq_decoded_norm(planes, dim) / norm;
	packed = sqrt(dim) / projection / BQ_VECTOR_INVERSE_UNIT;
	/* signs agree, so it is positive; tiny vectors may have lost their digits */
	return packed > 0 && packed < UINT16_MAX ? (uint16) (packed + 0.5) : UINT16_MAX;
}

/*
 * Make a row of a vector; its code stays until the next call.  False if the index leaves the
 * vector out: cosine distances from the zero vector are NaN, and pgvector's indexes do so.
 * Leaves copies of toasted values behind in the current memory context.
 */
bool
bq_form_vector(BqForm *form, Datum value, ItemPointer tid, BqRow *row)
{
	const float *x = bq_read_vector(form->source, value, form->dim, form->room);
	/* the cached one, which others may have changed since the last row */
	const BqRotation *rotation = bq_get_rotation(form->dim, form->transform);

	bq_check_status(bq_encode(x, form->dim, BQ_CUT_RMS, rotation, form->rotated,
							  form->planes, &row->norm));
	if (row->norm == 0 && form->metric == BQ_STRATEGY_COSINE)
		return false;
	if (rotation != NULL)
	{
		/* as bq_encode() leaves it: perhaps scaled, which a ratio does not show */
		float		norm = (float) sqrt(bq_kernel->sum_squares(form->rotated, form->dim));

		row->inverse = row->norm == 0 ? 0 :
			pack_projection(form->rotated, form->planes, form->dim, norm);
	}
	else
		row->inverse = pack_projection(x, form->planes, form->dim, row->norm);
	row->tid = *tid;
	row->planes = form->planes;
	return true;
}
