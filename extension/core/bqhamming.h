/* bqhamming.h: code against code. */
#ifndef BQHAMMING_H
#define BQHAMMING_H

#include "bqkernel.h"

/* Sum of level differences: Hamming distance of the thermometer codes, 0 to 3 * dim. */
static inline uint32_t
bq_hamming(const uint8_t *a, const uint8_t *b, int dim)
{
	return bq_kernel->hamming(a, b, bq_plane_nbytes(dim));
}

/* Number of differing signs: what pgvector's bit type measures. */
static inline uint32_t
bq_hamming_sign(const uint8_t *a, const uint8_t *b, int dim)
{
	return bq_kernel->hamming_sign(a, b, bq_plane_nbytes(dim));
}

/* QuIVer's penalty: each differing sign counts (1 + m)(1 + m'), i.e. 1, 2 or 4. */
static inline uint32_t
bq_hamming_quiver(const uint8_t *a, const uint8_t *b, int dim)
{
	return bq_kernel->hamming_quiver(a, b, bq_plane_nbytes(dim));
}

#endif							/* BQHAMMING_H */
