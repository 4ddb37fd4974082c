/* bqhalf.c: float16 -> float32 and back, by the instructions of the kernel in use. */
#include <string.h>

#include "bqhalf.h"
#include "bqkernel.h"

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

	if (rest > 0x7c00)
		bits = sign | 0x7fc00000 | (rest & 0x3ff) << 13;
	else if (rest == 0x7c00)
		bits = sign | 0x7f800000;
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

/*
 * The other way.  Adding a half to what becomes subnormal leaves multiples of the smallest
 * number, 2^-24, in the last bits, rounded.
 */
static uint16_t
narrow(float x)
{
	uint32_t	bits;
	uint32_t	rest;
	uint16_t	sign;

	memcpy(&bits, &x, sizeof(bits));
	sign = (uint16_t) (bits >> 16 & 0x8000);
	rest = bits & 0x7fffffff;
	if (rest > 0x7f800000)
		return (uint16_t) (sign | 0x7e00 | (rest >> 13 & 0x3ff));
	if (rest >= 0x477ff000)		/* 65,520: half way between the largest number and the next */
		return sign | 0x7c00;
	if (rest >= 0x38800000)		/* 2^-14 */
	{
		rest -= (uint32_t) (127 - 15) << 23;
		return (uint16_t) (sign | (rest + 0xfff + (rest >> 13 & 1)) >> 13);
	}
	memcpy(&x, &rest, sizeof(x));
	x += 0.5f;
	memcpy(&rest, &x, sizeof(rest));
	return (uint16_t) (sign | (rest - 0x3f000000));
}

#if defined(BQ_HAVE_X86)
#include <immintrin.h>

/* Of n numbers the first so many, a multiple of eight, which are told. */
__attribute__((target("avx,f16c"))) static size_t
widen_eights(const uint16_t *half, float *x, size_t n)
{
	size_t		i = 0;

	for (; i + 8 <= n; i += 8)
		_mm256_storeu_ps(x + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *) (half + i))));
	return i;
}

__attribute__((target("avx,f16c"))) static size_t
narrow_eights(const float *x, uint16_t *half, size_t n)
{
	size_t		i = 0;

	for (; i + 8 <= n; i += 8)
		_mm_storeu_si128((__m128i *) (half + i),
						 _mm256_cvtps_ph(_mm256_loadu_ps(x + i), _MM_FROUND_TO_NEAREST_INT));
	return i;
}

#elif defined(BQ_HAVE_NEON)
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

static size_t
narrow_eights(const float *x, uint16_t *half, size_t n)
{
	size_t		i = 0;

	for (; i + 8 <= n; i += 8)
	{
		float16x4_t low = vcvt_f16_f32(vld1q_f32(x + i));

		vst1q_u16(half + i, vreinterpretq_u16_f16(vcvt_high_f16_f32(low, vld1q_f32(x + i + 4))));
	}
	return i;
}

#else
#define widen_eights(half, x, n) 0
#define narrow_eights(x, half, n) 0
#endif

/* All kernels but the portable one have the instructions (bqcpu.h). */
#define HAS_EIGHTS (bq_kernel != &bq_kernel_portable)

void
bq_widen_half(const uint16_t *half, float *x, size_t n)
{
	size_t		i = HAS_EIGHTS ? widen_eights(half, x, n) : 0;

	for (; i < n; i++)
		x[i] = widen(half[i]);
}

void
bq_narrow_half(const float *x, uint16_t *half, size_t n)
{
	size_t		i = HAS_EIGHTS ? narrow_eights(x, half, n) : 0;

	for (; i < n; i++)
		half[i] = narrow(x[i]);
}
