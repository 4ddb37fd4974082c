/* bqpage.c: pages and where they lie: initialising, checking, reading, extending. */
#include "postgres.h"

#include <math.h>

#include "access/generic_xlog.h"
#include "index/bqindex.h"
#include "storage/buf_internals.h"
#include "storage/lmgr.h"
#include "utils/memutils.h"

void
bq_init_page(Page page, BqPageKind kind)
{
	PageInit(page, BLCKSZ, sizeof(BqPageOpaqueData));
	BqPageGetOpaque(page)->kind = kind;
	BqPageGetOpaque(page)->page_id = BQ_PAGE_ID;
	/* Generic WAL drops what lies between lower and upper: leave no such hole. */
	((PageHeader) page)->pd_lower = ((PageHeader) page)->pd_upper;
}

static void
report_damage(Relation index, BlockNumber blkno, const char *what)
{
	ereport(ERROR,
			(errcode(ERRCODE_INDEX_CORRUPTED),
			 errmsg("index \"%s\" is damaged at page %u: %s", RelationGetRelationName(index),
					blkno, what),
			 errhint("Rebuild the index with REINDEX.")));
}

/* Is this one of our pages, of the kind expected?  Nothing on it is used before. */
void
bq_check_page(Relation index, Buffer buffer, BqPageKind kind)
{
	Page		page = BufferGetPage(buffer);

	if (PageIsNew(page))
		report_damage(index, BufferGetBlockNumber(buffer), "page is empty");
	if (PageGetSpecialSize(page) != MAXALIGN(sizeof(BqPageOpaqueData)))
		report_damage(index, BufferGetBlockNumber(buffer), "page is not of a bq index");

	/*
	 * Scans read data pages by the hundred, most of them in part: looking at the far
	 * end of each would cost a cache miss and a TLB miss.  Their header tells enough
	 * to stay within the page; bq_index_check() looks at the rest.
	 */
	if (kind == BQ_PAGE_DATA && ((PageHeader) page)->pd_lower == ((PageHeader) page)->pd_special)
		return;
	if (BqPageGetOpaque(page)->page_id != BQ_PAGE_ID)
		report_damage(index, BufferGetBlockNumber(buffer), "page is not of a bq index");
	if (BqPageGetOpaque(page)->kind != kind)
		report_damage(index, BufferGetBlockNumber(buffer), "page is of an unexpected kind");
}

/*
 * ReadRecentBuffer() does not count as a use for the clock sweep.  One read in so many
 * goes the usual way, so that a busy index does not look idle.
 */
#define READS_PER_USE 256

#if PG_VERSION_NUM < 160000
#define rd_locator rd_node
#endif

/*
 * A damaged list may lead anywhere: say so before the storage manager does, and before
 * InvalidBlockNumber makes a new page.  What this backend knows of the length of the
 * index is nearly always enough.
 */
static void
check_exists(Relation index, BlockNumber blkno)
{
	BlockNumber known = RelationGetSmgr(index)->smgr_cached_nblocks[MAIN_FORKNUM];

	if ((known == InvalidBlockNumber || blkno >= known) &&
		blkno >= RelationGetNumberOfBlocks(index))
		report_damage(index, blkno, "page does not exist");
}

static Buffer
read_buffer(Relation index, BlockNumber blkno)
{
	BqCache    *cache = (BqCache *) index->rd_amcache;
	Buffer		buffer;

	if (cache == NULL || blkno >= cache->nrecent)
	{
		check_exists(index, blkno);
		return ReadBuffer(index, blkno);
	}
	buffer = cache->recent[blkno];
	if (BufferIsValid(buffer) && ++cache->nreads % READS_PER_USE != 0 &&
		ReadRecentBuffer(index->rd_locator, MAIN_FORKNUM, blkno, buffer))
		return buffer;
	check_exists(index, blkno);
	buffer = ReadBuffer(index, blkno);
	cache->recent[blkno] = buffer;
	return buffer;
}

/* Bytes from which on the CPU goes on by itself, and where it stops: a page of memory. */
#define PREFETCH_NBYTES 256
#define MEMORY_PAGE 4096

static void
prefetch_lines(const char *start)
{
	for (int i = 0; i < PREFETCH_NBYTES; i += 64)
		__builtin_prefetch(start + i);
}

/*
 * Ask the CPU for a page soon to be read from `offset` on, if we think to know where it
 * is.  Reading then runs at the speed of memory instead of waiting at the start of each
 * page of memory.
 */
void
bq_prefetch(Relation index, BlockNumber blkno, size_t offset)
{
	BqCache    *cache = (BqCache *) index->rd_amcache;
	Buffer		buffer;
	const char *page;

	if (cache == NULL || blkno >= cache->nrecent)
		return;
	buffer = cache->recent[blkno];
	/* temporary tables: local buffers may not even have memory yet */
	if (buffer <= 0)
		return;
	page = (const char *) BufferGetPage(buffer);
	__builtin_prefetch(GetBufferDescriptor(buffer - 1));
	__builtin_prefetch(page);
	prefetch_lines(page + Min(offset, BLCKSZ - PREFETCH_NBYTES));
	if (offset < MEMORY_PAGE)
		prefetch_lines(page + MEMORY_PAGE);
}

/* Pin, lock and check a page. */
Buffer
bq_read_page(Relation index, BlockNumber blkno, BqPageKind kind, int lockmode)
{
	Buffer		buffer = read_buffer(index, blkno);

	LockBuffer(buffer, lockmode);
	bq_check_page(index, buffer, kind);
	return buffer;
}

static bool
is_possible_model(const BqModel *model)
{
	for (int i = 0; i < BQ_RECALLS; i++)
		if (model->nprobes[i] < 1 || model->product_nprobes[i] < 1 || !isfinite(model->slack[i]))
			return false;
	return isfinite(model->gap);
}

/* Check a metapage and take from it what readers need. */
static void
fill_layout(Relation index, const BqMetaPageData *meta, BqLayout *layout)
{
	if (meta->magic != BQ_MAGIC)
		report_damage(index, BQ_METAPAGE_BLKNO, "metapage has no bq signature");
	if (meta->version != BQ_VERSION)
		ereport(ERROR,
				(errcode(ERRCODE_INDEX_CORRUPTED),
				 errmsg("index \"%s\" has format version %u, expected %u",
						RelationGetRelationName(index), meta->version, BQ_VERSION),
				 errhint("Rebuild the index with REINDEX.")));
	if (meta->dim < 1 || meta->dim > BQ_INDEX_MAX_DIM || meta->nlists < 1 ||
		meta->nlists > BQ_MAX_LISTS || meta->transform < -1 ||
		meta->transform > BQ_MAX_TRANSFORM || !is_possible_model(&meta->model) ||
		meta->centroid_start > meta->list_start || meta->list_start >= meta->data_start)
		report_damage(index, BQ_METAPAGE_BLKNO, "metapage has impossible values");

	layout->dim = meta->dim;
	layout->nrows = bq_block_nrows(meta->dim);
	layout->transform = meta->transform;
	layout->nlists = meta->nlists;
	layout->centroid_start = meta->centroid_start;
	layout->list_start = meta->list_start;
	layout->data_start = meta->data_start;
	memcpy(layout->margins, meta->margins, sizeof(layout->margins));
	layout->model = meta->model;
}

/* How many buffers to remember at most: 64 MB of memory for a 128 GB index. */
#define MAX_RECENT (16 * 1024 * 1024)

/* Read the layout, and the number of blocks unless NULL, from the metapage. */
BqLayout
bq_read_layout(Relation index, uint32 *nblocks)
{
	Buffer		buffer = bq_read_page(index, BQ_METAPAGE_BLKNO, BQ_PAGE_META,
									  BUFFER_LOCK_SHARE);
	BqMetaPage	meta = BqPageGetMeta(BufferGetPage(buffer));
	BqLayout	layout;

	fill_layout(index, meta, &layout);
	if (nblocks != NULL)
		*nblocks = meta->nblocks;
	UnlockReleaseBuffer(buffer);
	return layout;
}

/*
 * The layout, for a scan that begins now; also prepares the memory of buffers.  A scan
 * works with the layout it began with, even if vacuum regroups the index meanwhile.
 */
BqLayout
bq_get_layout(Relation index)
{
	if (index->rd_amcache == NULL)
	{
		BlockNumber npages = RelationGetNumberOfBlocks(index);
		/* room to grow; the relcache entry rarely lives much longer */
		BlockNumber nrecent = Min((uint64) npages + npages / 4 + 64, MAX_RECENT);
		BqCache    *cache = (BqCache *) MemoryContextAllocHuge(index->rd_indexcxt,
															   offsetof(BqCache, recent) +
															   nrecent * sizeof(Buffer));

		cache->nreads = 0;
		cache->nrecent = nrecent;
		for (BlockNumber blkno = 0; blkno < nrecent; blkno++)
			cache->recent[blkno] = InvalidBuffer;
		index->rd_amcache = cache;
	}
	return bq_read_layout(index, NULL);
}

/* Number of pages that an index of so many blocks has. */
BlockNumber
bq_data_end(const BqLayout *layout, uint32 nblocks)
{
	uint64		last_row;

	if (nblocks == 0)
		return layout->data_start;
	last_row = bq_first_row(layout, nblocks) - 1;
	/* A block's header page comes before the page of its last row. */
	if ((uint64) layout->data_start + last_row / BQ_ROWS_PER_PAGE + 2 +
		nblocks / BQ_HEADERS_PER_PAGE >= MaxBlockNumber)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("bq index cannot have more than %u pages", MaxBlockNumber),
				 errhint("Partition the table.")));
	return bq_code_page(layout, last_row) + 1;
}

/* Are the pages of so many blocks there? */
void
bq_check_size(Relation index, const BqLayout *layout, uint32 nblocks)
{
	BlockNumber npages = RelationGetNumberOfBlocks(index);

	/* a number of blocks that no index can have is damage, too */
	if (nblocks / BQ_HEADERS_PER_PAGE >= npages || bq_data_end(layout, nblocks) > npages)
		report_damage(index, npages, "page does not exist");
}

/*
 * Page `blkno`, initialised and locked exclusively, not yet WAL-logged.  It follows the
 * last page, or it exists already, left by an extension or a regrouping that a crash or
 * an error interrupted, with anything on it.  The caller prevents others from doing the
 * same: by a lock on the metapage, or because nobody else knows the page yet.
 */
Buffer
bq_new_page(Relation index, ForkNumber fork, BlockNumber blkno, BqPageKind kind)
{
	Buffer		buffer;

	if (blkno < RelationGetNumberOfBlocksInFork(index, fork))
		/* without reading it: it may be torn */
		buffer = ReadBufferExtended(index, fork, blkno, RBM_ZERO_AND_LOCK, NULL);
	else
	{
		LockRelationForExtension(index, ExclusiveLock);
		buffer = ReadBufferExtended(index, fork, P_NEW, RBM_NORMAL, NULL);
		LockBuffer(buffer, BUFFER_LOCK_EXCLUSIVE);
		UnlockRelationForExtension(index, ExclusiveLock);
		if (BufferGetBlockNumber(buffer) != blkno)
			report_damage(index, BufferGetBlockNumber(buffer), "relation grew unexpectedly");
	}
	bq_init_page(BufferGetPage(buffer), kind);
	MarkBufferDirty(buffer);
	return buffer;
}

/* Make data pages from `from` to `npages` (bq_new_page()), WAL-logged if `log`. */
void
bq_extend(Relation index, BlockNumber from, BlockNumber npages, bool log)
{
	for (BlockNumber blkno = from; blkno < npages; blkno++)
	{
		Buffer		buffer = bq_new_page(index, MAIN_FORKNUM, blkno, BQ_PAGE_DATA);

		if (log)
		{
			GenericXLogState *state = GenericXLogStart(index);

			GenericXLogRegisterBuffer(state, buffer, GENERIC_XLOG_FULL_IMAGE);
			GenericXLogFinish(state);
		}
		UnlockReleaseBuffer(buffer);
	}
}

/* Take the code in one slot out of its block. */
void
bq_read_planes(Relation index, const BqLayout *layout, uint32 block, int slot, uint8 *planes)
{
	uint64		row = bq_first_row(layout, block);
	int			j = 0;

	memset(planes, 0, bq_planes_nbytes(layout->dim));
	while (j < layout->nrows)
	{
		Buffer		buffer = bq_read_page(index, bq_code_page(layout, row + j), BQ_PAGE_DATA,
										  BUFFER_LOCK_SHARE);
		int			end = Min(layout->nrows,
							  j + BQ_ROWS_PER_PAGE - (int) ((row + j) % BQ_ROWS_PER_PAGE));

		bq_block_get_rows(BqPageGetRow(BufferGetPage(buffer), row + j), j, end, layout->dim, slot,
						  planes);
		UnlockReleaseBuffer(buffer);
		j = end;
	}
}

/* Copy the code rows of a block: bq_block_nbytes(dim) bytes. */
void
bq_read_block(Relation index, const BqLayout *layout, uint32 block, uint8 *codes)
{
	uint64		row = bq_first_row(layout, block);

	for (int j = 0; j < layout->nrows;)
	{
		int			n = Min(layout->nrows - j,
							BQ_ROWS_PER_PAGE - (int) ((row + j) % BQ_ROWS_PER_PAGE));
		Buffer		buffer = bq_read_page(index, bq_code_page(layout, row + j), BQ_PAGE_DATA,
										  BUFFER_LOCK_SHARE);

		memcpy(codes + j * BQ_ROW_NBYTES, BqPageGetRow(BufferGetPage(buffer), row + j),
			   n * BQ_ROW_NBYTES);
		UnlockReleaseBuffer(buffer);
		j += n;
	}
}
