/*
 * bqshare.c: reading lists once for many queries.
 *
 * What a query pays for a list is mostly the way to it: pages to find and lock, and codes from
 * beyond a core's caches.  Queries that are asked together share that.  They choose lists in
 * waves; those of a wave are read in the order of their numbers, each into a copy that stays in
 * the caches while every query that chose it compares its codes.
 *
 * A query that stops by a margin knows where only while it reads.  The first wave has the lists that
 * it reads in any case; the next one, those that are near enough by what is known then, and of them
 * each is asked for again when it is its turn.
 */
#include "postgres.h"

#include "index/bqscan.h"
#include "miscadmin.h"
#include "port/pg_bitutils.h"

/* Bytes of codes in a copy, but for one block that is larger: half of what a core has nearest. */
#define COPY_NBYTES (24 * 1024)

#define LINE_NBYTES 64

/* A list that a query has chosen: the i-th of its ranking. */
typedef struct Visit
{
	uint32		scan;
	uint32		i;
	float		score;
	uint8		segment;
} Visit;

/* Lists of a wave in the order of their numbers, and for each its visits. */
typedef struct Wave
{
	uint32		nlists;
	uint32	   *lists;
	uint32	   *ends;			/* in `visits`: of each; the next one begins there */
	Visit	   *visits;
} Wave;

/* Blocks of a list in memory. */
typedef struct Copy
{
	uint32		capacity;
	uint32		nblocks;
	uint32		nrows;			/* live */
	uint32	   *numbers;
	char	   *headers;
	uint8	   *codes;
} Copy;

/*
 * Let each query choose lists, `most` of them, and sort them.  `firsts` has where it
 * begins and is moved on.  No lists: all have chosen all that they want.
 */
static Wave
choose_wave(BqScan **scans, int n, uint32 *firsts, uint32 most)
{
	uint32		nlists = scans[0]->layout.nlists;
	uint32	   *counts = (uint32 *) palloc0(nlists * sizeof(uint32));
	uint32	   *ends = (uint32 *) palloc(n * sizeof(uint32));
	uint32		nvisits = 0;
	uint32		place = 0;
	Wave		wave = {0};

	for (int s = 0; s < n; s++)
	{
		BqScan	   *so = scans[s];
		uint32		i = firsts[s];
		/* those that it reads in any case, or, when these are read, others */
		uint32		sure = Max(so->nchosen, so->least);
		uint32		end = i < sure ? Min(sure, i + most) : i + most;

		for (; i < end && bq_choose_list(so, i); i++)
			counts[bq_ranked_list(&so->ranking, i)]++;
		ends[s] = i;
		nvisits += i - firsts[s];
	}

	wave.lists = (uint32 *) palloc(Max(Min(nvisits, nlists), 1) * sizeof(uint32));
	wave.ends = (uint32 *) palloc(Max(Min(nvisits, nlists), 1) * sizeof(uint32));
	wave.visits = (Visit *) palloc(Max(nvisits, 1) * sizeof(Visit));
	for (uint32 list = 0; list < nlists; list++)
	{
		uint32		count = counts[list];

		if (count == 0)
			continue;
		counts[list] = place;
		place += count;
		wave.lists[wave.nlists] = list;
		wave.ends[wave.nlists++] = place;
	}
	for (int s = 0; s < n; s++)
	{
		for (uint32 i = firsts[s]; i < ends[s]; i++)
		{
			uint32		list = bq_ranked_list(&scans[s]->ranking, i);
			Visit	   *visit = &wave.visits[counts[list]++];

			visit->scan = (uint32) s;
			visit->i = i;
			visit->score = bq_ranked_score(&scans[s]->ranking, i);
			visit->segment = scans[s]->ranking.order[i].segment;
		}
		firsts[s] = ends[s];
	}
	pfree(counts);
	pfree(ends);
	return wave;
}

static void
free_wave(Wave *wave)
{
	pfree(wave->lists);
	pfree(wave->ends);
	pfree(wave->visits);
}

/* Copy the next blocks of a list, none at its end.  No page stays locked. */
static void
copy_blocks(BqListReader *reader, Copy *copy)
{
	const BqLayout *layout = reader->layout;
	const BqBlockData *block;

	copy->nblocks = 0;
	copy->nrows = 0;
	while (copy->nblocks < copy->capacity && (block = bq_next_block(reader)) != NULL)
	{
		uint32		b = copy->nblocks++;

		copy->numbers[b] = reader->block;
		copy->nrows += pg_popcount32(block->live);
		memcpy(copy->headers + b * layout->header_nbytes, block, layout->header_nbytes);
		bq_copy_rows(reader, copy->codes + b * layout->nrows * BQ_ROW_NBYTES);
	}
	bq_end_list(reader);
}

/* Of many queries, none is in a core's nearest caches when it is its turn. */
static inline void
prefetch_query(const BqScan *so)
{
	for (size_t i = 0; i < offsetof(BqScan, scan_context); i += LINE_NBYTES)
		__builtin_prefetch((const char *) so + i);
}

/* Read a list into the candidates of those who chose it. */
static void
read_list(Relation index, BqScan **scans, const Visit *visits, uint32 nvisits,
		  const BqChain *chain, Copy *copy)
{
	const BqLayout *layout = &scans[visits[0].scan]->layout;
	BqListReader reader;
	bool		first = true;

	bq_begin_list(&reader, index, layout, chain);
	for (copy_blocks(&reader, copy); first || copy->nblocks > 0; copy_blocks(&reader, copy))
	{
		for (uint32 v = 0; v < nvisits; v++)
		{
			BqScan	   *so = scans[visits[v].scan];
			uint32		i = visits[v].i;
			BqListReader at = {
				.index = index,
				.layout = layout,
				.chain = *chain,
				.packed = layout->nrows
			};

			if (v + 1 < nvisits)
				prefetch_query(scans[visits[v + 1].scan]);
			if (!bq_is_list_near(so, i, visits[v].score))
				continue;
			if (i >= so->ncounted)
			{
				so->nscanned += copy->nrows;
				so->nseen += copy->nrows;
			}
			for (uint32 b = 0; b < copy->nblocks; b++)
			{
				const BqBlockData *block =
					(BqBlockData *) (copy->headers + b * layout->header_nbytes);

				at.block = copy->numbers[b];
				at.copied = copy->codes + b * layout->nrows * BQ_ROW_NBYTES;
				bq_take_block(index, so, visits[v].segment, &at, block, block->live);
			}
			/* blocks can be left half read as soon as there is a limit */
			if (!so->dropped)
				bq_limit_candidates(so);
			so->nlists += first;
		}
		first = false;
		CHECK_FOR_INTERRUPTS();
	}
}

/* Read the lists of a wave. */
static void
read_wave(Relation index, BqScan **scans, const Wave *wave, Copy *copy)
{
	const BqScan *so = scans[0];
	BqChain		chains[BQ_MAX_AHEAD + 1];
	uint32		asked = 0;
	uint32		ahead = 1;
	uint32		place = 0;

	for (uint32 i = 0; i < wave->nlists; i++)
	{
		for (; asked <= i + ahead && asked < wave->nlists; asked++)
		{
			BqChain    *chain = &chains[asked % lengthof(chains)];

			*chain = bq_read_chain(index, &so->layout, wave->lists[asked]);
			/* the disk takes its time, but can do several things at once */
			if (bq_ask_for_list(index, so, chain))
				ahead = Min(so->io_concurrency, BQ_MAX_AHEAD);
		}
		read_list(index, scans, wave->visits + place, wave->ends[i] - place,
				  &chains[i % lengthof(chains)], copy);
		place = wave->ends[i];
	}
}

/*
 * Read the lists that these queries are waiting for.  They are of one index, with the same layout;
 * `most_visits` bounds what is noted of them at a time.
 */
void
bq_read_together(Relation index, BqScan **scans, int n, uint32 most_visits)
{
	const BqLayout *layout = &scans[0]->layout;
	size_t		block_nbytes = (size_t) layout->nrows * BQ_ROW_NBYTES;
	uint32		most = Max(most_visits / n, 1);
	uint32	   *firsts = (uint32 *) palloc(n * sizeof(uint32));
	Copy		copy = {.capacity = Max(COPY_NBYTES / block_nbytes, 1)};
	bool		more = true;

	copy.numbers = (uint32 *) palloc(copy.capacity * sizeof(uint32));
	copy.headers = (char *) palloc(copy.capacity * layout->header_nbytes);
	copy.codes = (uint8 *) palloc(copy.capacity * block_nbytes);
	for (int s = 0; s < n; s++)
		firsts[s] = scans[s]->waiting_from;
	while (more)
	{
		Wave		wave = choose_wave(scans, n, firsts, most);

		read_wave(index, scans, &wave, &copy);
		more = wave.nlists > 0;
		free_wave(&wave);
		for (int s = 0; s < n; s++)
			scans[s]->ncounted = Max(scans[s]->ncounted, firsts[s]);
	}
	for (int s = 0; s < n; s++)
	{
		scans[s]->waiting = false;
		bq_finish_lists(scans[s]);
	}
	pfree(copy.numbers);
	pfree(copy.headers);
	pfree(copy.codes);
	pfree(firsts);
}
