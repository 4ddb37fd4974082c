/*
 * bqformat.h: what an index has on disk: its pages, and the structs on them.
 *
 * An index is an inverted file over packed codes.  Its pages, in order:
 *
 *	metapage			block 0
 *	statistics pages	up to data_start; of an index on vectors, see bqsample.c
 *	data pages			two interleaved arrays, see below
 *
 * A *block* is 32 codes of one list.  Block number b owns entry b of the array of
 * block headers (heap positions, norms: 20 entries to a header page), and rows
 * b * nrows ... (b + 1) * nrows - 1 of the array of code rows (16 bytes each, layout
 * in core/bqlut.h; 510 rows to a code page, no gaps, so no page has waste at any dim).
 * Header pages lie among the code pages in the order of need: where each page lies
 * follows from the block number by arithmetic alone, so the data area grows at its
 * end and needs no map.
 *
 * The *directory*, what is known of each list, lies in code rows as well: a run of
 * blocks for the lists that the index was made with and some more, then, each time
 * these are used up, a run for as many lists as there are.  See bqdirectory.h.
 */
#ifndef BQFORMAT_H
#define BQFORMAT_H

#include "postgres.h"

#include "access/transam.h"
#include "storage/bufpage.h"
#include "storage/itemptr.h"

#include "core/bqlut.h"
#include "core/bqsearch.h"

#define BQ_MAGIC 0x62716978		/* "bqix" */
#define BQ_VERSION 6			/* raised by every change of the format below */
#define BQ_PAGE_ID 0xBA51		/* last two bytes of each page, for pg_filedump */

#define BQ_METAPAGE_BLKNO 0

/* A block of so many dimensions has 64 kB, and a code fits the stack. */
#define BQ_INDEX_MAX_DIM 8000

#define BQ_MAX_LISTS 65536

/* Runs of the directory with room for so many lists have directions of groups of them. */
#define BQ_GROUPED_LISTS 4096

#define BQ_NO_BLOCK UINT32_MAX

/* Entries of BqMetaPageData.margins, and the rank that they are measured against. */
#define BQ_MARGINS 16
#define BQ_MARGIN_RANK 64

typedef enum BqPageKind
{
	BQ_PAGE_META = 1,
	BQ_PAGE_STATISTICS,
	BQ_PAGE_HEADERS,			/* of blocks */
	BQ_PAGE_CODES				/* and the directory */
} BqPageKind;

/*
 * Of what kind a page is says its header, too, in a field that indexes have no use for:
 * scans read pages by the hundred, most of them in part, and looking at the far end of
 * each would cost a cache miss and a TLB miss.
 */
#define BqPageGetKind(page) (((PageHeader) (page))->pd_prune_xid)

typedef struct BqPageOpaqueData
{
	uint16		kind;			/* BqPageKind */
	uint16		unused;
	uint16		unused2;
	uint16		page_id;		/* BQ_PAGE_ID */
} BqPageOpaqueData;

typedef BqPageOpaqueData *BqPageOpaque;

#define BqPageGetOpaque(page) ((BqPageOpaque) PageGetSpecialPointer(page))

/* Bytes between page header and special space: 8160 of 8192. */
#define BQ_PAGE_NBYTES \
	((BLCKSZ - MAXALIGN(SizeOfPageHeaderData) - MAXALIGN(sizeof(BqPageOpaqueData))) / 16 * 16)

#define BQ_RECALLS 8

/*
 * How far queries must go, as measured when the index was built or its lists changed: entry
 * i for bq_recalls[i] of bqmodel.c.
 */
typedef struct BqModel
{
	uint32		nprobes[BQ_RECALLS];	/* lists, on average */
	uint32		product_nprobes[BQ_RECALLS];	/* the same for inner products of codes */
	/* vectors: the estimate of a cosine may be so much too low, in units of bqform.c */
	float		slack[BQ_RECALLS];
	float		later_slack[BQ_RECALLS];	/* ... of rows beyond the tenth */
	/* what the first dimensions say of a row may be so many standard deviations too little */
	float		deviations[BQ_RECALLS];
	/* groups whose lists are ranked, if lists are found by groups (bqorder.c) */
	uint32		ngroups[BQ_RECALLS];
	/* cosine of the tenth row less that of the BQ_MARGIN_RANKth, on average */
	float		gap;
} BqModel;

/* Why an index on vectors has its transform. */
typedef enum BqChoiceReason
{
	BQ_CHOICE_FEW_ROWS,			/* to measure: a rotation cannot go far wrong */
	BQ_CHOICE_MEASURED,
	BQ_CHOICE_OPTION,			/* WITH (transform = N) */
	BQ_CHOICE_COLUMN			/* bq_columns */
} BqChoiceReason;

/* A header that was never written has epoch 0, and so belongs to no list. */
#define BQ_FIRST_GENERATION 1

/* Runs of the directory: each doubles the lists that there is room for, up to BQ_MAX_LISTS. */
#define BQ_SEGMENTS 12

typedef struct BqMetaPageData
{
	uint32		magic;
	uint32		version;
	uint32		dim;
	int32		transform;		/* of every code in the index; -1 until the first one */
	uint32		nlists;			/* 1: flat, no directions */
	uint32		nkeys;			/* filter columns: 132 bytes each of a header */
	BlockNumber data_start;		/* pages before it, but the metapage, keep statistics */
	BlockNumber npages;			/* initialised so far; blocks take them as they are */
	uint32		nblocks;		/* of lists, of the directory, and free ones */
	uint32		free_head;		/* first block of the chain of free ones, or BQ_NO_BLOCK */
	uint32		nfree;			/* length of that chain */
	uint32		capacity;		/* lists in the directory's first run, a multiple of BQ_BLOCK */
	uint32		segments[BQ_SEGMENTS];	/* first block of each run, or BQ_NO_BLOCK */
	uint64		generation;		/* raised by every change of the set of lists */
	double		build_rows;		/* rows indexed when probes were measured */
	uint32		nchanged;		/* lists made or changed since then */
	uint32		closed;			/* vacuum looks whether rows are left: none may be added */

	/*
	 * Queries in the middle of many rows find their neighbours in few lists, others in
	 * many.  A scan of p lists on average reads lists while their cosine with the query
	 * is at least that of its 64th best row so far, minus a margin: entry i holds the
	 * margin for p = nlists^(i / 15), as measured when the index was built.  All are 0 where
	 * a fixed number of lists is read.
	 */
	float		margins[BQ_MARGINS];

	BqModel		model;

	/* Of an index on vectors: what its transform was chosen by when it was built */
	uint32		choice;			/* BqChoiceReason */
	uint32		sample_rows;	/* rows of the sample, 0: there are no statistics pages */
	BqSearches	searches;		/* what was found in it */

	int64		split_at;		/* when vacuum last split a list, a TimestampTz; 0: never */
} BqMetaPageData;

typedef BqMetaPageData *BqMetaPage;

#define BqPageGetMeta(page) ((BqMetaPage) PageGetContents(page))

/*
 * A list.  A list that is split keeps what it was until nobody can be on its way there: a
 * scan that began before `changed` reads the old chain.
 */
typedef struct BqListData
{
	uint32		head;			/* first block of the chain, BQ_NO_BLOCK if empty */
	uint32		free;			/* first block that may have a free slot, or BQ_NO_BLOCK */
	uint32		nblocks;		/* length of the chain */
	uint32		epoch;			/* of the blocks in the chain, see BqBlockData */
	uint32		old_head;		/* the chain before the last split, BQ_NO_BLOCK if it is free */
	uint32		old_nblocks;
	uint32		old_epoch;
	uint16		closed;			/* being split: no row may be added */
	uint16		tried;			/* blocks it had when vacuum could not split it */
	uint64		changed;		/* generation that the last split made; 0: none */
	uint64		freed;			/* full transaction id that snapshots must have passed ... */
								/* ... before the blocks of the old chain are free */
} BqListData;

#define BQ_LIST_ROWS ((int) (sizeof(BqListData) / BQ_ROW_NBYTES))
#define BQ_LISTS_PER_PAGE (BQ_ROWS_PER_PAGE / BQ_LIST_ROWS)

/*
 * All of a block but the codes.  A slot is in use when its bit in `live` is set.  After
 * this follows a BqBlockKeys for each filter column.
 *
 * A block belongs to a list if it names it and its present epoch; if not, it is free, or
 * of a chain from before a split, or was meant for a split that was not completed.
 */
typedef struct BqBlockData
{
	uint32		list;
	uint32		epoch;
	uint32		next;			/* next block of the list, or of the free ones, or BQ_NO_BLOCK */
	uint32		next_free;		/* next block of the list's free chain, or BQ_NO_BLOCK */
	uint16		in_free_chain;	/* reachable from BqListData.free */
	uint16		packed;			/* rows before this one are packed, from it on staged (core/bqlut.h) */
	uint32		live;			/* bit c: slot c holds a row */
	ItemPointerData tid[BQ_BLOCK];
	uint16		inverse[BQ_BLOCK];	/* 1 / length of the level values, see bq_inverse_pack() */
	float		norm[BQ_BLOCK];
} BqBlockData;

#define BQ_MAX_KEYS 8

/* Keys of a filter column, see bqkey.c, and a bit for each row in which it is null. */
typedef struct BqBlockKeys
{
	uint32		keys[BQ_BLOCK];
	uint32		nulls;
} BqBlockKeys;

/* A block's header with room for any number of filter columns. */
typedef struct BqWholeBlock
{
	BqBlockData data;
	BqBlockKeys columns[BQ_MAX_KEYS];
} BqWholeBlock;

StaticAssertDecl(offsetof(BqWholeBlock, columns) == sizeof(BqBlockData),
				 "keys must follow the fixed part of a header");

#define BqBlockGetKeys(block, column) (&((BqWholeBlock *) (block))->columns[column])

/*
 * Rows are staged in parts of so many (the last one has fewer): a part lies on at most
 * three pages, so that packing it is one record of WAL.  A multiple of 4.
 */
#define BQ_STAGE_ROWS 1020

#define BQ_ROW_NBYTES 16
#define BQ_ROWS_PER_PAGE ((int) (BQ_PAGE_NBYTES / BQ_ROW_NBYTES))

/*
 * sqrt(dim) / |level values| lies between 1 / BQ_STRONG and 1 / BQ_WEAK; a row of
 * norm 0 keeps 0, and so has inner product 0 with everything.
 */
#define BQ_INVERSE_UNIT (1 / BQ_WEAK / UINT16_MAX)

/*
 * Indexes on vectors have sqrt(dim) / (<x, levels> / |x|) instead.  That is not bounded by
 * the levels alone: what is larger keeps the largest, and is found a little late.
 */
#define BQ_VECTOR_INVERSE_UNIT (4 * BQ_INVERSE_UNIT)

#endif							/* BQFORMAT_H */
