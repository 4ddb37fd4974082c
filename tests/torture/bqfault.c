/*
 * bqfault.c: points at which the extension fails when told to.
 *
 * Linked into bq.so with --wrap=FUNCTION for the server's functions below, all that bq calls
 * and that may fail (points.py): each call of one is a point.  `SET bq_fault.at = N` makes the
 * Nth point from there on raise an error, as if the server's function had failed; 0 none.
 * `SHOW bq_fault.passed` tells how many were passed since.  With `bq_fault.sites` on, only the
 * first passing of each place in the code counts.  With `bq_fault.waits` the point does not fail:
 * it waits for advisory lock 0, until who has that gives it up; only points at which a session can
 * wait, for it holds no page, count then.  Nothing of bq is compiled otherwise.
 */
#include "postgres.h"

#include <limits.h>

#include "fmgr.h"
#include "miscadmin.h"
#include "storage/lock.h"
#include "utils/guc.h"

#ifndef __x86_64__
#error "fault points are made for x86-64"
#endif

#define MAX_SITES 4096

static int	fault_at = 0;
static bool sites_only = false;
static bool waits = false;
static int	passed = 0;
static const void *seen[MAX_SITES]; /* a hash table of return addresses */

static void
reset_passed(int value, void *extra)
{
	passed = 0;
	memset(seen, 0, sizeof(seen));
}

/* Is this the first time since then that this place is passed? */
static bool
is_new(const void *site)
{
	uintptr_t	i = (uintptr_t) site * 31;

	for (int tries = 0; tries < MAX_SITES; tries++, i++)
	{
		const void **place = &seen[i % MAX_SITES];

		if (*place == site)
			return false;
		if (*place == NULL)
		{
			*place = site;
			return true;
		}
	}
	return false;
}

static const char *
show_passed(void)
{
	return psprintf("%d", passed);
}

/* Before bq's own _PG_init(), when the library is loaded. */
__attribute__((constructor))
static void
define_settings(void)
{
	static int	unused;

	DefineCustomIntVariable("bq_fault.at", "Number of the point that fails.", NULL, &fault_at,
							0, 0, INT_MAX, PGC_USERSET, 0, NULL, reset_passed, NULL);
	DefineCustomBoolVariable("bq_fault.sites", "Count places in the code once.", NULL,
							 &sites_only, false, PGC_USERSET, 0, NULL, NULL, NULL);
	DefineCustomBoolVariable("bq_fault.waits", "Wait for advisory lock 0 instead of failing.",
							 NULL, &waits, false, PGC_USERSET, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("bq_fault.passed", "Points passed.", NULL, &unused,
							0, 0, INT_MAX, PGC_INTERNAL, 0, NULL, NULL, show_passed);
}

/* In a critical section an error would be a PANIC: nothing there may fail, and nothing does. */
__attribute__((used)) void
bq_fault_point(const char *name, const void *site)
{
	if (CritSectionCount > 0 || (waits && InterruptHoldoffCount > 0) ||
		(sites_only && !is_new(site)))
		return;
	passed++;
	if (passed != fault_at)
		return;
	if (waits)
	{
		LOCKTAG		tag;

		/* as pg_advisory_lock(0) */
		SET_LOCKTAG_ADVISORY(tag, MyDatabaseId, 0, 0, 1);
		(void) LockAcquire(&tag, ShareLock, true, false);
		LockRelease(&tag, ShareLock, true);
	}
	else
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_RESOURCES),
				 errmsg("fault at point %d, in %s", passed, name)));
}

/*
 * Whatever its arguments are: they are kept, the point is passed, and the server's function goes
 * on as if it had been called.
 */
#define POINT(name) \
	__asm__(".text\n" \
			".globl __wrap_" #name "\n" \
			".type __wrap_" #name ", @function\n" \
			"__wrap_" #name ":\n" \
			"	push %rdi; push %rsi; push %rdx; push %rcx; push %r8; push %r9; push %rax\n" \
			"	sub $128, %rsp\n" \
			"	movups %xmm0, (%rsp); movups %xmm1, 16(%rsp)\n" \
			"	movups %xmm2, 32(%rsp); movups %xmm3, 48(%rsp)\n" \
			"	movups %xmm4, 64(%rsp); movups %xmm5, 80(%rsp)\n" \
			"	movups %xmm6, 96(%rsp); movups %xmm7, 112(%rsp)\n" \
			"	lea 1f(%rip), %rdi\n" \
			"	mov 184(%rsp), %rsi\n" \
			"	call bq_fault_point@PLT\n" \
			"	movups (%rsp), %xmm0; movups 16(%rsp), %xmm1\n" \
			"	movups 32(%rsp), %xmm2; movups 48(%rsp), %xmm3\n" \
			"	movups 64(%rsp), %xmm4; movups 80(%rsp), %xmm5\n" \
			"	movups 96(%rsp), %xmm6; movups 112(%rsp), %xmm7\n" \
			"	add $128, %rsp\n" \
			"	pop %rax; pop %r9; pop %r8; pop %rcx; pop %rdx; pop %rsi; pop %rdi\n" \
			"	jmp __real_" #name "@PLT\n" \
			".section .rodata\n" \
			"1:	.asciz \"" #name "\"\n" \
			".text\n");

/* POINTS: a list of POINT(...), by points.py */
#include "points.h"
