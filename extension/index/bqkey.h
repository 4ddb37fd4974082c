/*
 * bqkey.h: filter columns: a key of four bytes for each value, kept beside the codes.
 *
 * Keys are compared as unsigned numbers.  Of types with an order they keep it: a smaller
 * value never has a larger key.  What fits four bytes has a key of its own, other values
 * share them, and rows found by those are checked again by the executor.
 */
#ifndef BQKEY_H
#define BQKEY_H

#include "access/skey.h"
#include "index/bqindex.h"

/* Support function of operator classes for filter columns: returns a BqKeyType. */
#define BQ_KEY_PROC 2

typedef struct BqKeyType
{
	/*
	 * The key of a value of `type`, which the operator class can compare with the column.  A
	 * value beyond those of the column has the nearest key and *beyond -1 or 1.
	 */
	uint32		(*key) (Datum value, Oid type, Oid collation, int *beyond);
	bool		exact;			/* different values have different keys */
} BqKeyType;

extern const BqKeyType *bq_get_key_type(Relation index, int column);
extern void bq_make_keys(Relation index, const Datum *values, const bool *isnull, BqRow *row);

/* What the conditions of a query ask of the keys. */
typedef struct BqRange
{
	uint32		low;
	uint32		width;			/* keys from low to low + width */
} BqRange;

typedef struct BqCondition
{
	int			column;			/* of the filter columns, from 0 */
	bool		wants_null;		/* IS NULL, and nothing else */
	int			nranges;		/* any of them; IS NOT NULL has one of all keys */
	BqRange    *ranges;
} BqCondition;

typedef struct BqFilter
{
	int			nconditions;	/* all of them */
	BqCondition *conditions;
	bool		lossy;			/* rows must be checked again */
	bool		never;			/* no row can match */
} BqFilter;

extern BqFilter *bq_make_filter(IndexScanDesc scan);
extern uint32 bq_match_block(const BqFilter *filter, const BqBlockData *block);

#endif							/* BQKEY_H */
