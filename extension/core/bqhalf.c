/* bqhalf.c: float16 -> float32, by the instructions for it where there are any. */
#include <string.h>

#include "bqcpu.h"
#include "bqhalf.h"

/*
 * The exponent's bias changes from 15 to 127.  Subnormal numbers become normal ones: as an
 * integer times the smallest of them.
 */
static float
widen(uint16_t half)
{
	uint32_t	sign = (uint32_t) (half & 0x8000) << 16;
	uint32_t	rest = half & 0x7fff;
	uint32_t	bits;
	float		x;

	if (rest >= 0x7c00)
		bits = sign | 0x7f800000 | (rest & 0x3ff) << 13;
	else if (rest >= 0x0400)
		bits = sign | ((rest << 13) + ((127 - 15) << 23));
	else
	{
		x = (float) rest * 0x1p-24f;
		memcpy(&bits, &x, sizeof(bits));
		bits |= sign;
	}
	memcpy(&x, &bits, sizeof(x));
	return x;
}

#ifdef __x86_64__
#include <immintrin.h>

__attribute__((target("avx,f16c")))
static size_t
widen_eights(const uint16_t *half, float *x, size_t n)
{
	size_t		i = 0;

	for (; i + 8 <= n; i += 8)
		_mm256_storeu_ps(x + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *) (half + i))));
	return i;
}

#define CAN_WIDEN_EIGHTS (bq_cpu_features() & BQ_CPU_F16C)

#elif defined(__aarch64__)
#include <arm_neon.h>

static size_t
widen_eights(const uint16_t *half, float *x, size_t n)
{
	size_t		i = 0;

	for (; i + 8 <= n; i += 8)
	{
		float16x8_t h = vreinterpretq_f16_u16(vld1q_u16(half + i));

		vst1q_f32(x + i, vcvt_f32_f16(vget_low_f16(h)));
		vst1q_f32(x + i + 4, vcvt_high_f32_f16(h));
	}
	return i;
}

#define CAN_WIDEN_EIGHTS 1

#else
#define CAN_WIDEN_EIGHTS 0
#define widen_eights(half, x, n) 0
#endif

void
bq_widen_half(const uint16_t *half, float *x, size_t n)
{
	size_t		i = CAN_WIDEN_EIGHTS ? widen_eights(half, x, n) : 0;

	for (; i < n; i++)
		x[i] = widen(half[i]);
}
