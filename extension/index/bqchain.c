/*
 * bqchain.c: the chains of blocks, for bq_index_check().  Each block is of one list and epoch,
 * and in its chain once.
 */
#include "postgres.h"

#include "index/bqcheck.h"
#include "miscadmin.h"

/* Walk a chain of blocks that belong to one list in one epoch, or to none. */
static void
check_chain(BqCheck *state, const char *chain, uint32 list, uint32 epoch, BqBlockUse use,
			uint32 head, uint32 nblocks)
{
	uint32		length = 0;

	for (uint32 b = head; b != BQ_NO_BLOCK; length++)
	{
		BqBlockLinks *links;

		if (b >= state->nblocks)
			bq_damaged(state, "%s of list %u leads to block %u of %u", chain, list, b,
					   state->nblocks);
		links = &state->links[b];
		if (links->use == use)
			bq_damaged(state, "%s of list %u comes to block %u twice", chain, list, b);
		if (links->use != BQ_BLOCK_LOST)
			bq_damaged(state, "%s of list %u leads to block %u of another use", chain, list, b);
		if (use == BQ_BLOCK_FREE ?
			links->list < state->layout.nlists && links->epoch == state->lists[links->list].epoch :
			links->list != list || links->epoch != epoch)
			bq_damaged(state, "%s of list %u leads to block %u of list %u, epoch %u", chain, list, b,
					   links->list, links->epoch);
		links->use = use;
		b = links->next;
	}
	if (length != nblocks)
		bq_damaged(state, "%s of list %u has %u blocks, expected %u", chain, list, length, nblocks);
}

/* The blocks of a list that have free slots. */
static void
check_free_chain(BqCheck *state, uint32 list)
{
	for (uint32 b = state->lists[list].free; b != BQ_NO_BLOCK;)
	{
		BqBlockLinks *links = b < state->nblocks ? &state->links[b] : NULL;

		if (links == NULL || links->use != BQ_BLOCK_LIST || links->list != list)
			bq_damaged(state, "free chain of list %u leads to block %u of another list", list, b);
		if (links->in_free_list)
			bq_damaged(state, "free chain of list %u comes to block %u twice", list, b);
		if (!links->in_free_chain)
			bq_damaged(state, "block %u is in the free chain of list %u without knowing", b, list);
		links->in_free_list = true;
		b = links->next_free;
	}
}

/* Every block is where its list, an old chain, or the chain of free blocks says; or lost. */
void
bq_check_lists(BqCheck *state)
{
	uint32		nunreachable = 0;
	BqMetaPageData meta = bq_read_metapage(state->index);

	for (uint32 list = 0; list < state->layout.nlists; list++)
	{
		const BqListData *entry = &state->lists[list];

		CHECK_FOR_INTERRUPTS();
		check_chain(state, "chain", list, entry->epoch, BQ_BLOCK_LIST, entry->head, entry->nblocks);
		check_free_chain(state, list);
		if (entry->changed > state->layout.generation)
			bq_damaged(state, "list %u was changed in generation " UINT64_FORMAT " of " UINT64_FORMAT,
					   list, entry->changed, state->layout.generation);
		if (entry->old_head != BQ_NO_BLOCK && entry->old_epoch == entry->epoch)
			bq_damaged(state, "list %u has two chains of epoch %u", list, entry->epoch);
		if (entry->old_head != BQ_NO_BLOCK)
			check_chain(state, "old chain", list, entry->old_epoch, BQ_BLOCK_OLD_CHAIN,
						entry->old_head, entry->old_nblocks);
	}
	check_chain(state, "free chain of the index, not", 0, 0, BQ_BLOCK_FREE, meta.free_head, meta.nfree);

	for (uint32 b = 0; b < state->nblocks; b++)
	{
		const BqBlockLinks *links = &state->links[b];

		if (links->use == BQ_BLOCK_LOST)
		{
			if (links->list < state->layout.nlists &&
				links->epoch == state->lists[links->list].epoch)
				bq_damaged(state, "block %u is not in the chain of its list %u", b, links->list);
			state->nlost++;
		}
		if (links->use != BQ_BLOCK_LIST)
			continue;
		if (links->in_free_chain && !links->in_free_list)
			bq_damaged(state, "block %u is not in the free chain of its list %u", b, links->list);
		nunreachable += !links->full && !links->in_free_chain;
	}
	/* A crash between the two steps of vacuum does that. */
	if (nunreachable > 0)
		ereport(WARNING,
				(errmsg("index \"%s\" has %u blocks whose free slots cannot be found",
						RelationGetRelationName(state->index), nunreachable),
				 errhint("VACUUM the table.")));
	/* a crash while a list is split */
	if (state->nlost > 0)
		ereport(WARNING,
				(errmsg("index \"%s\" has %u blocks that belong to nothing",
						RelationGetRelationName(state->index), state->nlost),
				 errhint("VACUUM the table.")));
}
