/*
 * bqindex.h: the access method `bq` in memory: where things lie, lists and rows on their way,
 * and what each file has for the others.  On disk: bqformat.h.
 */
#ifndef BQINDEX_H
#define BQINDEX_H

#include "postgres.h"

#include "access/amapi.h"
#include "access/generic_xlog.h"
#include "access/genam.h"
#include "access/transam.h"
#include "nodes/execnodes.h"
#include "nodes/parsenodes.h"
#include "nodes/pathnodes.h"
#include "storage/bufmgr.h"
#include "storage/itemptr.h"
#include "utils/rel.h"

#include "bq.h"
#include "core/bqencode.h"
#include "core/bqlut.h"
#include "index/bqformat.h"

/* Below this many rows one list is faster than ranking lists, and exact. */
#define BQ_FLAT_ROWS 10000
#define BQ_ROWS_PER_LIST 160

/* Strategies of the operator class, in the order of sql/bq.sql. */
enum
{
	BQ_STRATEGY_HAMMING = 1,	/* <~> bqvec */
	BQ_STRATEGY_COSINE,			/* <=> bqquery */
	BQ_STRATEGY_IP,				/* <#> bqquery */
	BQ_STRATEGY_L2,				/* <-> bqquery */
	BQ_DISTANCES = BQ_STRATEGY_L2,

	/* of filter columns: the index's own order of comparisons, as that of B-trees */
	BQ_STRATEGY_LESS,
	BQ_STRATEGY_LESS_EQUAL,
	BQ_STRATEGY_EQUAL,
	BQ_STRATEGY_GREATER_EQUAL,
	BQ_STRATEGY_GREATER,
	BQ_STRATEGIES = BQ_STRATEGY_GREATER
};

/* What BqModel says of one query. */
typedef struct BqReach
{
	uint32		nprobes;
	double		slack;
	double		later_slack;	/* for rows beyond BQ_NEIGHBOURS, not less */
	double		deviations;		/* see bqstop.c */
	uint32		ngroups;		/* see bqorder.c */
} BqReach;

/* Deviations with which every code is read to its end. */
#define BQ_NO_STOP 1000

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
	int			nkeys;
	int			header_nbytes;	/* of a block */
	int			headers_per_page;
	int			transform;
	uint32		nlists;
	BlockNumber data_start;
	uint32		nblocks;
	uint32		capacity;
	uint32		segments[BQ_SEGMENTS];
	uint64		generation;
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
	uint32		nlost;			/* pages to look for because others were not where they had been */
	BlockNumber nrecent;
	Buffer		recent[FLEXIBLE_ARRAY_MEMBER];	/* by block number, InvalidBuffer: never seen */
} BqCache;

/* Set what follows from the dimensions and the number of filter columns. */
static inline void
bq_set_layout(BqLayout *layout, int dim, int nkeys)
{
	layout->dim = dim;
	layout->nrows = bq_block_nrows(dim);
	layout->nkeys = nkeys;
	layout->header_nbytes = offsetof(BqWholeBlock, columns) + nkeys * sizeof(BqBlockKeys);
	layout->headers_per_page = BQ_PAGE_NBYTES / layout->header_nbytes;
}

/* Header page holding block b, and b's place on it. */
static inline BlockNumber
bq_header_page(const BqLayout *layout, uint32 b)
{
	uint64		m = b / layout->headers_per_page;

	return (BlockNumber) (layout->data_start + m +
						  m * layout->headers_per_page * layout->nrows / BQ_ROWS_PER_PAGE);
}

/* Code page holding a row of the whole array; the row's place is row % BQ_ROWS_PER_PAGE. */
static inline BlockNumber
bq_code_page(const BqLayout *layout, uint64 row)
{
	uint64		c = row / BQ_ROWS_PER_PAGE;
	uint64		rows_per_header = (uint64) layout->headers_per_page * layout->nrows;
	uint64		last = (c + 1) * BQ_ROWS_PER_PAGE - 1;

	/*
	 * c code pages and the header pages whose first block begins on or before page c.  Most
	 * indexes are small enough for the division of 32 bits, which takes half the time.
	 */
	return (BlockNumber) (layout->data_start + c + 1 +
						  (last <= UINT32_MAX ? (uint32) last / (uint32) rows_per_header :
						   last / rows_per_header));
}

/* First row of a block. */
static inline uint64
bq_first_row(const BqLayout *layout, uint32 b)
{
	return (uint64) b * layout->nrows;
}

/* Of rows from `row` to `end`, those on the page of the first. */
static inline int
bq_rows_on_page(uint64 row, uint64 end)
{
	return (int) Min(end - row, BQ_ROWS_PER_PAGE - row % BQ_ROWS_PER_PAGE);
}

static inline BqBlockData *
BqPageGetBlock(const BqLayout *layout, Page page, uint32 b)
{
	return (BqBlockData *) (PageGetContents(page) +
							b % layout->headers_per_page * layout->header_nbytes);
}

static inline uint8 *
BqPageGetRow(Page page, uint64 row)
{
	return (uint8 *) PageGetContents(page) + row % BQ_ROWS_PER_PAGE * BQ_ROW_NBYTES;
}

/* Centroids in memory, as the build has them: nlists x dim floats. */
typedef struct BqCentroids
{
	uint32		nlists;
	int			dim;
	float	   *values;
} BqCentroids;

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
	uint32		nulls;			/* bit i: filter column i is null */
	uint32		keys[BQ_MAX_KEYS];	/* of the filter columns, see bqkey.c */
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
	int			nkeys;			/* set it before the first row */
	uint32	   *keys;			/* if there are any, nkeys + 1 each, null bits last */
} BqRows;

/* bqpage.c */
extern void bq_init_page(Page page, BqPageKind kind);
extern void bq_check_page(Relation index, Buffer buffer, BqPageKind kind);
extern Buffer bq_read_page(Relation index, BlockNumber blkno, BqPageKind kind, int lockmode);
extern BqLayout bq_get_layout(Relation index);
extern BqLayout bq_read_layout(Relation index);
extern BqMetaPageData bq_read_metapage(Relation index);
extern bool bq_prefetch(Relation index, BlockNumber blkno, size_t offset, bool from_disk);
extern Buffer bq_new_page(Relation index, ForkNumber fork, BlockNumber blkno,
						  BqPageKind kind);
extern BqPageKind bq_page_kind(const BqLayout *layout, BlockNumber blkno);
extern void bq_extend(Relation index, const BqLayout *layout, BlockNumber from,
					  BlockNumber npages);
extern void bq_provide_pages(Relation index, const BqLayout *layout, uint32 nblocks);
extern BlockNumber bq_data_end(const BqLayout *layout, uint32 nblocks);
extern void bq_check_size(Relation index, const BqLayout *layout);
extern void bq_report_damage(Relation index, BlockNumber blkno, const char *what);

/* bqlog.c: changes of up to four pages, made and logged as one */
#define BQ_LOG_PAGES MAX_GENERIC_XLOG_PAGES
extern void bq_begin_log(Relation index);
extern int	bq_log_page(Buffer buffer);
extern void bq_log_change(int page, void *place, const void *value, size_t nbytes);
extern void bq_finish_log(void);
extern void bq_log_new_pages(Relation index, Buffer *buffers, int n);

/* Change a field of a page that is part of the log that was begun. */
#define bq_log_set(page, place, type, value) \
	do { \
		type		value_ = (value); \
		StaticAssertStmt(sizeof(*(place)) == sizeof(type), "another type"); \
		bq_log_change((page), (place), &value_, sizeof(type)); \
	} while (0)

/* bqform.c */
extern uint16 bq_inverse_pack(const uint8 *planes, int dim, float norm);
extern void bq_check_code(Relation index, const BqLayout *layout, const BqHeader *header);
extern BqHeader bq_form_code(Datum value, ItemPointer tid, BqRow *row);

/* bqread.c */

/* A page that stays locked as long as the blocks read lie on it. */
typedef struct BqHeldPage
{
	Buffer		buffer;
	BlockNumber blkno;
} BqHeldPage;

/* What a reader must know of a list. */
typedef struct BqChain
{
	uint32		list;
	uint32		head;
	uint32		nblocks;
	uint32		epoch;
} BqChain;

typedef struct BqListReader
{
	Relation	index;
	const BqLayout *layout;
	BqChain		chain;
	uint32		block;			/* the one read last */
	uint32		next;
	uint32		left;			/* blocks not read yet */
	int			nheld;			/* blocks read since interrupts were looked for */
	int			packed;			/* rows of the block that are */
	const uint8 *copied;		/* its rows in memory, all packed; NULL: they are on pages */
	BqHeldPage	headers;
	BqHeldPage	codes;
	uint64		codes_on;		/* which of the pages of rows that is */
} BqListReader;

extern Page bq_hold_page(Relation index, BqHeldPage *held, BlockNumber blkno, BqPageKind kind);
extern void bq_release_page(BqHeldPage *held);
extern BqChain bq_read_chain(Relation index, const BqLayout *layout, uint32 list);
extern void bq_begin_list(BqListReader *reader, Relation index, const BqLayout *layout,
						  const BqChain *chain);
extern const BqBlockData *bq_next_block(BqListReader *reader);
extern void bq_sum_rows(BqListReader *reader, const uint8 *table, int first, int last,
						uint16 *sums);
extern void bq_copy_rows(BqListReader *reader, uint8 *codes);
extern void bq_end_list(BqListReader *reader);
extern void bq_read_planes(Relation index, const BqLayout *layout, uint32 block, int slot,
						   uint8 *planes);
extern void bq_read_block(Relation index, const BqLayout *layout, uint32 block,
						  BqWholeBlock *header, uint8 *codes);
extern void bq_read_rows(Relation index, const BqLayout *layout, uint64 row, int n, uint8 *rows);

/* bqwrite.c */
extern uint32 bq_choose_lists(Relation index, double nrows);
/* bqblock.c */
extern bool bq_insert_into_block(Relation index, const BqLayout *layout, uint32 list,
								 uint32 epoch, uint32 b, const BqRow *row);
extern void bq_write_block(Relation index, const BqLayout *layout, uint32 b,
						   const BqWholeBlock *header, const uint8 *rows);
extern uint32 bq_choose_block(Relation index, const BqLayout *layout, const BqMetaPageData *meta);
extern void bq_log_taken(Buffer meta_buffer, uint32 b, const BqBlockData *block);

/* bqkey.c */
extern int	bq_count_keys(Relation index);

/* for files of vacuum, which include commands/vacuum.h */
#if PG_VERSION_NUM >= 180000
#define bq_delay_point() vacuum_delay_point(false)
#else
#define bq_delay_point() vacuum_delay_point()
#endif

/* bqsplit.c */
extern void bq_split_lists(IndexVacuumInfo *info, double nrows);

/* bqcluster.c; what it shares with assigning and writing: bqbuild.h */
extern void bq_set_to_code(float *direction, const uint8 *planes, int dim);

/* bqmodel.c */
extern void bq_clear_model(BqLayout *layout);
extern double bq_wanted_recall(Relation index);
extern BqReach bq_wanted_reach(Relation index, const BqLayout *layout, int strategy);

/* bqmeasure.c */
extern void bq_measure(Relation heap, Relation index, const BqCentroids *centroids,
					   const BqRows *rows, const uint32 *lists, double nrows, BqLayout *layout);

/* bqdirectory.c; what it shares with the next ones: bqdirectory.h */
extern uint32 bq_count_segment_blocks(const BqLayout *layout, uint32 capacity);
extern uint32 bq_segment_capacity(const BqLayout *layout, int segment);
extern uint32 bq_directory_capacity(const BqLayout *layout);
extern bool bq_is_directory(const BqLayout *layout, uint32 block);
extern uint32 bq_count_directory_blocks(const BqLayout *layout);
extern uint64 bq_list_row(const BqLayout *layout, uint32 list);
extern BlockNumber bq_list_page(const BqLayout *layout, uint32 list);
extern Buffer bq_read_entry(Relation index, const BqLayout *layout, uint32 list, int lockmode,
							BqListData **entry);
extern BqListData *bq_read_entries(Relation index, const BqLayout *layout);

/* bqdirection.c */
extern BqCentroids bq_read_directions(Relation index, const BqLayout *layout);
extern void bq_set_directions(Relation index, const BqLayout *layout,
							  const BqCentroids *centroids, uint32 first, uint32 list, uint32 n);
extern uint8 *bq_pack_directions(const BqCentroids *centroids);
extern void bq_write_centroids(Relation index, const BqLayout *layout,
							   const BqCentroids *centroids);

/* bqrank.c */

/* The table of a float query (core/bqlut.h). */
typedef struct BqTable
{
	uint8	   *entries;
	float		scale;			/* a sum s of entries stands for bias - scale * s */
	float		bias;
} BqTable;

extern BqTable bq_make_table(const float *q, int dim);
extern void bq_score_groups(const uint8 *groups, uint32 nlists, int dim, const BqTable *table,
							float *scores);
extern uint32 bq_score_group(Relation index, const BqLayout *layout, const BqTable *table,
							 uint32 list, bool ahead, BqHeldPage *held, float *scores);
extern void bq_score_lists(Relation index, const BqLayout *layout, const BqTable *table,
						   float *scores);
extern uint32 bq_count_groups(const BqLayout *layout);
extern void bq_score_outer_groups(Relation index, const BqLayout *layout, const BqTable *table,
								  float *scores);

/* bqorder.c: lists, the nearest first */
typedef struct BqRankedList
{
	uint64		key;			/* see rank_key() */
	uint8		segment;		/* of a scan, in which it was chosen */
} BqRankedList;

typedef struct BqRanking
{
	Relation	index;
	const BqLayout *layout;
	BqTable		table;
	uint64	   *groups;			/* a heap: those that were not looked at */
	uint32		ngroups;
	uint32		nlooked;		/* the others */
	uint64	   *ranked;			/* keys of lists that are not in `order` yet ... */
	uint32		nheap;			/* ... of which the first are a heap, and above the others */
	uint32		nranked;
	BqRankedList *order;		/* the nearest lists */
	uint32		nordered;
	uint32		order_capacity;
} BqRanking;

extern void bq_begin_ranking(BqRanking *ranking, Relation index, const BqLayout *layout,
							 const BqTable *table, uint32 ngroups);
extern void bq_forget_lists(BqRanking *ranking);
extern bool bq_know_list(BqRanking *ranking, uint32 i);
extern uint32 bq_ranked_list(const BqRanking *ranking, uint32 i);
extern float bq_ranked_score(const BqRanking *ranking, uint32 i);
extern uint32 bq_nearest_list(Relation index, const BqLayout *layout, const float *q);

/* bqscan.c: what a scan did, and the row that it gave last */
typedef struct BqScanReport
{
	int64		nlists;			/* lists read */
	int64		ncodes;			/* codes compared in all dimensions */
	int64		nfetched;		/* rows of the table compared; of vectors only */
	double		key;			/* grows with the distance of the last row */
	uint32		block;
	uint16		slot;
} BqScanReport;

extern BqScanReport bq_scan_report(IndexScanDesc scan);

/* bqopen.c: for functions of SQL */
extern Relation bq_open_index(Oid index_oid, LOCKMODE lockmode, AclMode privilege,
							  Relation *heap);
extern void bq_check_row_security(Relation heap, Relation index, const char *what);

/* bqexplain.c */
extern void bq_explain_init(void);

/* bqplan.c */
extern void bq_plan_init(void);
extern void bq_note_planning(void);

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
