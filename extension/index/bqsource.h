/* bqsource.h: columns of vectors: how an index reads them, and finds them in the table. */
#ifndef BQSOURCE_H
#define BQSOURCE_H

#include "index/bqindex.h"
#include "type/bqstatistics.h"

/* Support function of operator classes on vectors: returns a BqSource. */
#define BQ_SOURCE_PROC 1

/*
 * A type of vectors.  Their distances are the operator's; what lies in a value is read here,
 * without linking the extension that defines it, so it is checked like input from outside.
 */
typedef struct BqSource
{
	const char *type;			/* its name, for messages */
	Size		element_nbytes;
	/* n elements as floats: where they lie, or in `room` */
	const float *(*read) (const char *elements, int n, float *room);
} BqSource;

/* bqsource.c */
extern const BqSource *bq_get_source(Relation index);
extern int	bq_index_metric(Relation index);
extern void bq_distance_function(Relation index, int metric, FmgrInfo *function, Oid *collation);
extern int	bq_column_dim(Relation index);
extern const float *bq_read_vector(const BqSource *source, Datum value, int dim, float *room);

/* What makes rows of vectors; see bqform.c. */
typedef struct BqForm
{
	const BqSource *source;
	int			dim;
	int			metric;			/* a strategy */
	int			transform;
	float	   *room;			/* dim floats each */
	float	   *rotated;
	uint8	   *planes;
} BqForm;

extern BqForm *bq_begin_forming(Relation index, int dim, int transform);
extern bool bq_form_vector(BqForm *form, Datum value, ItemPointer tid, BqRow *row);

/*
 * bqfetch.c: values of the indexed column from rows of the table.
 */
typedef struct BqFetch BqFetch;

extern BqFetch *bq_begin_fetching(Relation heap, Relation index, Snapshot snapshot);
extern bool bq_fetch_value(BqFetch *fetch, ItemPointer tid, Datum *value);
extern bool bq_fetch_version(BqFetch *fetch, ItemPointer tid, Datum *value);
extern ItemPointerData bq_fetched_position(const BqFetch *fetch);
extern void bq_end_fetching(BqFetch *fetch);
extern void bq_check_position(Relation index, Relation heap, const ItemPointerData *tid,
							  BlockNumber *heap_pages);

/* bqsample.c */
extern BqStatistics *bq_sample_rows(Relation heap, Relation index, struct IndexInfo *info, int dim);
extern BlockNumber bq_count_statistics_pages(int dim);
extern void bq_write_statistics(Relation index, const BqStatistics *statistics);
extern BqStatistics *bq_read_statistics(Relation index);

/* bqchoice.c */
typedef struct BqChoice
{
	BqChoiceReason reason;
	int			transform;
	BqStatistics *statistics;	/* of the sample; NULL: there is none */
} BqChoice;

extern int	bq_transform_without_rows(Relation index);
extern BqChoice bq_choose_transform(Relation heap, Relation index, struct IndexInfo *info, int dim);
extern const char *bq_tell_choice(Relation index, const BqMetaPageData *meta);
extern const char *bq_tell_drift(Relation heap, Relation index, const BqMetaPageData *meta);

#endif							/* BQSOURCE_H */
