/* bqhalf.h: float16 -> float32. */
#ifndef BQHALF_H
#define BQHALF_H

#include <stddef.h>
#include <stdint.h>

/* Widen n numbers; exact, infinities and NaN stay what they are. */
extern void bq_widen_half(const uint16_t *half, float *x, size_t n);

#endif							/* BQHALF_H */
