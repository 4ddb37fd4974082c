/* bqstatistics.h: statistics of vectors while they are collected, and as a row. */
#ifndef BQSTATISTICS_H
#define BQSTATISTICS_H

#include "postgres.h"

#include "core/bqmoments.h"
#include "core/bqsearch.h"
#include "fmgr.h"

typedef struct BqStatistics
{
	int			dim;
	int64		count;
	double	   *values;			/* BQ_MOMENTS rows of dim */
	BqSearches	searches;		/* of windows that were full */
	int64		row;			/* rows that came one by one */
	float	   *window;			/* rows of the window that is not full, or NULL */
	int			nwindow;
	int			window_capacity;
	uint8	   *planes;			/* scratch of accumulating: the code of a row, */
	float4	   *decoded;		/* what it stands for, */
	float4	   *scaled;			/* and the row with norm 1 */
} BqStatistics;

#define VALUES_NBYTES(dim) (sizeof(double) * BQ_MOMENTS * (size_t) (dim))

extern BqStatistics *bq_new_statistics(int dim);
extern void bq_add_row(BqStatistics *statistics, const float4 *x, float4 *scaled);
extern bool bq_statistics_are_possible(const BqStatistics *statistics);
extern Datum bq_form_statistics(FunctionCallInfo fcinfo, BqStatistics *statistics);

#endif							/* BQSTATISTICS_H */
