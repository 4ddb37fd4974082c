/*
 * bqprobe.c: which lists a query reads, and reading them.
 *
 * The nearest lists are read in *segments*: first about as many as the setting, the
 * option or the index says, then, if the executor wants more rows, ever more of the rest.
 */
#include "postgres.h"

#include <float.h>
#include <math.h>

#include "index/bqscan.h"
#include "miscadmin.h"
#include "port/pg_bitutils.h"

/* A scan reads up to so many times the lists that the average one reads. */
#define MOST_PROBES 4

/*
 * Beyond the first rows, a scan in strict order goes on to further lists while it has
 * not seen so many rows for each that it gave: those it did not see are passed over.  In an
 * index on vectors, beyond BQ_NEIGHBOURS rows, also while a further list is near (by margin:
 * BqModel.gap) or as many have not been read as so many rows call for.
 */
#define SEEN_PER_ROW 8

/* How fast the number of lists grows with that of the rows among which the wanted ones lie. */
#define ROWS_POWER 0.35

/* How many pages of a list are asked for in advance, and how many if they are on disk. */
#define PREFETCH_PAGES 8
#define MAX_COLD_PAGES 64

/* How many deviations more than at the first look, and how many at least (BqStop). */
#define MORE_DEVIATIONS 1.5
#define LEAST_DEVIATIONS 2.5

/*
 * Reading lists
 */

/*
 * Take in a block: its header, which rows may be wanted (bits), and the sums of the query's
 * table over its codes.
 */
static void
read_block(Relation index, BqScan *so, uint8 segment, uint32 b, const BqBlockData *block,
		   uint32 rows, const uint16 *sums)
{
	float		keys[BQ_BLOCK];
	double		limit = so->dropped ? so->limit.key : INFINITY;
	uint32		wanted = rows & bq_find_rows(so, block, sums, so->table.scale, so->table.bias,
										  so->dropped ? so->bound_limit : INFINITY);

	/* Few blocks have a row worth a look: find them without a branch per row. */
	if (wanted == 0)
		return;
	bq_bound_keys(so, block, sums, so->table.scale, so->table.bias, keys);
	for (; wanted != 0; wanted &= wanted - 1)
	{
		int			c = pg_rightmost_one_pos32(wanted);
		BqCandidate *candidate = bq_new_candidate(so);

		candidate->key = bq_candidate_key(so, keys[c]);
		if (candidate->key > limit)
			continue;
		candidate->block = b;
		candidate->slot = (uint16) c;
		candidate->segment = segment;
		/* a row of norm 0 has no rounding errors: its product is 0 */
		candidate->exact = so->source == NULL &&
			(so->strategy == BQ_STRATEGY_HAMMING || block->norm[c] == 0);
		if (candidate->exact && so->strategy != BQ_STRATEGY_HAMMING)
			candidate->key = 0;
		bq_check_position(index, so->heap, &block->tid[c], &so->heap_pages);
		candidate->tid = block->tid[c];
		candidate->norm = block->norm[c];
		candidate->odd = false;
		candidate->prefetched = false;
		/* given out already, as far as one can tell without the exact key */
		if (bq_was_given(so, candidate))
			continue;
		if (so->have_floor && so->given == NULL && !candidate->exact && fabsf(keys[c]) < FLT_MAX &&
			bq_candidate_key(so, keys[c] + bq_bound_width(so, block, c)) < so->floor.key)
			continue;
		bq_keep_candidate(so);
		limit = so->dropped ? so->limit.key : INFINITY;
	}
}

/* Note a block that was passed over. */
static void
pass_block(BqScan *so, uint8 segment, const BqListReader *reader)
{
	BqPassedBlock *passed;

	if (so->npassed == so->passed_capacity)
	{
		so->passed_capacity = Max(64, 2 * so->passed_capacity);
		so->passed = (BqPassedBlock *) (so->passed == NULL ?
										palloc(so->passed_capacity * sizeof(BqPassedBlock)) :
										repalloc_huge(so->passed, so->passed_capacity *
													  sizeof(BqPassedBlock)));
	}
	passed = &so->passed[so->npassed++];
	passed->chain = reader->chain;
	passed->chain.head = reader->block;
	passed->chain.nblocks = 1;
	passed->segment = segment;
}

/*
 * Sums of the query's table over a block's codes.  False if its first dimensions say that none
 * of the rows will be wanted; the sums are then not complete.
 */
static bool
sum_block(BqScan *so, uint8 segment, BqListReader *reader, const BqBlockData *block, uint32 rows,
		  uint16 *sums)
{
	int			nrows = reader->layout->nrows;
	int			nstops = so->dropped && reader->packed == nrows ? so->nstops : 0;
	double		limit = nstops > 0 ? so->bound_limit : 0;
	float		later = (float) Max(so->reach.deviations + MORE_DEVIATIONS, LEAST_DEVIATIONS);
	float		deviations = so->first_look ? (float) so->reach.deviations : later;
	int			done = 0;

	memset(sums, 0, BQ_BLOCK * sizeof(uint16));
	for (int i = 0; i < nstops; i++)
	{
		const BqStop *stop = &so->stops[i];

		bq_sum_rows(reader, so->table.entries, done, stop->nrows, sums);
		done = stop->nrows;
		if (rows & bq_find_rows(so, block, sums, stop->scale,
								stop->bias + deviations * stop->deviation, limit))
			continue;
		if (so->first_look && rows & bq_find_rows(so, block, sums, stop->scale,
												  stop->bias + later * stop->deviation, limit))
			pass_block(so, segment, reader);
		return false;
	}
	bq_sum_rows(reader, so->table.entries, done, nrows, sums);
	return true;
}

/* Take in the block that a reader is at, of it these rows (bits). */
void
bq_take_block(Relation index, BqScan *so, uint8 segment, BqListReader *reader,
			  const BqBlockData *block, uint32 rows)
{
	uint16		sums[BQ_BLOCK];

	/* without any its codes stay where they are */
	if (rows == 0 || !sum_block(so, segment, reader, block, rows, sums))
		return;
	read_block(index, so, segment, reader->block, block, rows, sums);
	so->ncodes += BQ_BLOCK;
}

/* Read all blocks of a list; `first_time`: count its rows. */
static void
read_list(Relation index, BqScan *so, uint8 segment, const BqChain *chain, bool first_time)
{
	BqListReader reader;
	const BqBlockData *block;

	bq_begin_list(&reader, index, &so->layout, chain);
	while ((block = bq_next_block(&reader)) != NULL)
	{
		uint32		rows = block->live;

		if (so->filter != NULL)
			rows &= bq_match_block(so->filter, block);
		if (first_time)
		{
			so->nscanned += pg_popcount32(block->live);
			so->nseen += pg_popcount32(rows);
		}
		bq_take_block(index, so, segment, &reader, block, rows);
	}
	bq_end_list(&reader);
}

/*
 * Ask for a list that will be read next: its headers and its code pages.  A guess:
 * blocks lie in a row if the build wrote them.  True if the disk was asked.
 */
bool
bq_ask_for_list(Relation index, const BqScan *so, const BqChain *chain)
{
	const BqLayout *layout = &so->layout;
	bool		from_disk = so->io_concurrency > 0;
	uint64		row = bq_first_row(layout, chain->head);
	uint64		end = row + (uint64) chain->nblocks * layout->nrows;
	bool		cold;

	if (chain->head == BQ_NO_BLOCK)
		return false;
	cold = bq_prefetch(index, bq_header_page(layout, chain->head),
					   SizeOfPageHeaderData + chain->head % layout->headers_per_page *
					   layout->header_nbytes, from_disk);
	for (int i = 0; row < end && i < (cold ? MAX_COLD_PAGES : PREFETCH_PAGES); i++)
	{
		cold |= bq_prefetch(index, bq_code_page(layout, row),
							SizeOfPageHeaderData + row % BQ_ROWS_PER_PAGE * BQ_ROW_NBYTES,
							from_disk);
		row += BQ_ROWS_PER_PAGE - row % BQ_ROWS_PER_PAGE;
	}
	return cold;
}

/*
 * Choosing lists
 */

/* Rank the lists, none of which was read. */
void
bq_rank_lists(Relation index, BqScan *so)
{
	/* Hamming's table holds distances from a code, not products */
	BqTable		table = so->strategy == BQ_STRATEGY_HAMMING && so->layout.nlists > 1 ?
		bq_make_table(so->q, so->layout.dim) : so->table;

	bq_begin_ranking(&so->ranking, index, &so->layout, &table, so->reach.ngroups);
	so->nchosen = 0;
	so->segment = 0;
	so->ncounted = 0;
	so->nscanned = 0;
	so->nseen = 0;
}

/* Begin a segment of about `probes` lists, or as many as there are. */
void
bq_plan_segment(BqScan *so, uint32 probes)
{
	uint32		nlists = so->layout.nlists;

	so->segment++;
	so->segment_start = so->nchosen;
	so->least = so->most = (uint32) Min((uint64) so->nchosen + Max(probes, 1), nlists);
	so->by_margin = (so->strategy == BQ_STRATEGY_COSINE || so->source != NULL) &&
		so->layout.margins[BQ_MARGINS - 1] > 0 && so->nchosen == 0 && so->most < nlists;
	if (so->by_margin)
	{
		double		place = log(probes) / log(nlists) * (BQ_MARGINS - 1);
		int			i = (int) place;
		const float *margins = so->layout.margins;

		so->margin = margins[i] + (place - i) * (margins[i + 1] - margins[i]);
		so->row_margin = so->margin + so->layout.model.gap;
		so->least = (uint32) Max(1, probes * BQ_LEAST_PROBES);
		so->most = (uint32) Min((uint64) probes * MOST_PROBES, nlists);
	}
}

/* Cosine of a candidate with the query. */
static double
candidate_cosine(const BqScan *so, const BqCandidate *candidate)
{
	double		norm = so->strategy == BQ_STRATEGY_L2 ? candidate->norm * so->unit : candidate->norm;

	if (so->length == 0)
		return 0;
	if (so->source == NULL)
		return -candidate->key / so->length;
	return bq_estimate_cosine(so->strategy, so->strategy == BQ_STRATEGY_COSINE ?
							  candidate->key - 1 : bq_bound_of_key(so, candidate->key),
							  norm, so->length);
}

/* Is the cosine of list i in the ranking at least this? */
static bool
is_near(const BqScan *so, uint32 i, double cosine)
{
	return bq_ranked_score(&so->ranking, i) >= cosine * so->length;
}

/* Lists, where no margin says, for so many times the rows that the figures are about. */
static double
count_lists_for(const BqScan *so, double rows)
{
	return so->reach.nprobes * pow(rows, ROWS_POWER);
}

/*
 * Rows that meet the conditions lie further apart than all rows: does the first segment take
 * another list for that?  The margin tells when to stop; without one so many times more
 * lists are read as a query needs for that many times more rows, about.
 */
static bool
goes_on_for_filter(BqScan *so)
{
	if (so->filter == NULL || so->segment > 1 || !bq_has_more_lists(so))
		return false;
	if (!so->by_margin && so->nseen >= BQ_MARGIN_RANK &&
		so->nchosen >= count_lists_for(so, (double) so->nscanned / so->nseen))
		return false;
	/* the margin needs the BQ_MARGIN_RANKth of few rows */
	bq_limit_candidates(so);
	so->most++;
	return true;
}

/* There is another limit: what follows from it is asked for each block, and each list. */
void
bq_note_limit(BqScan *so)
{
	so->bound_limit = bq_bound_of_key(so, so->limit.key);
	so->list_limit = (candidate_cosine(so, &so->limit) - so->shift - so->margin) * so->length;
}

/* Is there an i-th list in this segment?  Chooses it if it was not chosen before. */
bool
bq_choose_list(BqScan *so, uint32 i)
{
	if (i < so->nchosen)
		return true;
	if ((so->nchosen == so->most && !goes_on_for_filter(so)) || !bq_know_list(&so->ranking, i))
		return false;
	if (!bq_is_list_near(so, i, bq_ranked_score(&so->ranking, i)))
	{
		so->most = so->nchosen;
		return false;
	}
	so->ranking.order[so->nchosen++].segment = so->segment;
	return true;
}

/*
 * Read the chosen lists from number `from` on, and those that the segment goes on to
 * choose, into the candidates; or let them be read with those of other queries.
 */
void
bq_read_lists(Relation index, BqScan *so, uint32 from)
{
	BqChain		chains[BQ_MAX_AHEAD + 1];
	uint32		asked = from;
	int			ahead = 1;

	if (so->together && so->sorted == NULL)
	{
		so->waiting = true;
		so->waiting_from = from;
		return;
	}
	for (uint32 i = from; bq_choose_list(so, i); i++)
	{
		/* no list that cannot be chosen, unless a filter may call for more */
		uint32		end = so->filter != NULL ? so->layout.nlists : so->most;

		for (; asked <= i + ahead && asked < end && bq_know_list(&so->ranking, asked); asked++)
		{
			BqChain    *chain = &chains[asked % lengthof(chains)];

			*chain = bq_read_chain(index, &so->layout, bq_ranked_list(&so->ranking, asked));
			/* the disk takes its time, but can do several things at once */
			if (bq_ask_for_list(index, so, chain))
				ahead = Min(so->io_concurrency, BQ_MAX_AHEAD);
		}
		read_list(index, so, so->ranking.order[i].segment, &chains[i % lengthof(chains)], i >= so->ncounted);
		/* blocks can be left half read as soon as there is a limit */
		if (!so->dropped)
			bq_limit_candidates(so);
		so->nlists++;
		so->ncounted = Max(so->ncounted, i + 1);
	}
	bq_finish_lists(so);
}

/* The lists have been read. */
void
bq_finish_lists(BqScan *so)
{
	/* the same ones if they are read again */
	so->most = so->nchosen;
	bq_order_candidates(so);
}

/*
 * More rows are wanted than the first look was meant for: complete it.  The limit is known by
 * now, so few of the blocks that were passed over have to be read.
 */
void
bq_look_again(Relation index, BqScan *so)
{
	so->first_look = false;
	if (so->npassed == 0)
		return;
	for (uint32 i = 0; i < so->npassed; i++)
		read_list(index, so, so->passed[i].segment, &so->passed[i].chain, false);
	so->npassed = 0;
	bq_order_candidates(so);
}

/*
 * Should a scan in strict order read further lists before it gives out this row?  Rows
 * that it meets later and that are nearer are lost.
 */
bool
bq_wants_more_lists(BqScan *so, const BqCandidate *candidate)
{
	if (so->nreturned >= BQ_NEIGHBOURS && so->row_margin < INFINITY)
	{
		if (bq_know_list(&so->ranking, so->nchosen) &&
			is_near(so, so->nchosen, candidate_cosine(so, candidate) - so->row_margin))
			return true;
	}
	else if (so->nreturned >= BQ_NEIGHBOURS && so->source != NULL &&
			 so->nchosen < count_lists_for(so, (double) (so->nreturned + 1) / BQ_NEIGHBOURS))
		return true;
	return so->nseen < SEEN_PER_ROW * (so->nreturned + 1);
}
