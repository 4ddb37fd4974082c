/* bqhalf.h: float16 -> float32, and back. */
#ifndef BQHALF_H
#define BQHALF_H

#include <stddef.h>
#include <stdint.h>

/* Widen n numbers; exact, infinities stay what they are, NaN becomes a quiet one. */
extern void bq_widen_half(const uint16_t *half, float *x, size_t n);

/* Round n numbers to the nearest, ties to even; what is too large becomes infinite. */
extern void bq_narrow_half(const float *x, uint16_t *half, size_t n);

#endif							/* BQHALF_H */
