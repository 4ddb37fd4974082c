/* bqcheck.h: what bq_index_check() finds out, shared by the files that check it. */
#ifndef BQCHECK_H
#define BQCHECK_H

#include "index/bqsource.h"

/* What a block was found to be part of. */
typedef enum BqBlockUse
{
	BQ_BLOCK_LOST,				/* of nothing: left by a crash */
	BQ_BLOCK_DIRECTORY,
	BQ_BLOCK_LIST,
	BQ_BLOCK_OLD_CHAIN,
	BQ_BLOCK_FREE
} BqBlockUse;

/* What the chains are checked by, of each block. */
typedef struct BqBlockLinks
{
	uint32		list;
	uint32		epoch;
	uint32		next;
	uint32		next_free;
	bool		in_free_chain;
	bool		full;
	bool		in_free_list;	/* met by walking the list's free chain */
	uint8		use;			/* BqBlockUse */
} BqBlockLinks;

/* A row of the index, found by its position in the table. */
typedef struct BqIndexedRow
{
	ItemPointerData tid;
	uint16		slot;
	uint16		inverse;
	uint32		block;
	float		norm;
} BqIndexedRow;

typedef struct BqCheck
{
	Relation	heap;
	Relation	index;
	BqLayout	layout;
	BqListData *lists;
	uint32		nblocks;
	uint32		nlost;
	BqBlockLinks *links;
	BqIndexedRow *rows;			/* by tid, once sorted */
	size_t		nrows;
	size_t		capacity;
	uint8	   *block_rows;		/* the codes of one block */
	uint8	   *planes;
	BqForm	   *form;			/* of an index on vectors, else NULL */
	MemoryContext row_context;	/* emptied after each row of the table */
} BqCheck;

#define bq_damaged(state, ...) \
	ereport(ERROR, \
			(errcode(ERRCODE_INDEX_CORRUPTED), \
			 errmsg("index \"%s\" is damaged: %s", \
					RelationGetRelationName((state)->index), psprintf(__VA_ARGS__)), \
			 errhint("Rebuild the index with REINDEX.")))

/* bqchain.c */
extern void bq_check_lists(BqCheck *state);

#endif							/* BQCHECK_H */
