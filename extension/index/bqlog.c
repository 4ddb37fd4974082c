/*
 * bqlog.c: changes of pages, logged as exactly the bytes that change.
 *
 * Generic WAL (access/generic_xlog.h) works on copies of whole pages and compares them
 * to find out what was changed: about 8 us a page, most of what an insertion took.  Its
 * records, however, are what any access method may write: for each page a sequence of
 * {offset, length, bytes} that replay copies to their places (generic_redo() in
 * generic_xlog.c, the same in PostgreSQL 9.6 to 18).  Here changes are first collected in
 * this form, while pages stay as they are, and then applied as replay will apply them:
 * what is logged is what was changed, by construction.
 *
 * No page has a hole between pd_lower and pd_upper (bq_init_page()), which replay would
 * clear.
 */
#include "postgres.h"

#include "access/xloginsert.h"
#include "index/bqindex.h"
#include "miscadmin.h"

/* Bytes of changes of a page: all of it, or every 16th byte, with their places. */
#define MAX_DELTA (2 * BLCKSZ)

typedef struct PageDelta
{
	Buffer		buffer;
	uint32		nbytes;
	char		bytes[MAX_DELTA];
} PageDelta;

/* One log at a time: nothing that is done between its begin and its end begins another. */
static PageDelta deltas[BQ_LOG_PAGES];
static int	npages;
static bool logged;

void
bq_begin_log(Relation index)
{
	npages = 0;
	logged = RelationNeedsWAL(index);
}

/*
 * Make a page, locked exclusively, part of the log; returns what bq_log_change() calls
 * it.  Replay locks pages in the order of these calls.  The same page twice is the same.
 */
int
bq_log_page(Buffer buffer)
{
	for (int page = 0; page < npages; page++)
		if (deltas[page].buffer == buffer)
			return page;
	if (npages == BQ_LOG_PAGES)
		elog(ERROR, "too many pages in a record of a bq index");
	deltas[npages].buffer = buffer;
	deltas[npages].nbytes = 0;
	return npages++;
}

/* Bytes at `place`, on the page itself, are to become those of `value`. */
void
bq_log_change(int page, void *place, const void *value, size_t nbytes)
{
	PageDelta  *delta = &deltas[page];
	Page		start = BufferGetPage(delta->buffer);
	OffsetNumber region[2] = {(OffsetNumber) ((char *) place - (char *) start), (OffsetNumber) nbytes};

	Assert(page < npages);
	Assert((char *) place >= (char *) start &&
		   (char *) place + nbytes <= (char *) start + ((PageHeader) start)->pd_special);
	if (delta->nbytes + sizeof(region) + nbytes > MAX_DELTA)
		elog(ERROR, "too many changes in a record of a bq index");
	memcpy(delta->bytes + delta->nbytes, region, sizeof(region));
	memcpy(delta->bytes + delta->nbytes + sizeof(region), value, nbytes);
	delta->nbytes += sizeof(region) + nbytes;
}

/* As generic_redo() does. */
static void
apply(const PageDelta *delta)
{
	char	   *page = (char *) BufferGetPage(delta->buffer);

	for (uint32 i = 0; i < delta->nbytes;)
	{
		OffsetNumber region[2];

		memcpy(region, delta->bytes + i, sizeof(region));
		memcpy(page + region[0], delta->bytes + i + sizeof(region), region[1]);
		i += sizeof(region) + region[1];
	}
}

/* Make all changes, and log them as one record; locks stay. */
void
bq_finish_log(void)
{
	XLogRecPtr	lsn;

	if (logged)
		XLogBeginInsert();
	START_CRIT_SECTION();
	for (int page = 0; page < npages; page++)
	{
		apply(&deltas[page]);
		MarkBufferDirty(deltas[page].buffer);
	}
	if (logged)
	{
		for (int page = 0; page < npages; page++)
		{
			XLogRegisterBuffer(page, deltas[page].buffer, REGBUF_STANDARD);
			XLogRegisterBufData(page, deltas[page].bytes, deltas[page].nbytes);
		}
		lsn = XLogInsert(RM_GENERIC_ID, 0);
		for (int page = 0; page < npages; page++)
			PageSetLSN(BufferGetPage(deltas[page].buffer), lsn);
	}
	END_CRIT_SECTION();
}

/*
 * Log data pages that were initialised and hold nothing yet, locked exclusively.  Their
 * images would take 8 kB each, as they have no hole.  So they get one for a moment: images
 * leave it out, and a second record takes it away.  Nobody uses the pages before that.
 */
void
bq_log_new_pages(Relation index, Buffer *buffers, int n)
{
	XLogRecPtr	lsn;

	if (!RelationNeedsWAL(index))
		return;
	Assert(n <= BQ_LOG_PAGES);
	XLogBeginInsert();
	START_CRIT_SECTION();
	for (int i = 0; i < n; i++)
	{
		((PageHeader) BufferGetPage(buffers[i]))->pd_lower = SizeOfPageHeaderData;
		MarkBufferDirty(buffers[i]);
		XLogRegisterBuffer(i, buffers[i], REGBUF_FORCE_IMAGE | REGBUF_STANDARD);
	}
	lsn = XLogInsert(RM_GENERIC_ID, 0);
	for (int i = 0; i < n; i++)
		PageSetLSN(BufferGetPage(buffers[i]), lsn);
	END_CRIT_SECTION();

	bq_begin_log(index);
	for (int i = 0; i < n; i++)
	{
		PageHeader	page = (PageHeader) BufferGetPage(buffers[i]);

		bq_log_set(bq_log_page(buffers[i]), &page->pd_lower, LocationIndex, page->pd_upper);
	}
	bq_finish_log();
}
