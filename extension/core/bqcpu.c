/* bqcpu.c: what this CPU and operating system can run. */
#include "bqcpu.h"

#ifdef __x86_64__
#include <cpuid.h>
#include <stdint.h>

/* Which register states the operating system saves: XGETBV, register 0. */
static uint64_t
saved_states(void)
{
	uint32_t	low;
	uint32_t	high;

	__asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
	return ((uint64_t) high << 32) | low;
}

/*
 * Intel SDM volume 2A, CPUID; volume 1, 14.3 and 15.2 for the order of the questions.  Not
 * __builtin_cpu_supports(): which names it takes depends on the compiler.
 */
static int
ask_cpu(void)
{
	unsigned int a,
				b,
				c,
				d;
	uint64_t	states;
	int			features = 0;

	if (!__get_cpuid(1, &a, &b, &c, &d))
		return 0;
	/* OSXSAVE, AVX, F16C, POPCNT */
	if (!(c & (1u << 27)) || !(c & (1u << 28)) || !(c & (1u << 29)) || !(c & (1u << 23)))
		return 0;
	states = saved_states();
	if ((states & 0x06) != 0x06)	/* XMM, YMM */
		return 0;
	if (!__get_cpuid_count(7, 0, &a, &b, &c, &d))
		return 0;
	if (b & (1u << 5))
		features |= BQ_CPU_AVX2;
	if ((features & BQ_CPU_AVX2) &&
		(states & 0xe6) == 0xe6 &&	/* and opmask, ZMM */
		(b & (1u << 16)) &&		/* AVX512F */
		(b & (1u << 17)) &&		/* AVX512DQ */
		(b & (1u << 30)) &&		/* AVX512BW */
		(b & (1u << 31)) &&		/* AVX512VL */
		(c & (1u << 1)) &&		/* AVX512_VBMI */
		(c & (1u << 11)) &&		/* AVX512_VNNI */
		(c & (1u << 14)))		/* AVX512_VPOPCNTDQ */
		features |= BQ_CPU_AVX512;
	return features;
}

int
bq_cpu_features(void)
{
	/* Two threads may both ask; they get and store the same answer. */
	static volatile int known = -1;

	if (known < 0)
		known = ask_cpu();
	return known;
}

#else

int
bq_cpu_features(void)
{
	return 0;
}

#endif
