/*
 * bqlut.h: many codes at once through 16-entry lookup tables.
 *
 * A block holds BQ_BLOCK (32) codes, in rows of 16 bytes.  Row j covers the two
 * dimensions 2j and 2j + 1; byte b of the row holds the nibble of code b (low half)
 * and of code b + 16 (high half).  A nibble holds both bits of both dimensions:
 *
 *	bit 0	sign of 2j			bit 2	magnitude of 2j
 *	bit 1	sign of 2j + 1		bit 3	magnitude of 2j + 1
 *
 * The table has 16 entries of 8 bits per row; whatever separable distance is put
 * into it, the same kernel adds it up in 16 bits.
 */
#ifndef BQLUT_H
#define BQLUT_H

#include "bqkernel.h"

/* Rows of a block, and its bytes (also the bytes of a table). */
static inline int
bq_block_nrows(int dim)
{
	return (dim + 1) / 2;
}

static inline size_t
bq_block_nbytes(int dim)
{
	return (size_t) bq_block_nrows(dim) * 16;
}

/* Put code number c (0 to 31) into a block, over what its place held. */
extern void bq_block_put(uint8_t *block, int dim, int c, const uint8_t *planes);

/* Take code number c out of a block; planes has bq_planes_nbytes(dim) bytes. */
extern void bq_block_get(const uint8_t *block, int dim, int c, uint8_t *planes);

/*
 * The same for rows `first` to `end` - 1 of a block, of which `rows` is the first.  What
 * bq_block_get_rows() fills must have been zeroed.
 */
extern void bq_block_put_rows(uint8_t *rows, int first, int end, int dim, int c,
							  const uint8_t *planes);
extern void bq_block_get_rows(const uint8_t *rows, int first, int end, int dim, int c,
							  uint8_t *planes);

/*
 * *Staged*, codes lie one after the other instead of row by row: of a run of n rows,
 * nibble c * n + j is that of code c in row j, two nibbles to a byte, the low one first.
 * So one code is one run of bytes.  bq_kernel->unstage() makes packed rows of them;
 * bq_stage() is the way back.
 */
extern void bq_stage(const uint8_t *rows, int nrows, uint8_t *staged);

/*
 * Put, take the nibbles of rows `first`, a multiple of 4, to `end` - 1 of one code.  They
 * begin with nibble `half`, 0 or 1, of `run`; other nibbles of its bytes stay.  What
 * bq_stage_get() fills must have been zeroed.
 */
extern void bq_stage_put(uint8_t *run, int half, int first, int end, int dim,
						 const uint8_t *planes);
extern void bq_stage_get(const uint8_t *run, int half, int first, int end, int dim,
						 uint8_t *planes);

/*
 * Table of a float query: a sum s of entries stands for the inner product of q
 * with the level values, bias - scale * s (so a smaller sum is nearer).  The error
 * is at most scale / 2 for each row; of queries near BQ_MAX_NORM in thousands of
 * dimensions only the order remains, as bias ends at FLT_MAX.
 */
extern void bq_lut_query(const float *q, int dim, uint8_t *table, float *scale, float *bias);

/*
 * The bias of rows `first` to `end` - 1 alone: a sum s of their entries stands for the inner
 * product of their dimensions, bias - scale * s.
 */
extern float bq_lut_bias(const float *q, int dim, int first, int end, float scale);

/* Table of a code: the sum of entries is the Hamming distance, exactly. */
extern void bq_lut_hamming(const uint8_t *planes, int dim, uint8_t *table);

#endif							/* BQLUT_H */
