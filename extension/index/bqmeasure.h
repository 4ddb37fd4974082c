/*
 * bqmeasure.h: measuring how far queries must go, shared by the files that do:
 *
 *	bqmeasure.c		rows of the table as queries, and their true neighbours
 *	bqneighbour.c	neighbours by their codes
 *	bqfigure.c		from what is known of neighbours to the figures of a BqModel
 *	bqmodel.c		a query's choice from the figures
 */
#ifndef BQMEASURE_H
#define BQMEASURE_H

#include "index/bqscan.h"

/* Rows of the table that are queries. */
#define BQ_QUERIES 256

/*
 * Neighbours up to this one tell how far estimates err beyond the first ones: so many may be
 * lost among bq_count_candidates() that few are.
 */
#define BQ_LATER_NEIGHBOURS 30

/*
 * Neighbours by their codes; among them are practically all of the true ten, and the
 * BQ_MARGIN_RANKth.  Codes of few dimensions tell rows apart less well.
 */
static inline int
bq_count_candidates(int dim)
{
	return Max(100, 16000 / Max(dim, 8));
}

/* The recalls that BqModel has figures for. */
extern const double bq_recalls[BQ_RECALLS];

typedef struct BqNeighbour
{
	double		key;			/* grows with the distance; norms may be beyond floats */
	uint32		list;
	size_t		row;
} BqNeighbour;

typedef struct BqQueries
{
	const BqRows *rows;
	const uint32 *lists;		/* of each row; NULL: there is but one */
	int			dim;
	double		inverse_unit;
	uint32		nqueries;
	size_t	   *self;			/* the row that each query is */
	BqTable    *tables;			/* of queries of length 1 */
	float	   *lengths;		/* that they had before */
	BqStop	  (*stops)[BQ_MAX_STOPS];
	int			nstops;
	int			ncandidates;	/* of each query: bq_count_candidates() */
} BqQueries;

/* A neighbour of a query, and its slack. */
typedef struct BqTrueNeighbour
{
	const BqNeighbour *neighbour;
	double		cosine;			/* by its code */
	float		slack;
	float		deviations;
} BqTrueNeighbour;

/* What is known of one neighbour. */
typedef struct BqFinding
{
	float		lists;			/* its list comes after so many ... */
	float		margin;			/* ... and is so much further than the BQ_MARGIN_RANKth row */
	float		groups;			/* so many are nearer than that of its list */
	float		slack;			/* with so much it is found before a query for all is over */
	float		deviations;		/* with so many its block is read to the end */
} BqFinding;

typedef struct BqFigures
{
	BqFinding  *findings;
	size_t		n;
	float	   *margins;		/* up to each list of each query: BqMetaPageData.margins */
	size_t		nmargins;
	float	   *slacks;			/* of all candidates that were compared */
	size_t		nslacks;
	float	   *later_slacks;	/* of neighbours beyond the tenth */
	size_t		nlater;
	size_t		ntoasted;		/* of them, with values out of line */
	uint32		nqueries;
	bool		stops;			/* blocks may be left half read (bqstop.c) */
	bool		groups;			/* lists are found by groups (bqorder.c) */
	double		gap;			/* sum of BqModel.gap */
} BqFigures;

/* The key of a row by the estimate of its cosine with the query. */
static inline double
bq_estimate_key(int metric, double cosine, double norm, double length)
{
	switch (metric)
	{
		case BQ_STRATEGY_IP:
			return -cosine * norm * length;
		case BQ_STRATEGY_L2:
			return norm * (norm - 2 * cosine * length);
		default:
			return -cosine;
	}
}

/* bqneighbour.c: the nearest first; a query's of too few rows end with row SIZE_MAX */
extern BqNeighbour *bq_find_neighbours(const BqQueries *s, int metric);

/* bqfigure.c */
extern BqFigures *bq_new_figures(const BqQueries *s, uint32 nlists);
extern void bq_add_figures(BqFigures *f, const float *scores, uint32 nlists,
						   const float *group_scores, uint32 ngroups, double reached,
						   const BqTrueNeighbour *neighbours, int n);
extern bool bq_fill_model(BqFigures *f, bool by_margin, bool exact, double rows_per_list,
						  BqLayout *layout, uint32 *nprobes);

#endif							/* BQMEASURE_H */
