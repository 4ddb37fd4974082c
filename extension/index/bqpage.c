/* bqpage.c: pages and where they lie: initialising, checking, reading, extending. */
#include "postgres.h"

#include <math.h>

#include "index/bqindex.h"
#include "miscadmin.h"
#include "storage/buf_internals.h"	/* of the server; only for the address of a descriptor */
#include "storage/lmgr.h"
#include "utils/memutils.h"

void
bq_init_page(Page page, BqPageKind kind)
{
	PageInit(page, BLCKSZ, sizeof(BqPageOpaqueData));
	BqPageGetOpaque(page)->kind = kind;
	BqPageGetOpaque(page)->page_id = BQ_PAGE_ID;
	BqPageGetKind(page) = kind;
	/* Replay clears what lies between lower and upper (bqlog.c): leave no such hole. */
	((PageHeader) page)->pd_lower = ((PageHeader) page)->pd_upper;
}

void
bq_report_damage(Relation index, BlockNumber blkno, const char *what)
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
		bq_report_damage(index, BufferGetBlockNumber(buffer), "page is empty");
	if (PageGetSpecialSize(page) != MAXALIGN(sizeof(BqPageOpaqueData)))
		bq_report_damage(index, BufferGetBlockNumber(buffer), "page is not of a bq index");

	if (BqPageGetKind(page) != (TransactionId) kind)
		bq_report_damage(index, BufferGetBlockNumber(buffer), "page is of an unexpected kind");
	/* bq_index_check() looks at the far end of the others */
	if (kind != BQ_PAGE_META)
		return;
	if (BqPageGetOpaque(page)->page_id != BQ_PAGE_ID)
		bq_report_damage(index, BufferGetBlockNumber(buffer), "page is not of a bq index");
	if (BqPageGetOpaque(page)->kind != kind)
		bq_report_damage(index, BufferGetBlockNumber(buffer), "page is of an unexpected kind");
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
 * What this backend knows of the length of the index is nearly always enough.  That is a
 * field of the storage manager which others use in recovery only, as files grow: as a lower
 * bound it holds, and asking the file system would be a call for each page.
 */
static bool
page_exists(Relation index, BlockNumber blkno)
{
	BlockNumber known = RelationGetSmgr(index)->smgr_cached_nblocks[MAIN_FORKNUM];

	return (known != InvalidBlockNumber && blkno < known) ||
		blkno < RelationGetNumberOfBlocks(index);
}

/*
 * A damaged list may lead anywhere: say so before the storage manager does, and before
 * InvalidBlockNumber makes a new page.
 */
static void
check_exists(Relation index, BlockNumber blkno)
{
	if (!page_exists(index, blkno))
		bq_report_damage(index, blkno, "page does not exist");
}

/* After a page was not where it had been, that many others are looked at. */
#define SUSPECTS 256

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
	if (BufferIsValid(buffer) && cache->nreads % READS_PER_USE != 0)
		cache->nlost = SUSPECTS;
	check_exists(index, blkno);
	buffer = ReadBuffer(index, blkno);
	/* which may have dropped what was remembered */
	cache = (BqCache *) index->rd_amcache;
	if (cache != NULL && blkno < cache->nrecent)
		cache->recent[blkno] = buffer;
	return buffer;
}

/*
 * Is another page in the buffer by now?  To look waits for memory, so this is asked only where
 * pages were lost before.  Without a lock: a wrong answer costs time, and nothing else.
 */
static bool
was_lost(BqCache *cache, BlockNumber blkno, Buffer buffer)
{
	cache->nlost--;
	return GetBufferDescriptor(buffer - 1)->tag.blockNum != blkno;
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
 * Ask for a page soon to be read from `offset` on.  If we think to know where it is, the CPU:
 * reading then runs at the speed of memory instead of waiting at the start of each page of
 * memory.  Else the system, if it may read from disk; true if it has to.
 */
bool
bq_prefetch(Relation index, BlockNumber blkno, size_t offset, bool from_disk)
{
	BqCache    *cache = (BqCache *) index->rd_amcache;
	Buffer		buffer;
	const char *page;

	if (cache == NULL || blkno >= cache->nrecent)
		return false;
	buffer = cache->recent[blkno];
	/* temporary tables: local buffers may not even have memory yet */
	if (buffer < 0)
		return false;
	if (buffer == InvalidBuffer || (cache->nlost > 0 && was_lost(cache, blkno, buffer)))
	{
		PrefetchBufferResult result;

		/* a guess may lead beyond the end, where the next file of the index is not there yet */
		if (!from_disk || !page_exists(index, blkno))
			return false;
		result = PrefetchBuffer(index, MAIN_FORKNUM, blkno);
		if (result.recent_buffer > 0)
			cache->recent[blkno] = result.recent_buffer;
		return result.initiated_io;
	}
	page = (const char *) BufferGetPage(buffer);
	/* what ReadRecentBuffer() looks at first; nothing is read through it here */
	__builtin_prefetch(GetBufferDescriptor(buffer - 1));
	__builtin_prefetch(page);
	prefetch_lines(page + Min(offset, BLCKSZ - PREFETCH_NBYTES));
	if (offset < MEMORY_PAGE)
		prefetch_lines(page + MEMORY_PAGE);
	return false;
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
		if (model->nprobes[i] < 1 || model->product_nprobes[i] < 1 || model->ngroups[i] < 1 ||
			!isfinite(model->slack[i]) || !isfinite(model->later_slack[i]) || !(model->deviations[i] >= 0))
			return false;
	return isfinite(model->gap);
}

/*
 * The runs of the directory must lie within the blocks, each once: nobody may find its
 * lists where blocks are, and lock a page as both.
 */
static void
check_directory(Relation index, const BqLayout *layout)
{
	uint32		end = 0;

	for (int i = 0; i < BQ_SEGMENTS && layout->segments[i] != BQ_NO_BLOCK; i++)
	{
		uint32		n = bq_count_segment_blocks(layout, bq_segment_capacity(layout, i));

		if (layout->segments[i] < end || n > layout->nblocks ||
			layout->segments[i] > layout->nblocks - n)
			bq_report_damage(index, BQ_METAPAGE_BLKNO, "directory is where it cannot be");
		end = layout->segments[i] + n;
	}
	if (layout->nlists > bq_directory_capacity(layout))
		bq_report_damage(index, BQ_METAPAGE_BLKNO, "directory has no room for all lists");
}

/*
 * Are there pages for all blocks, as the metapage has it?  If not, making them would write over
 * blocks, or fill the disk.
 */
static bool
has_pages(const BqLayout *layout, BlockNumber npages)
{
	uint64		nrows = bq_first_row(layout, layout->nblocks);

	return layout->nblocks > 0 && nrows / BQ_ROWS_PER_PAGE < npages &&
		bq_code_page(layout, nrows - 1) < npages;
}

/* Check a metapage and take from it what readers need. */
static void
fill_layout(Relation index, const BqMetaPageData *meta, BqLayout *layout)
{
	if (meta->magic != BQ_MAGIC)
		bq_report_damage(index, BQ_METAPAGE_BLKNO, "metapage has no bq signature");
	if (meta->version != BQ_VERSION)
		ereport(ERROR,
				(errcode(ERRCODE_INDEX_CORRUPTED),
				 errmsg("index \"%s\" has format version %u, expected %u",
						RelationGetRelationName(index), meta->version, BQ_VERSION),
				 errhint("Rebuild the index with REINDEX.")));
	if (meta->dim < 1 || meta->dim > BQ_INDEX_MAX_DIM || meta->nlists < 1 ||
		meta->nlists > BQ_MAX_LISTS || meta->transform < -1 ||
		meta->transform > BQ_MAX_TRANSFORM || !is_possible_model(&meta->model) ||
		meta->nkeys != (uint32) bq_count_keys(index) || meta->data_start <= BQ_METAPAGE_BLKNO ||
		meta->capacity < BQ_BLOCK || meta->capacity > BQ_MAX_LISTS ||
		meta->capacity % BQ_BLOCK != 0 || meta->nfree > meta->nblocks)
		bq_report_damage(index, BQ_METAPAGE_BLKNO, "metapage has impossible values");

	bq_set_layout(layout, meta->dim, meta->nkeys);
	layout->transform = meta->transform;
	layout->nlists = meta->nlists;
	layout->data_start = meta->data_start;
	layout->nblocks = meta->nblocks;
	layout->capacity = meta->capacity;
	memcpy(layout->segments, meta->segments, sizeof(layout->segments));
	layout->generation = meta->generation;
	memcpy(layout->margins, meta->margins, sizeof(layout->margins));
	layout->model = meta->model;
	if (!has_pages(layout, meta->npages))
		bq_report_damage(index, BQ_METAPAGE_BLKNO, "index has fewer pages than its blocks");
	check_directory(index, layout);
}

/* How many buffers to remember at most: 64 MB of memory for a 128 GB index. */
#define MAX_RECENT (16 * 1024 * 1024)

/* Read the layout from the metapage. */
BqLayout
bq_read_layout(Relation index)
{
	Buffer		buffer = bq_read_page(index, BQ_METAPAGE_BLKNO, BQ_PAGE_META,
									  BUFFER_LOCK_SHARE);
	BqMetaPage	meta = BqPageGetMeta(BufferGetPage(buffer));
	BqLayout	layout;

	fill_layout(index, meta, &layout);
	UnlockReleaseBuffer(buffer);
	return layout;
}

/* Copy the metapage, as it is. */
BqMetaPageData
bq_read_metapage(Relation index)
{
	Buffer		buffer = bq_read_page(index, BQ_METAPAGE_BLKNO, BQ_PAGE_META,
									  BUFFER_LOCK_SHARE);
	BqMetaPageData meta = *BqPageGetMeta(BufferGetPage(buffer));

	UnlockReleaseBuffer(buffer);
	return meta;
}

/*
 * The layout, for a scan that begins now; also prepares the memory of buffers.  A scan
 * works with the layout it began with, even if vacuum splits lists meanwhile.
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
		cache->nlost = 0;
		cache->nrecent = nrecent;
		for (BlockNumber blkno = 0; blkno < nrecent; blkno++)
			cache->recent[blkno] = InvalidBuffer;
		index->rd_amcache = cache;
	}
	return bq_read_layout(index);
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
		nblocks / layout->headers_per_page >= MaxBlockNumber)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("bq index cannot have more than %u pages", MaxBlockNumber),
				 errhint("Partition the table.")));
	return bq_code_page(layout, last_row) + 1;
}

/* Are the pages of all blocks there? */
void
bq_check_size(Relation index, const BqLayout *layout)
{
	BlockNumber npages = RelationGetNumberOfBlocks(index);

	/* a number of blocks that no index can have is damage, too */
	if (layout->nblocks / layout->headers_per_page >= npages ||
		bq_data_end(layout, layout->nblocks) > npages)
		bq_report_damage(index, npages, "page does not exist");
}

/*
 * Page `blkno`, initialised and locked exclusively, not yet WAL-logged.  It follows the
 * last page, or it exists already, left by an extension that a crash or an error
 * interrupted, with anything on it.  The caller prevents others from doing the same: by
 * the lock for extension, or because nobody else knows the index yet.
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
		buffer = ReadBufferExtended(index, fork, P_NEW, RBM_NORMAL, NULL);
		LockBuffer(buffer, BUFFER_LOCK_EXCLUSIVE);
		if (BufferGetBlockNumber(buffer) != blkno)
			bq_report_damage(index, BufferGetBlockNumber(buffer), "relation grew unexpectedly");
	}
	bq_init_page(BufferGetPage(buffer), kind);
	MarkBufferDirty(buffer);
	return buffer;
}

/* What a page of the data area is for. */
BqPageKind
bq_page_kind(const BqLayout *layout, BlockNumber blkno)
{
	uint64		rows_per_header = (uint64) layout->headers_per_page * layout->nrows;
	uint64		place = blkno - layout->data_start;
	uint64		m = place * BQ_ROWS_PER_PAGE / (BQ_ROWS_PER_PAGE + rows_per_header);

	/* header page m lies before the codes of its blocks, see bq_header_page() */
	for (uint64 end = m + 2; m < end; m++)
		if (m + m * rows_per_header / BQ_ROWS_PER_PAGE == place)
			return BQ_PAGE_HEADERS;
	return BQ_PAGE_CODES;
}

/* Make data pages from `from` to `npages`, for a build: they are logged at its end. */
void
bq_extend(Relation index, const BqLayout *layout, BlockNumber from, BlockNumber npages)
{
	for (BlockNumber blkno = from; blkno < npages; blkno++)
	{
		CHECK_FOR_INTERRUPTS();
		UnlockReleaseBuffer(bq_new_page(index, MAIN_FORKNUM, blkno, bq_page_kind(layout, blkno)));
	}
}

/*
 * An index that is full grows by this part of itself, so that few insertions wait for that, but
 * by no more pages (2 MB) at a time, so that they do not wait long.
 */
#define GROWTH 64
#define GROWTH_PAGES 256

/*
 * Add pages until there are `end`, or GROWTH_PAGES; true if there are so many.
 */
static bool
add_pages(Relation index, const BqLayout *layout, BlockNumber end)
{
	BlockNumber from;
	Buffer		meta_buffer;
	BqMetaPage	meta;
	bool		done;

	LockRelationForExtension(index, ExclusiveLock);
	from = bq_read_metapage(index).npages;
	if (from > RelationGetNumberOfBlocks(index))
		bq_report_damage(index, from - 1, "page does not exist");
	done = end <= from || end - from <= GROWTH_PAGES;
	if (from < end)
	{
		end = Max(end, from + Min(from / GROWTH, MaxBlockNumber - from));
		if (end - from > GROWTH_PAGES)
			end = from + GROWTH_PAGES;
		for (BlockNumber blkno = from; blkno < end;)
		{
			Buffer		buffers[BQ_LOG_PAGES];
			int			n = 0;

			for (; n < BQ_LOG_PAGES && blkno < end; blkno++)
				buffers[n++] = bq_new_page(index, MAIN_FORKNUM, blkno,
										   bq_page_kind(layout, blkno));
			bq_log_new_pages(index, buffers, n);
			while (n > 0)
				UnlockReleaseBuffer(buffers[--n]);
			CHECK_FOR_INTERRUPTS();
		}
		meta_buffer = bq_read_page(index, BQ_METAPAGE_BLKNO, BQ_PAGE_META,
								   BUFFER_LOCK_EXCLUSIVE);
		meta = BqPageGetMeta(BufferGetPage(meta_buffer));
		bq_begin_log(index);
		bq_log_set(bq_log_page(meta_buffer), &meta->npages, BlockNumber, end);
		bq_finish_log();
		UnlockReleaseBuffer(meta_buffer);
	}
	UnlockRelationForExtension(index, ExclusiveLock);
	return done;
}

/*
 * Make sure that the pages of so many blocks exist and are initialised.  Called without
 * any page locked: writers go on meanwhile, and those that need pages as well wait for a step.
 */
void
bq_provide_pages(Relation index, const BqLayout *layout, uint32 nblocks)
{
	BlockNumber end = bq_data_end(layout, nblocks);

	while (!add_pages(index, layout, end))
		;
}
