/*
 * bqkernel.h: the inner loops, one table of them per instruction set.
 *
 * The portable kernel is the truth; every other one returns the same bits, for
 * integers and floats alike.  Float sums have a fixed order so that a client and
 * a server with different CPUs agree: term i goes to lane i % 32, each lane adds
 * in order of i, and the lanes are then added pairwise (l and l + 16, + 8, + 4,
 * + 2, + 1).  The core must be compiled with -ffp-contract=off.
 *
 * No kernel reads a byte outside the arrays it is given; none needs alignment.
 */
#ifndef BQKERNEL_H
#define BQKERNEL_H

#include "bqcode.h"

#define BQ_LANES 32
#define BQ_BLOCK 32				/* codes in one packed block, see bqlut.h */

#define BQ_SQRT_HALF 0.70710678f

/* Words of a string of n flips, with one to spare for kernels that read 32 bits at any byte. */
#define BQ_FLIP_WORDS(n) (((n) + 63) / 64 + 1)

typedef struct BqKernel
{
	const char *name;			/* value of the setting bq.kernel */

	/* Code against code; planes of nbytes bytes each, sign plane first. */
	uint32_t	(*hamming) (const uint8_t *a, const uint8_t *b, size_t nbytes);
	uint32_t	(*hamming_sign) (const uint8_t *a, const uint8_t *b, size_t nbytes);
	uint32_t	(*hamming_quiver) (const uint8_t *a, const uint8_t *b, size_t nbytes);
	/* Number of set bits in one plane. */
	uint32_t	(*popcount) (const uint8_t *a, size_t nbytes);

	/*
	 * Sum of +q[i] (sign bit set) and -q[i] (clear), over all dimensions and over
	 * the strong ones only: float32 lanes in the fixed order.
	 */
	void		(*dot) (const float *q, const uint8_t *planes, int dim,
						float *all, float *strong);

	/* Sum of squares, and of absolute values, as double in the fixed order. */
	double		(*sum_squares) (const float *x, int dim);
	double		(*sum_absolute) (const float *x, int dim);

	/* Write both planes of x: x > 0, |x| > threshold.  Padding bits are zeroed. */
	void		(*pack) (const float *x, int dim, float threshold, uint8_t *planes);
	/* The other way: x[i] = +-weak or +-strong by the two bits of dimension i. */
	void		(*unpack) (const uint8_t *planes, int dim, float weak, float strong, float *x);

	/*
	 * The steps of the rotation, from x to y, n elements each; see bqrotate.c.
	 * y may be x, else they must not overlap.
	 */
	void		(*scale) (float *y, const float *x, int n, float factor);

	/*
	 * Flips are a string of bits, bit i being bit i % 64 of flips[i / 64]; element
	 * i of x belongs to bit first + i and is negated where that is set.  One word
	 * past the last bit used must be readable (BQ_FLIP_WORDS).
	 */
	void		(*flip) (float *y, const float *x, int n, const uint64_t *flips, int first);
	/*
	 * Flip (unless flips is NULL), fast Walsh-Hadamard transform with steps 1, 2,
	 * 4, ... in this order, then times factor.  n is a power of two.
	 */
	void		(*hadamard) (float *y, const float *x, int n, const uint64_t *flips, int first,
							 float factor);
	/* In place: a, b = (a + b) / sqrt 2, (a - b) / sqrt 2; a and b must not overlap. */
	void		(*mix) (float *a, float *b, int n);

	/*
	 * One packed block against a table: out[c] = sum over rows j of
	 * table[16 * j + nibble(j, c)].  Sums fit 16 bits by construction of the
	 * table.  Layout: bqlut.h.
	 */
	void		(*lut_block) (const uint8_t *table, const uint8_t *block, int nrows,
							  uint16_t out[BQ_BLOCK]);

	/* Sums turned into floats: out[c] = (scale * sums[c] - bias) * factor[c]. */
	void		(*scale_sums) (const uint16_t sums[BQ_BLOCK], float scale, float bias,
							   const uint16_t factor[BQ_BLOCK], float out[BQ_BLOCK]);

	/* Which of those are not above a limit: bit c. */
	uint32_t	(*find_sums) (const uint16_t sums[BQ_BLOCK], float scale, float bias,
							  const uint16_t factor[BQ_BLOCK], float limit);

	/* Staged rows into packed ones, 16 * nrows bytes each, not the same.  Layouts: bqlut.h. */
	void		(*unstage) (const uint8_t *staged, int nrows, uint8_t *rows);
} BqKernel;

/* Loops over arrays of registers must be unrolled for the registers to be such. */
#ifdef __clang__
#define BQ_UNROLL _Pragma("unroll")
#else
#define BQ_UNROLL _Pragma("GCC unroll 16")
#endif

extern const BqKernel bq_kernel_portable;
/* NEON has nothing better */
extern void bq_scale_sums_portable(const uint16_t sums[BQ_BLOCK], float scale, float bias,
								   const uint16_t factor[BQ_BLOCK], float out[BQ_BLOCK]);
extern uint32_t bq_find_sums_portable(const uint16_t sums[BQ_BLOCK], float scale, float bias,
									  const uint16_t factor[BQ_BLOCK], float limit);
#ifdef __x86_64__
#define BQ_HAVE_X86 1
extern const BqKernel bq_kernel_avx2;
extern const BqKernel bq_kernel_avx512;
/* wider registers have no unpacking across their halves: 16 bytes are what both use */
extern void bq_unstage_sse2(const uint8_t *staged, int nrows, uint8_t *rows);
/* all others of x86 need AVX2 */
#define BQ_KERNEL_HAS_AVX2 (bq_kernel != &bq_kernel_portable)
#endif
#ifdef __aarch64__
#define BQ_HAVE_NEON 1
extern const BqKernel bq_kernel_neon;
#endif

/* The kernel in use; the best one this CPU can run until another is forced. */
extern const BqKernel *bq_kernel;

/*
 * Choose by name ("auto", "portable", "avx2", "avx512", "neon").  Returns false
 * and changes nothing if the name is unknown or the CPU cannot run it.
 */
extern bool bq_kernel_select(const char *name);

/* Name of the i-th kernel compiled in, NULL past the end, and whether this CPU runs it. */
extern const char *bq_kernel_name(int i);
extern bool bq_kernel_available(const char *name);

#endif							/* BQKERNEL_H */
