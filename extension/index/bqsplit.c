/*
 * bqsplit.c: lists follow the data.
 *
 * Rows come where no list is near, or an index made on an empty table has one list for all.
 * VACUUM splits lists that have become much larger than a list should be, one at a time,
 * into as many as their rows call for (as SPFresh does with its postings: Xu et al., SOSP
 * 2023):
 *
 *	1. Train directions on the list's rows, and write these to blocks of new lists, in
 *	   batches, again and again until few are left that came meanwhile.  Writers go on with
 *	   the list as it is; nobody knows the new blocks.
 *	2. Close the list: writers that find it so wait for a lock.  Those that came before
 *	   hold the page of its entry: locking that, too, waits for them.
 *	3. Write the rows that are left, and the new lists' entries.
 *	4. In one WAL record, let the list be the first of the new ones, and the index have the
 *	   others.
 *
 * Scans never wait.  The entry keeps the chain that the list had, and the generation that
 * the split made; a scan that began with an earlier one reads that chain, in which all
 * rows are that its snapshot can see.  The chain is given back when no such snapshot is
 * left (bqvacuum.c), and until then the list is not split again.
 *
 * Whatever ends a split before step 4 leaves the list as it was, perhaps closed, which the
 * next writer or vacuum mends, and blocks that belong to no list, which the next vacuum
 * finds.
 */
#include "postgres.h"

#include <math.h>

#include "access/transam.h"
#include "index/bqsplit.h"
#include "miscadmin.h"
#include "port/pg_bitutils.h"
#include "postmaster/autovacuum.h"
#include "storage/lmgr.h"
#include "storage/lwlock.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/timestamp.h"

/* A list is split if it has so many times the rows that a list should have. */
#define SPLIT_FACTOR 2.5

/* Rows that came meanwhile are written beside writers, until so few are left, or so often. */
#define FEW_ROWS 256
#define MAX_ROUNDS 8

/* If a part would have all rows but a few, the rows are alike: splitting does not help. */
#define MAX_SHARE 0.95

/* Probes are measured again when one list of so many was changed, on so many rows at most. */
#define MEASURE_SHARE 10
#define MEASURE_ROWS 200000

/* Memory that this vacuum may take, in kB. */
static int
vacuum_work_mem(void)
{
#if PG_VERSION_NUM >= 170000
	bool		autovacuum = AmAutoVacuumWorkerProcess();
#else
	bool		autovacuum = IsAutoVacuumWorkerProcess();
#endif

	return autovacuum && autovacuum_work_mem != -1 ? autovacuum_work_mem : maintenance_work_mem;
}

/*
 * The set of lists
 */

/* Raise the generation; returns it. */
static uint64
next_generation(Relation index)
{
	Buffer		buffer = bq_read_page(index, BQ_METAPAGE_BLKNO, BQ_PAGE_META,
									  BUFFER_LOCK_EXCLUSIVE);
	BqMetaPage	meta = BqPageGetMeta(BufferGetPage(buffer));
	uint64		generation = meta->generation + 1;

	bq_begin_log(index);
	bq_log_set(bq_log_page(buffer), &meta->generation, uint64, generation);
	bq_finish_log();
	UnlockReleaseBuffer(buffer);
	return generation;
}

/* Make sure that the directory has room for so many lists. */
static void
grow_directory(Relation index, uint32 nlists)
{
	BqLayout	layout = bq_read_layout(index);

	while (bq_directory_capacity(&layout) < nlists)
	{
		int			segment = 0;
		uint32		n;
		Buffer		buffer;
		BqMetaPage	meta;

		while (layout.segments[segment] != BQ_NO_BLOCK)
			segment++;
		Assert(segment < BQ_SEGMENTS);
		n = bq_count_segment_blocks(&layout, bq_segment_capacity(&layout, segment));
		bq_provide_pages(index, &layout, layout.nblocks + n);
		buffer = bq_read_page(index, BQ_METAPAGE_BLKNO, BQ_PAGE_META, BUFFER_LOCK_EXCLUSIVE);
		meta = BqPageGetMeta(BufferGetPage(buffer));
		/* unless writers took the pages */
		if (bq_data_end(&layout, meta->nblocks + n) <= meta->npages)
		{
			int			page;

			bq_begin_log(index);
			page = bq_log_page(buffer);
			bq_log_set(page, &meta->segments[segment], uint32, meta->nblocks);
			bq_log_set(page, &meta->nblocks, uint32, meta->nblocks + n);
			bq_finish_log();
		}
		UnlockReleaseBuffer(buffer);
		layout = bq_read_layout(index);
	}
}

/* Write the entries of all parts but the first, as lists that nobody knows yet. */
static void
write_entries(BqSplit *split)
{
	for (uint32 part = 1; part < split->nparts; part++)
	{
		BqListData *entry;
		Buffer		buffer = bq_read_entry(split->index, &split->layout, bq_part_list(split, part),
										   BUFFER_LOCK_EXCLUSIVE, &entry);

		bq_begin_log(split->index);
		bq_log_change(bq_log_page(buffer), entry, &split->parts[part], sizeof(BqListData));
		bq_finish_log();
		UnlockReleaseBuffer(buffer);
	}
}

static void
set_closed(BqSplit *split)
{
	BqListData *entry;
	Buffer		buffer = bq_read_entry(split->index, &split->layout, split->list,
									   BUFFER_LOCK_EXCLUSIVE, &entry);

	bq_begin_log(split->index);
	bq_log_set(bq_log_page(buffer), &entry->closed, uint16, true);
	bq_finish_log();
	UnlockReleaseBuffer(buffer);
}

/* Let the index have the new lists. */
static void
switch_lists(BqSplit *split)
{
	Relation	index = split->index;
	BqListData *entry;
	Buffer		list_buffer = bq_read_entry(index, &split->layout, split->list,
											BUFFER_LOCK_EXCLUSIVE, &entry);
	Buffer		meta_buffer = bq_read_page(index, BQ_METAPAGE_BLKNO, BQ_PAGE_META,
										   BUFFER_LOCK_EXCLUSIVE);
	BqMetaPage	meta = BqPageGetMeta(BufferGetPage(meta_buffer));
	BqListData	changed = split->parts[0];
	int			page;

	changed.old_head = entry->head;
	changed.old_nblocks = entry->nblocks;
	changed.old_epoch = entry->epoch;
	changed.changed = meta->generation + 1;
	/* a snapshot that is older than the switch does not see this transaction as finished */
	changed.freed = U64FromFullTransactionId(ReadNextFullTransactionId());

	bq_begin_log(index);
	bq_log_change(bq_log_page(list_buffer), entry, &changed, sizeof(BqListData));
	page = bq_log_page(meta_buffer);
	bq_log_set(page, &meta->nlists, uint32, meta->nlists + split->nparts - 1);
	bq_log_set(page, &meta->generation, uint64, changed.changed);
	bq_log_set(page, &meta->nchanged, uint32, meta->nchanged + split->nparts);
	bq_log_set(page, &meta->split_at, int64, GetCurrentTimestamp());
	bq_finish_log();
	UnlockReleaseBuffer(meta_buffer);
	UnlockReleaseBuffer(list_buffer);
}

/* Remember that a list cannot be split, until it has grown. */
static void
decline(BqSplit *split, const char *reason)
{
	BqListData *entry;
	Buffer		buffer = bq_read_entry(split->index, &split->layout, split->list,
									   BUFFER_LOCK_EXCLUSIVE, &entry);

	bq_begin_log(split->index);
	bq_log_set(bq_log_page(buffer), &entry->tried, uint16,
			   (uint16) Min(entry->nblocks, UINT16_MAX));
	bq_finish_log();
	UnlockReleaseBuffer(buffer);
	ereport(DEBUG1,
			(errmsg_internal("list %u of index \"%s\" was not split: %s", split->list,
					RelationGetRelationName(split->index), reason)));
}

/*
 * Extend the index for `needed` blocks more than are free; false if the disk is full.  Vacuum of the
 * table must go on then.  Nothing but this is tried, and all that it holds is let go.
 */
static bool
have_room(Relation index, const BqLayout *layout, uint32 needed)
{
	uint32		nfree = bq_read_metapage(index).nfree;
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner outer = CurrentResourceOwner;
	ResourceOwner owner = ResourceOwnerCreate(outer, "bq split");
	volatile bool full = false;

	CurrentResourceOwner = owner;
	PG_TRY();
	{
		if (needed > nfree)
			bq_provide_pages(index, layout, layout->nblocks + needed - nfree);
	}
	PG_CATCH();
	{
		ErrorData  *error;

		CurrentResourceOwner = outer;
		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		if (error->sqlerrcode != ERRCODE_DISK_FULL)
			PG_RE_THROW();
		FlushErrorState();
		full = true;
		LWLockReleaseAll();
#if PG_VERSION_NUM < 160000
		AbortBufferIO();
#endif
		UnlockBuffers();
		ereport(WARNING,
				(errcode(ERRCODE_DISK_FULL),
				 errmsg("lists of index \"%s\" were not split: %s",
						RelationGetRelationName(index), error->message),
				 errhint("Free disk space, then VACUUM the table.")));
		FreeErrorData(error);
	}
	PG_END_TRY();
	CurrentResourceOwner = outer;
	ResourceOwnerRelease(owner, RESOURCE_RELEASE_BEFORE_LOCKS, !full, false);
	ResourceOwnerRelease(owner, RESOURCE_RELEASE_LOCKS, !full, false);
	ResourceOwnerRelease(owner, RESOURCE_RELEASE_AFTER_LOCKS, !full, false);
	ResourceOwnerDelete(owner);
	return !full;
}

static int
compare_sizes(const void *a, const void *b)
{
	size_t		x = *(const size_t *) a;
	size_t		y = *(const size_t *) b;

	return x < y ? -1 : x > y;
}

/* Of the rows in memory, those in the largest part. */
static size_t
largest_part(const BqSplit *split, const uint32 *lists)
{
	size_t	   *counts = (size_t *) palloc0(split->nparts * sizeof(size_t));
	size_t		largest;

	for (size_t i = 0; i < split->rows.n; i++)
		counts[lists[i]]++;
	qsort(counts, split->nparts, sizeof(size_t), compare_sizes);
	largest = counts[split->nparts - 1];
	pfree(counts);
	return largest;
}

/*
 * BqSplit a list of about `nrows` rows so that parts have about `target`, into `most` parts
 * at most.  Returns the number of lists that it adds.
 */
static uint32
split_list(IndexVacuumInfo *info, uint32 list, double nrows, double target, uint32 most)
{
	BqSplit		split = {.info = info, .index = info->index, .list = list};
	int			dim;
	size_t		limit;
	bool		whole;
	pg_prng_state random;
	const uint32 *lists;

	split.layout = bq_read_layout(split.index);
	dim = split.layout.dim;
	split.codes = (uint8 *) palloc(bq_block_nbytes(dim));
	limit = bq_rows_limit(dim, split.layout.nkeys, vacuum_work_mem(), false, 0);
	limit = Max(BQ_BLOCK, Min(limit, (size_t) (nrows * 1.25) + 1024));
	split.rows.nkeys = split.layout.nkeys;
	split.rows.n = limit - 1;
	bq_grow_rows(&split.rows, dim, limit);
	split.rows.n = 0;
	split.limit = limit;

	/* all rows, or if they do not fit a sample to learn from */
	pg_prng_seed(&random, 0x6271);
	whole = bq_read_list_rows(&split, 1, NULL);
	if (!whole)
	{
		memset(split.seen, 0, split.nseen * sizeof(uint32));
		bq_read_list_rows(&split, Min(0.9 * limit / nrows, 0.9), &random);
	}
	else
		nrows = (double) split.rows.n;
	split.nparts = (uint32) Min(Min(rint(nrows / target), most), (double) (split.rows.n / 2));
	if (split.nparts < 2 || nrows < SPLIT_FACTOR * target)
		return 0;

	split.assigner = bq_begin_assigning(dim, &split.rows, split.nparts, 0);
	split.clusters = bq_train(split.assigner, split.nparts);
	lists = bq_assign_rows(split.assigner, &split.clusters);
	if (largest_part(&split, lists) > MAX_SHARE * split.rows.n)
	{
		decline(&split, "its rows are too much alike");
		return 0;
	}

	/* every part has a block that is not full */
	if (!have_room(split.index, &split.layout, (uint32) (nrows / BQ_BLOCK) + split.nparts))
		return 0;
	grow_directory(split.index, split.layout.nlists + split.nparts - 1);
	split.epoch = (uint32) next_generation(split.index);
	split.layout = bq_read_layout(split.index);
	split.parts = (BqListData *) palloc0(split.nparts * sizeof(BqListData));
	split.room = (uint8 *) palloc0(split.nparts);
	for (uint32 part = 0; part < split.nparts; part++)
	{
		split.parts[part].head = BQ_NO_BLOCK;
		split.parts[part].free = BQ_NO_BLOCK;
		split.parts[part].old_head = BQ_NO_BLOCK;
		split.parts[part].epoch = split.epoch;
	}
	bq_set_directions(split.index, &split.layout, &split.clusters.lists, 1, split.layout.nlists,
					  split.nparts - 1);
	if (whole)
		bq_write_batch(&split, lists);
	for (int round = 0; round < MAX_ROUNDS && bq_move_rows(&split) > FEW_ROWS; round++)
		;

	LockPage(split.index, BQ_METAPAGE_BLKNO, ExclusiveLock);
	split.hurry = true;
	set_closed(&split);
	bq_move_rows(&split);
	write_entries(&split);
	switch_lists(&split);
	UnlockPage(split.index, BQ_METAPAGE_BLKNO, ExclusiveLock);
	ereport(DEBUG1,
			(errmsg_internal("list %u of index \"%s\" became %u; %u of its %u blocks were read while it was closed",
							 list, RelationGetRelationName(split.index), split.nparts,
							 split.nread_closed, split.nseen)));
	/* until now it was that of the whole list; few queries mind */
	bq_set_directions(split.index, &split.layout, &split.clusters.lists, 0, list, 1);
	return split.nparts - 1;
}

/*
 * Probes
 */

/* Measure how many lists scans must read, as a build does, on a sample of the rows. */
static void
measure_probes(IndexVacuumInfo *info, double nrows)
{
	Relation	index = info->index;
	BqLayout	layout = bq_read_layout(index);
	BqListData *entries = bq_read_entries(index, &layout);
	BqSplit		sample = {.index = index, .layout = layout};
	size_t		limit = Min(bq_rows_limit(layout.dim, layout.nkeys, vacuum_work_mem(), false, 0),
							MEASURE_ROWS);
	double		share = limit / Max(1.2 * nrows, 1);
	BqCentroids centroids;
	uint32	   *lists;
	pg_prng_state random;
	Buffer		buffer;
	BqMetaPage	meta;
	int			page;

	if ((double) layout.nlists * layout.dim * sizeof(float) > vacuum_work_mem() * 1024.0)
	{
		ereport(DEBUG1,
				(errmsg_internal("probes of index \"%s\" were not measured: %u directions do not fit the memory",
						RelationGetRelationName(index), layout.nlists)));
		return;
	}
	limit = Max(BQ_BLOCK, Min(limit, (size_t) (nrows * 1.25) + 1024));
	sample.codes = (uint8 *) palloc(bq_block_nbytes(layout.dim));
	sample.rows.nkeys = layout.nkeys;
	sample.rows.n = limit - 1;
	bq_grow_rows(&sample.rows, layout.dim, limit);
	sample.rows.n = 0;
	lists = (uint32 *) MemoryContextAllocHuge(CurrentMemoryContext, limit * sizeof(uint32));
	pg_prng_seed(&random, 0x6271);
	for (uint32 b = 0; b < layout.nblocks; b++)
	{
		BqWholeBlock whole;
		const BqBlockData *block = &whole.data;

		if (bq_is_directory(&layout, b) || pg_prng_double(&random) >= share)
			continue;
		bq_delay_point();
		bq_read_block(index, &layout, b, &whole, sample.codes);
		if (block->list >= layout.nlists || block->epoch != entries[block->list].epoch)
			continue;
		if (sample.rows.n + pg_popcount32(block->live) > limit)
			break;
		for (int i = 0; i < pg_popcount32(block->live); i++)
			lists[sample.rows.n + i] = block->list;
		bq_add_rows(&sample, &whole, block->live);
	}
	if (sample.rows.n == 0)
		return;

	centroids = bq_read_directions(index, &layout);
	bq_measure(NULL, index, &centroids, &sample.rows, lists,
			   Max(nrows, (double) sample.rows.n), &layout);
	buffer = bq_read_page(index, BQ_METAPAGE_BLKNO, BQ_PAGE_META, BUFFER_LOCK_EXCLUSIVE);
	meta = BqPageGetMeta(BufferGetPage(buffer));
	bq_begin_log(index);
	page = bq_log_page(buffer);
	bq_log_set(page, &meta->model, BqModel, layout.model);
	bq_log_change(page, meta->margins, layout.margins, sizeof(meta->margins));
	bq_log_set(page, &meta->build_rows, double, nrows);
	bq_log_set(page, &meta->nchanged, uint32, 0);
	bq_finish_log();
	UnlockReleaseBuffer(buffer);
}

/* BqSplit the lists of an index of about `nrows` rows that need it. */
void
bq_split_lists(IndexVacuumInfo *info, double nrows)
{
	Relation	index = info->index;
	BqOptions  *options = (BqOptions *) index->rd_options;
	BqLayout	layout = bq_read_layout(index);
	BqListData *entries = bq_read_entries(index, &layout);
	uint32		wanted = bq_choose_lists(index, nrows);
	/* as many as were asked for, or more than it would be built with where data are uneven */
	uint32		most = options != NULL && options->lists > 0 ? wanted :
		(uint32) Min((uint64) wanted * 2, BQ_MAX_LISTS);
	double		target = nrows / wanted;
	double		nblocks = 0;
	uint32		nlists = layout.nlists;
	uint32		nsplit = 0;
	MemoryContext context;
	MemoryContext old_context;

	for (uint32 list = 0; list < layout.nlists; list++)
		nblocks += entries[list].nblocks;
	context = AllocSetContextCreate(CurrentMemoryContext, "bq split", ALLOCSET_DEFAULT_SIZES);
	old_context = MemoryContextSwitchTo(context);
	for (uint32 list = 0; list < layout.nlists && wanted > 1 && nlists < most; list++)
	{
		const BqListData *entry = &entries[list];
		/* as many rows as its part of the blocks, at most what they hold */
		double		estimate = Min(nrows * entry->nblocks / nblocks * 1.25,
								   (double) entry->nblocks * BQ_BLOCK);
		uint32		nadded;

		if (estimate < SPLIT_FACTOR * target || entry->old_head != BQ_NO_BLOCK ||
			entry->nblocks < entry->tried * 1.5)
			continue;
		nadded = split_list(info, list, estimate, target, most - nlists + 1);
		nlists += nadded;
		nsplit += nadded > 0;
		MemoryContextReset(context);
		bq_delay_point();
	}
	if (nsplit > 0)
		ereport(DEBUG1,
				(errmsg_internal("index \"%s\": %u of %u lists were split, there are %u now",
						RelationGetRelationName(index), nsplit, layout.nlists, nlists)));
	/* also after a split whose vacuum was interrupted */
	if (nlists > 1 && (uint64) bq_read_metapage(index).nchanged * MEASURE_SHARE > nlists)
		measure_probes(info, nrows);
	MemoryContextSwitchTo(old_context);
	MemoryContextDelete(context);
}
