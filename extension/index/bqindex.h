/*
 * bqindex.h: the access method `bq` on disk and in memory.
 *
 * An index is an inverted file over packed codes.  Its pages, in order:
 *
 *	metapage		block 0
 *	centroid pages	the direction of each list as a 2-bit code, see bqrank.c
 *	list pages		one entry per list: the head of its chain of blocks
 *	data pages		two interleaved arrays, see below
 *
 * A *block* is 32 codes of one list.  Block number b owns entry b of the array of
 * block headers (heap positions, norms: 20 entries to a header page), and rows
 * b * nrows ... (b + 1) * nrows - 1 of the array of code rows (16 bytes each, layout
 * in core/bqlut.h; 510 rows to a code page, no gaps, so no page has waste at any dim).
 * Header pages lie among the code pages in the order of need: where each page lies
 * follows from the block number by arithmetic alone, so the data area grows at its
 * end and needs no map.
 */
#ifndef BQINDEX_H
#define BQINDEX_H

#include "postgres.h"

#include "access/amapi.h"
#include "access/generic_xlog.h"
#include "access/genam.h"
#include "nodes/execnodes.h"
#include "nodes/parsenodes.h"
#include "nodes/pathnodes.h"
#include "storage/bufmgr.h"
#include "storage/dsm.h"
#include "storage/itemptr.h"
#include "storage/shm_toc.h"
#include "utils/rel.h"

#include "bq.h"
#include "core/bqencode.h"
#include "core/bqlut.h"

#define BQ_MAGIC 0x62716978		/* "bqix" */
#define BQ_VERSION 2			/* raised by every change of the format below */
#define BQ_PAGE_ID 0xBA51		/* last two bytes of each page, for pg_filedump */

#define BQ_METAPAGE_BLKNO 0

/* A block of so many dimensions has 64 kB, and a code fits the stack. */
#define BQ_INDEX_MAX_DIM 8000

/* Below this many rows one list is faster than ranking lists, and exact. */
#define BQ_FLAT_ROWS 10000
#define BQ_ROWS_PER_LIST 160
#define BQ_MAX_LISTS 65536
#define BQ_NO_BLOCK UINT32_MAX

/* Entries of BqMetaPageData.margins, and the rank that they are measured against. */
#define BQ_MARGINS 16
#define BQ_MARGIN_RANK 64

/* Strategies of the operator class, in the order of sql/bq.sql. */
enum
{
	BQ_STRATEGY_HAMMING = 1,	/* <~> bqvec */
	BQ_STRATEGY_COSINE,			/* <=> bqquery */
	BQ_STRATEGY_IP,				/* <#> bqquery */
	BQ_STRATEGY_L2,				/* <-> bqquery */
	BQ_STRATEGIES = BQ_STRATEGY_L2
};

typedef enum BqPageKind
{
	BQ_PAGE_META = 1,
	BQ_PAGE_CENTROIDS,
	BQ_PAGE_LISTS,
	BQ_PAGE_DATA				/* headers or codes */
} BqPageKind;

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
 * i for recalls[i] of bqmeasure.c.
 */
typedef struct BqModel
{
	uint32		nprobes[BQ_RECALLS];	/* lists, on average */
	uint32		product_nprobes[BQ_RECALLS];	/* the same for inner products of codes */
	/* vectors: the estimate of a cosine may be so much too low, in units of bqform.c */
	float		slack[BQ_RECALLS];
	/* cosine of the tenth row less that of the BQ_MARGIN_RANKth, on average */
	float		gap;
} BqModel;

/* The same for one query. */
typedef struct BqReach
{
	uint32		nprobes;
	double		slack;
} BqReach;

typedef struct BqMetaPageData
{
	uint32		magic;
	uint32		version;
	uint32		dim;
	int32		transform;		/* of every code in the index; -1 until the first one */
	uint32		nlists;			/* 1: flat, no centroids */
	BlockNumber centroid_start;
	BlockNumber list_start;
	BlockNumber data_start;
	uint32		nblocks;		/* blocks given to lists so far */
	double		build_rows;		/* rows indexed when the index was built */

	/*
	 * Queries in the middle of many rows find their neighbours in few lists, others in
	 * many.  A scan of p lists on average reads lists while their cosine with the query
	 * is at least that of its 64th best row so far, minus a margin: entry i holds the
	 * margin for p = nlists^(i / 15), as measured when the index was built.
	 */
	float		margins[BQ_MARGINS];

	/* Of an index on vectors: what its transform was chosen by, see bqchoice.c, ... */
	uint32		choice_rows;	/* rows of the sample, 0: nothing was measured */
	float		recall_axes;	/* recall@10 of codes inside the sample */
	float		recall_rotated;

	BqModel		model;
} BqMetaPageData;

typedef BqMetaPageData *BqMetaPage;

#define BqPageGetMeta(page) ((BqMetaPage) PageGetContents(page))

/* A list. */
typedef struct BqListData
{
	uint32		head;			/* first block of the chain, BQ_NO_BLOCK if empty */
	uint32		free;			/* first block that may have a free slot, or BQ_NO_BLOCK */
	uint32		nblocks;		/* length of the chain */
	uint32		unused;
} BqListData;

#define BQ_LISTS_PER_PAGE ((int) (BQ_PAGE_NBYTES / sizeof(BqListData)))

/* All of a block but the codes.  A slot is in use when its bit in `live` is set. */
typedef struct BqBlockData
{
	uint32		list;
	uint32		next;			/* next block of the list, or BQ_NO_BLOCK */
	uint32		next_free;		/* next block of the list's free chain, or BQ_NO_BLOCK */
	uint16		in_free_chain;	/* reachable from BqListData.free */
	uint16		unused;
	uint32		live;			/* bit c: slot c holds a row */
	ItemPointerData tid[BQ_BLOCK];
	uint16		inverse[BQ_BLOCK];	/* 1 / length of the level values, see bq_inverse_pack() */
	float		norm[BQ_BLOCK];
} BqBlockData;

#define BQ_HEADERS_PER_PAGE ((int) (BQ_PAGE_NBYTES / sizeof(BqBlockData)))
#define BQ_ROW_NBYTES 16
#define BQ_ROWS_PER_PAGE ((int) (BQ_PAGE_NBYTES / BQ_ROW_NBYTES))

/* Reloptions. */
typedef struct BqOptions
{
	int32		vl_len_;		/* varlena header (do not touch directly) */
	int			lists;			/* 0: from the number of rows */
	int			probes;			/* 0: what the wanted recall needs */
	double		recall;			/* share of the nearest rows that queries want, 0: the default */
	int			transform;		/* of an index on vectors; -1: chosen when it is built */
} BqOptions;

/* Where things lie: everything a reader needs of the metapage. */
typedef struct BqLayout
{
	int			dim;
	int			nrows;			/* rows of 16 bytes in a block */
	int			transform;
	uint32		nlists;
	BlockNumber centroid_start;
	BlockNumber list_start;
	BlockNumber data_start;
	float		margins[BQ_MARGINS];
	BqModel		model;
} BqLayout;

/*
 * What a backend remembers of an index (rd_amcache): in which buffer each page was last
 * seen.  Most of the cost of reading a page that is in shared buffers is finding it
 * there; a good guess saves the search.  The relcache may drop this whenever a lock is
 * taken: never keep a pointer to it.
 */
typedef struct BqCache
{
	uint32		nreads;
	BlockNumber nrecent;
	Buffer		recent[FLEXIBLE_ARRAY_MEMBER];	/* by block number, InvalidBuffer: never seen */
} BqCache;

/* Header page holding block b, and b's place on it. */
static inline BlockNumber
bq_header_page(const BqLayout *layout, uint32 b)
{
	uint64		m = b / BQ_HEADERS_PER_PAGE;

	return (BlockNumber) (layout->data_start + m +
						  m * BQ_HEADERS_PER_PAGE * layout->nrows / BQ_ROWS_PER_PAGE);
}

/* Code page holding a row of the whole array; the row's place is row % BQ_ROWS_PER_PAGE. */
static inline BlockNumber
bq_code_page(const BqLayout *layout, uint64 row)
{
	uint64		c = row / BQ_ROWS_PER_PAGE;
	uint64		rows_per_header = (uint64) BQ_HEADERS_PER_PAGE * layout->nrows;

	/* c code pages and the header pages whose first block begins on or before page c */
	return (BlockNumber) (layout->data_start + c + 1 +
						  ((c + 1) * BQ_ROWS_PER_PAGE - 1) / rows_per_header);
}

/* First row of a block. */
static inline uint64
bq_first_row(const BqLayout *layout, uint32 b)
{
	return (uint64) b * layout->nrows;
}

static inline BqBlockData *
BqPageGetBlock(Page page, uint32 b)
{
	return (BqBlockData *) PageGetContents(page) + b % BQ_HEADERS_PER_PAGE;
}

static inline uint8 *
BqPageGetRow(Page page, uint64 row)
{
	return (uint8 *) PageGetContents(page) + row % BQ_ROWS_PER_PAGE * BQ_ROW_NBYTES;
}

static inline BqListData *
BqPageGetList(Page page, uint32 list)
{
	return (BqListData *) PageGetContents(page) + list % BQ_LISTS_PER_PAGE;
}

static inline BlockNumber
bq_list_page(const BqLayout *layout, uint32 list)
{
	return layout->list_start + list / BQ_LISTS_PER_PAGE;
}

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

/* Centroids in memory, as the build has them: nlists x dim floats. */
typedef struct BqCentroids
{
	uint32		nlists;
	int			dim;
	float	   *values;
} BqCentroids;

/* Phases shown in pg_stat_progress_create_index. */
enum
{
	BQ_PHASE_LOAD = 1,			/* 1 is PROGRESS_CREATEIDX_SUBPHASE_INITIALIZE */
	BQ_PHASE_TRAIN,
	BQ_PHASE_ASSIGN,
	BQ_PHASE_WRITE
};

/* bqhandler.c */
extern int	bq_probes;
extern double bq_recall_wanted;
extern int	bq_max_scan_tuples;

/* What the index keeps of a row of the table; bqform.c makes it of the indexed value. */
typedef struct BqRow
{
	ItemPointerData tid;
	uint16		inverse;		/* see BqBlockData */
	float		norm;
	const uint8 *planes;		/* bq_planes_nbytes(dim) */
} BqRow;

/* Rows in memory. */
typedef struct BqRows
{
	size_t		n;
	size_t		capacity;
	uint8	   *planes;			/* bq_planes_nbytes(dim) each */
	float	   *norms;
	uint16	   *inverses;
	ItemPointerData *tids;
} BqRows;

/* A set of lists being written; see bqwrite.c. */
typedef struct BqWriter
{
	Relation	index;
	BqLayout	layout;
	uint32		nblocks;		/* written so far */
	BqListData *lists;
	uint8	   *rows;			/* code rows of the block being filled */
	BqBlockData block;			/* its header */
	int			used;			/* its slots in use */
} BqWriter;

/* bqpage.c */
extern void bq_init_page(Page page, BqPageKind kind);
extern void bq_check_page(Relation index, Buffer buffer, BqPageKind kind);
extern Buffer bq_read_page(Relation index, BlockNumber blkno, BqPageKind kind, int lockmode);
extern BqLayout bq_get_layout(Relation index);
extern BqLayout bq_read_layout(Relation index, uint32 *nblocks);
extern void bq_prefetch(Relation index, BlockNumber blkno, size_t offset);
extern Buffer bq_new_page(Relation index, ForkNumber fork, BlockNumber blkno,
						  BqPageKind kind);
extern void bq_extend(Relation index, BlockNumber from, BlockNumber npages, bool log);
extern BlockNumber bq_data_end(const BqLayout *layout, uint32 nblocks);
extern void bq_check_size(Relation index, const BqLayout *layout, uint32 nblocks);
extern void bq_read_planes(Relation index, const BqLayout *layout, uint32 block, int slot,
						   uint8 *planes);
extern void bq_read_block(Relation index, const BqLayout *layout, uint32 block, uint8 *codes);

/* bqform.c */
extern uint16 bq_inverse_pack(const uint8 *planes, int dim, float norm);
extern void bq_check_code(Relation index, const BqLayout *layout, const BqHeader *header);
extern BqRow bq_form_row(const BqHeader *header, const uint8 *planes, ItemPointer tid);

/* bqread.c */

/* A page that stays locked as long as the blocks read lie on it. */
typedef struct BqHeldPage
{
	Buffer		buffer;
	BlockNumber blkno;
} BqHeldPage;

typedef struct BqListReader
{
	Relation	index;
	const BqLayout *layout;
	uint32		list;
	uint32		block;			/* the one read last */
	uint32		next;
	uint32		left;			/* blocks not read yet */
	BqHeldPage	headers;
	BqHeldPage	codes;
} BqListReader;

extern void bq_begin_list(BqListReader *reader, Relation index, const BqLayout *layout,
						  uint32 list, const BqListData *entry);
extern const BqBlockData *bq_next_block(BqListReader *reader);
extern void bq_sum_block(BqListReader *reader, const uint8 *table, uint16 *sums);
extern void bq_end_list(BqListReader *reader);

/* bqwrite.c */
extern uint32 bq_choose_lists(Relation index, double nrows);
extern BqLayout bq_plan_layout(int dim, uint32 nlists, BlockNumber start);
extern void bq_create_lists(Relation index, ForkNumber fork, const BqLayout *layout);
extern void bq_fill_metapage(Page page, const BqLayout *layout, uint32 nblocks, double nrows);
extern BqWriter *bq_begin_writing(Relation index, const BqLayout *layout);
extern void bq_write_row(BqWriter *writer, uint32 list, const BqRow *row);
extern void bq_write_rows(BqWriter *writer, const BqRows *rows, const uint32 *lists);
extern uint32 bq_end_writing(BqWriter *writer);

/* bqbuild.c */
extern size_t bq_rows_limit(int dim, int work_mem_kb, bool shared);
extern void bq_grow_rows(BqRows *rows, int dim, size_t limit);
extern void bq_put_row(BqRows *rows, size_t i, int dim, const BqRow *row);
extern BqRow bq_get_row(const BqRows *rows, size_t i, int dim);

/* bqregroup.c */
extern bool bq_wants_regrouping(Relation index, double nrows);
extern void bq_regroup(Relation index);

/* bqassign.c: codes to directions, alone or with parallel workers */
typedef struct BqAssigner
{
	int			dim;
	BqRows	   *rows;
	struct BqAssignShared *shared;
	struct ParallelContext *context;	/* NULL: alone */

	/* of `rows`: codes; numbers of those in work, in order; list of each */
	uint8	   *planes;
	size_t	   *items;
	uint32	   *lists;
	/* of the directions: tables of bq_lut_query() */
	uint8	   *tables;
	float	   *scale;
	float	   *bias;
	uint32	   *candidates;		/* ncandidates of each cell */
	struct Chunk *chunks;
} BqAssigner;

/* Rows by cell, for BqAssigner.items; see bqcluster.c. */
typedef struct BqCells
{
	uint32		ncells;
	uint32		ncandidates;	/* lists that rows of a cell are compared with */
	size_t	   *start;			/* ncells + 1 */
} BqCells;

extern BqAssigner *bq_begin_assigning(int dim, BqRows *rows, uint32 nlists, int nworkers);
extern void bq_assign(BqAssigner *a, const BqCentroids *centroids, size_t n,
					  const BqCells *cells);
extern void bq_end_assigning(BqAssigner *a);
extern PGDLLEXPORT void bq_assign_main(dsm_segment *seg, shm_toc *toc);

/* bqcluster.c */
extern uint32 bq_count_cells(uint32 nlists);
extern size_t bq_max_candidates(uint32 nlists);

typedef struct BqClusters
{
	BqCentroids lists;
	BqCentroids coarse;			/* of the cells; nlists 0: no cells */
	uint32	   *around;			/* for each cell all cells, the nearest first */
} BqClusters;

extern BqClusters bq_train(BqAssigner *a, uint32 nlists);
extern const uint32 *bq_assign_rows(BqAssigner *a, const BqClusters *clusters);
extern void bq_free_clusters(BqClusters *clusters);
extern void bq_set_to_code(float *direction, const uint8 *planes, int dim);

/* bqmargin.c */
extern void bq_clear_model(BqLayout *layout);
extern void bq_measure(Relation heap, Relation index, const BqCentroids *centroids,
					   const BqRows *rows, const uint32 *lists, double nrows, BqLayout *layout);
extern double bq_wanted_recall(Relation index);
extern BqReach bq_wanted_reach(Relation index, const BqLayout *layout, int strategy);

/* bqrank.c */

/* The table of a float query (core/bqlut.h). */
typedef struct BqTable
{
	uint8	   *entries;
	float		scale;			/* a sum s of entries stands for bias - scale * s */
	float		bias;
} BqTable;

extern BqTable bq_make_table(const float *q, int dim);
extern BlockNumber bq_count_centroid_pages(int dim, uint32 nlists);
extern uint8 *bq_pack_directions(const BqCentroids *centroids);
extern void bq_write_centroids(Relation index, const BqLayout *layout,
							   const BqCentroids *centroids);
extern void bq_score_groups(const uint8 *groups, uint32 nlists, int dim, const BqTable *table,
							float *scores);
extern void bq_score_lists(Relation index, const BqLayout *layout, const BqTable *table,
						   float *scores);
extern uint32 bq_nearest_list(Relation index, const BqLayout *layout, const float *q);

/* bqscan.c: what a scan did, and the row that it gave last */
typedef struct BqScanReport
{
	int64		nlists;			/* lists read */
	int64		ncodes;			/* codes compared */
	int64		nfetched;		/* rows of the table compared; of vectors only */
	double		key;			/* grows with the distance of the last row */
	uint32		block;
	uint16		slot;
} BqScanReport;

extern BqScanReport bq_scan_report(IndexScanDesc scan);

/* bqcheck.c */
extern Relation bq_open_index(Oid index_oid, LOCKMODE lockmode, AclMode privilege,
							  Relation *heap);

/* bqexplain.c */
extern void bq_explain_init(void);

/* access method callbacks */
extern IndexBuildResult *bqbuild(Relation heap, Relation index, IndexInfo *info);
extern void bqbuildempty(Relation index);
extern bool bqinsert(Relation index, Datum *values, bool *isnull, ItemPointer tid,
					 Relation heap, IndexUniqueCheck check_unique, bool index_unchanged,
					 IndexInfo *info);
extern IndexBulkDeleteResult *bqbulkdelete(IndexVacuumInfo *info, IndexBulkDeleteResult *stats,
										   IndexBulkDeleteCallback callback, void *callback_state);
extern IndexBulkDeleteResult *bqvacuumcleanup(IndexVacuumInfo *info,
											  IndexBulkDeleteResult *stats);
extern void bqcostestimate(PlannerInfo *root, IndexPath *path, double loop_count,
						   Cost *startup, Cost *total, Selectivity *selectivity,
						   double *correlation, double *pages);
extern IndexScanDesc bqbeginscan(Relation index, int nkeys, int norderbys);
extern void bqrescan(IndexScanDesc scan, ScanKey keys, int nkeys, ScanKey orderbys,
					 int norderbys);
extern bool bqgettuple(IndexScanDesc scan, ScanDirection direction);
extern void bqendscan(IndexScanDesc scan);
extern bool bqvalidate(Oid opclass);

#endif							/* BQINDEX_H */
