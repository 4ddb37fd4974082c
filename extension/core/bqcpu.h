/* bqcpu.h: what this CPU and operating system can run, asked once. */
#ifndef BQCPU_H
#define BQCPU_H

enum
{
	BQ_CPU_AVX2 = 1,			/* AVX2, F16C and POPCNT */
	BQ_CPU_AVX512 = 2			/* F, BW, VL, DQ, VBMI, VNNI, VPOPCNTDQ: Ice Lake, Zen 4 */
};

/* Bit set of the instruction sets usable here. */
extern int	bq_cpu_features(void);

#endif							/* BQCPU_H */
