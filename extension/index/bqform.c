/* bqform.c: what an index keeps of a value of its column. */
#include "postgres.h"

#include <math.h>

#include "index/bqindex.h"
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

/* A row whose value is a code. */
BqRow
bq_form_row(const BqHeader *header, const uint8 *planes, ItemPointer tid)
{
	BqRow		row;

	row.tid = *tid;
	row.norm = header->norm;
	row.inverse = bq_inverse_pack(planes, header->dim, header->norm);
	row.planes = planes;
	return row;
}
