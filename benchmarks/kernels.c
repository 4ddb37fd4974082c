/* kernels.c: the loops that kernels.py times; compiled together with extension/core. */
#include "bqkernel.h"

typedef uint64_t Words __attribute__((vector_size(32), aligned(8)));

#ifdef __x86_64__
#define WIDE __attribute__((target("avx2")))
#else
#define WIDE
#endif

/* What it costs to merely read: sums of 64-bit words, four 32-byte loads at a time. */
extern uint64_t bench_read(const uint8_t *bytes, size_t n);

WIDE uint64_t
bench_read(const uint8_t *bytes, size_t n)
{
	Words		sum[4] = {{0}};
	uint64_t	total = 0;

	for (size_t i = 0; i + 128 <= n; i += 128)
		for (int k = 0; k < 4; k++)
			sum[k] += *(const Words *) (bytes + i + 32 * k);
	for (int k = 0; k < 4; k++)
		total += sum[k][0] + sum[k][1] + sum[k][2] + sum[k][3];
	return total;
}

/* One code against n codes that follow each other. */
extern uint64_t bench_hamming(const BqKernel *kernel, const uint8_t *code, const uint8_t *codes,
							  size_t n, size_t plane_nbytes);

uint64_t
bench_hamming(const BqKernel *kernel, const uint8_t *code, const uint8_t *codes,
			  size_t n, size_t plane_nbytes)
{
	uint64_t	total = 0;

	for (size_t i = 0; i < n; i++)
		total += kernel->hamming(code, codes + i * 2 * plane_nbytes, plane_nbytes);
	return total;
}

/* A float query against n codes that follow each other. */
extern float bench_dot(const BqKernel *kernel, const float *q, const uint8_t *codes,
					   size_t n, int dim);

float
bench_dot(const BqKernel *kernel, const float *q, const uint8_t *codes, size_t n, int dim)
{
	float		total = 0;

	for (size_t i = 0; i < n; i++)
	{
		float		all;
		float		strong;

		kernel->dot(q, codes + i * bq_planes_nbytes(dim), dim, &all, &strong);
		total += all + strong;
	}
	return total;
}

/* A table against n blocks that follow each other. */
extern uint64_t bench_lut(const BqKernel *kernel, const uint8_t *table, const uint8_t *blocks,
						  size_t n, int nrows);

uint64_t
bench_lut(const BqKernel *kernel, const uint8_t *table, const uint8_t *blocks, size_t n, int nrows)
{
	uint64_t	total = 0;

	for (size_t i = 0; i < n; i++)
	{
		uint16_t	sums[BQ_BLOCK];

		kernel->lut_block(table, blocks + i * 16 * (size_t) nrows, nrows, sums);
		total += sums[0];
	}
	return total;
}
