/*
 * bqkernel_avx512.c: the kernels for x86-64 with AVX-512 as of Ice Lake and Zen 4.
 *
 * Main loops load whole registers: a masked load, even with a full mask, is not
 * seen by the hardware prefetcher of Sapphire Rapids (from DRAM 18 ns per 384-d
 * code instead of 3.4).  Only the ends of arrays are loaded under a mask.
 */
#include "bqkernel.h"

#ifdef BQ_HAVE_X86
#include <immintrin.h>

/* What bqcpu.c asks for before this kernel is used. */
#define AVX512 __attribute__((target( \
	"avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni,avx512vpopcntdq,popcnt")))
#define INLINE static inline __attribute__((always_inline)) AVX512

/* Loops over arrays of registers must be unrolled for the registers to be such. */
#ifdef __clang__
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

INLINE __m512i
load(const void *p)
{
	return _mm512_loadu_si512(p);
}

/*
 * The last n (0 to 63) bytes of a plane, then zeros.  Whole lanes are loaded
 * without a mask: for 384 dimensions (48 bytes) this is the main loop.
 */
INLINE __m512i
load_tail(const uint8_t *p, size_t n)
{
	__m512i		v = _mm512_setzero_si512();

	if (n >= 32)
		v = _mm512_zextsi256_si512(_mm256_loadu_si256((const __m256i *) p));
	if (n >= 48)
		v = _mm512_inserti32x4(v, _mm_loadu_si128((const __m128i *) (p + 32)), 2);
	else if (n >= 16 && n < 32)
		v = _mm512_zextsi128_si512(_mm_loadu_si128((const __m128i *) p));
	if (n % 16 != 0)
	{
		__mmask64	rest = ((UINT64_C(1) << (n % 16)) - 1) << (n / 16 * 16);

		v = _mm512_mask_loadu_epi8(v, rest, p);
	}
	return v;
}

INLINE uint32_t
sum_words(__m512i v)
{
	return (uint32_t) _mm512_reduce_add_epi64(v);
}

/* Names for three-input logic: the truth table of the expression over A, B, C. */
enum
{
	A = 0xf0,
	B = 0xcc,
	C = 0xaa
};
#define LOGIC(a, b, c, table) _mm512_ternarylogic_epi64(a, b, c, (table) & 0xff)

INLINE void
add_hamming(__m512i sa, __m512i ma, __m512i sb, __m512i mb, __m512i *low, __m512i *high)
{
	__m512i		differ = _mm512_xor_si512(sa, sb);

	*low = _mm512_add_epi64(*low, _mm512_popcnt_epi64(LOGIC(differ, ma, mb, A ^ B ^ C)));
	*high = _mm512_add_epi64(*high, _mm512_popcnt_epi64(LOGIC(differ, ma, mb, A & (B | C))));
}

static AVX512 uint32_t
bq_hamming_avx512(const uint8_t *a, const uint8_t *b, size_t nbytes)
{
	const uint8_t *am = a + nbytes;
	const uint8_t *bm = b + nbytes;
	__m512i		low = _mm512_setzero_si512();
	__m512i		high = _mm512_setzero_si512();
	size_t		i = 0;

	for (; i + 64 <= nbytes; i += 64)
		add_hamming(load(a + i), load(am + i), load(b + i), load(bm + i), &low, &high);
	if (i < nbytes)
	{
		size_t		n = nbytes - i;

		add_hamming(load_tail(a + i, n), load_tail(am + i, n),
					load_tail(b + i, n), load_tail(bm + i, n), &low, &high);
	}
	return sum_words(_mm512_add_epi64(low, _mm512_add_epi64(high, high)));
}

static AVX512 uint32_t
bq_hamming_sign_avx512(const uint8_t *a, const uint8_t *b, size_t nbytes)
{
	__m512i		sum = _mm512_setzero_si512();
	size_t		i = 0;

	for (; i + 64 <= nbytes; i += 64)
		sum = _mm512_add_epi64(sum, _mm512_popcnt_epi64(_mm512_xor_si512(load(a + i),
																		 load(b + i))));
	if (i < nbytes)
		sum = _mm512_add_epi64(sum, _mm512_popcnt_epi64(
							   _mm512_xor_si512(load_tail(a + i, nbytes - i),
												load_tail(b + i, nbytes - i))));
	return sum_words(sum);
}

/* 1, 2, 4 = 1 + [one is strong] + 2 [both are] */
INLINE void
add_quiver(__m512i sa, __m512i ma, __m512i sb, __m512i mb, __m512i *once, __m512i *twice)
{
	__m512i		differ = _mm512_xor_si512(sa, sb);
	__m512i		one = LOGIC(differ, ma, mb, A & (B | C));
	__m512i		both = LOGIC(differ, ma, mb, A & B & C);

	*once = _mm512_add_epi64(*once, _mm512_add_epi64(_mm512_popcnt_epi64(differ),
													 _mm512_popcnt_epi64(one)));
	*twice = _mm512_add_epi64(*twice, _mm512_popcnt_epi64(both));
}

static AVX512 uint32_t
bq_hamming_quiver_avx512(const uint8_t *a, const uint8_t *b, size_t nbytes)
{
	const uint8_t *am = a + nbytes;
	const uint8_t *bm = b + nbytes;
	__m512i		once = _mm512_setzero_si512();
	__m512i		twice = _mm512_setzero_si512();
	size_t		i = 0;

	for (; i + 64 <= nbytes; i += 64)
		add_quiver(load(a + i), load(am + i), load(b + i), load(bm + i), &once, &twice);
	if (i < nbytes)
	{
		size_t		n = nbytes - i;

		add_quiver(load_tail(a + i, n), load_tail(am + i, n),
				   load_tail(b + i, n), load_tail(bm + i, n), &once, &twice);
	}
	return sum_words(_mm512_add_epi64(once, _mm512_add_epi64(twice, twice)));
}

static AVX512 uint32_t
bq_popcount_avx512(const uint8_t *a, size_t nbytes)
{
	__m512i		sum = _mm512_setzero_si512();
	size_t		i = 0;

	for (; i + 64 <= nbytes; i += 64)
		sum = _mm512_add_epi64(sum, _mm512_popcnt_epi64(load(a + i)));
	if (i < nbytes)
		sum = _mm512_add_epi64(sum, _mm512_popcnt_epi64(load_tail(a + i, nbytes - i)));
	return sum_words(sum);
}

/* Mask of the first n (1 to 16) lanes. */
INLINE __mmask16
first_lanes(int n)
{
	return (__mmask16) (0xffff >> (16 - n));
}

/* Bits of 16 dimensions, or of the last n of a plane. */
INLINE __mmask16
load_bits(const uint8_t *plane)
{
	uint16_t	bits;

	memcpy(&bits, plane, sizeof(bits));
	return bits;
}

INLINE __mmask16
load_last_bits(const uint8_t *plane, int n)
{
	return (__mmask16) (n > 8 ? load_bits(plane) : plane[0]);
}

INLINE void
store_last_bits(uint8_t *plane, int n, __mmask16 bits)
{
	plane[0] = (uint8_t) bits;
	if (n > 8)
		plane[1] = (uint8_t) (bits >> 8);
}

/* v, negated where the mask is set */
INLINE __m512
negate(__m512 v, __mmask16 mask)
{
	return _mm512_mask_xor_ps(v, mask, v, _mm512_set1_ps(-0.0f));
}

/* Sum of 16 lanes in the fixed order: l and l + 8, + 4, + 2, + 1. */
INLINE float
add_floats(__m512 v)
{
	__m256		eight = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
	__m128		four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
	__m128		two = _mm_add_ps(four, _mm_movehl_ps(four, four));

	return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

INLINE void
add_terms(__m512 q, __mmask16 s, __mmask16 m, __m512 *weak, __m512 *strong)
{
	__m512		term = negate(q, _knot_mask16(s));

	*weak = _mm512_mask_add_ps(*weak, _knot_mask16(m), *weak, term);
	*strong = _mm512_mask_add_ps(*strong, m, *strong, term);
}

static AVX512 void
bq_dot_avx512(const float *q, const uint8_t *planes, int dim, float *weak, float *strong)
{
	const uint8_t *magnitude = planes + bq_plane_nbytes(dim);
	__m512		w = _mm512_setzero_ps();
	__m512		s = _mm512_setzero_ps();
	int			i = 0;

	for (; i + 16 <= dim; i += 16)
		add_terms(_mm512_loadu_ps(q + i), load_bits(planes + i / 8),
				  load_bits(magnitude + i / 8), &w, &s);
	/* zeros beyond the end change no lane: none is ever -0 */
	if (i < dim)
		add_terms(_mm512_maskz_loadu_ps(first_lanes(dim - i), q + i),
				  load_last_bits(planes + i / 8, dim - i),
				  load_last_bits(magnitude + i / 8, dim - i), &w, &s);
	*weak = add_floats(w);
	*strong = add_floats(s);
}

/* Sum of 16 double lanes in the fixed order. */
INLINE double
add_doubles(__m512d lower, __m512d upper)
{
	__m512d		eight = _mm512_add_pd(lower, upper);
	__m256d		four = _mm256_add_pd(_mm512_castpd512_pd256(eight),
									 _mm512_extractf64x4_pd(eight, 1));
	__m128d		two = _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd(four, 1));

	return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
}

/* Squares of floats are exact in double: fused or not, the same sum. */
INLINE __m512d
add_squares(__m256 x, __m512d sum)
{
	__m512d		v = _mm512_cvtps_pd(x);

	return _mm512_fmadd_pd(v, v, sum);
}

INLINE __m512d
add_absolutes(__m256 x, __m512d sum)
{
	return _mm512_add_pd(sum, _mm512_cvtps_pd(_mm256_andnot_ps(_mm256_set1_ps(-0.0f), x)));
}

static AVX512 double
bq_sum_squares_avx512(const float *x, int dim)
{
	__m512d		lower = _mm512_setzero_pd();
	__m512d		upper = _mm512_setzero_pd();
	int			i = 0;

	for (; i + 16 <= dim; i += 16)
	{
		lower = add_squares(_mm256_loadu_ps(x + i), lower);
		upper = add_squares(_mm256_loadu_ps(x + i + 8), upper);
	}
	if (i < dim)
	{
		__m512		v = _mm512_maskz_loadu_ps(first_lanes(dim - i), x + i);

		lower = add_squares(_mm512_castps512_ps256(v), lower);
		upper = add_squares(_mm512_extractf32x8_ps(v, 1), upper);
	}
	return add_doubles(lower, upper);
}

static AVX512 double
bq_sum_absolute_avx512(const float *x, int dim)
{
	__m512d		lower = _mm512_setzero_pd();
	__m512d		upper = _mm512_setzero_pd();
	int			i = 0;

	for (; i + 16 <= dim; i += 16)
	{
		lower = add_absolutes(_mm256_loadu_ps(x + i), lower);
		upper = add_absolutes(_mm256_loadu_ps(x + i + 8), upper);
	}
	if (i < dim)
	{
		__m512		v = _mm512_maskz_loadu_ps(first_lanes(dim - i), x + i);

		lower = add_absolutes(_mm512_castps512_ps256(v), lower);
		upper = add_absolutes(_mm512_extractf32x8_ps(v, 1), upper);
	}
	return add_doubles(lower, upper);
}

INLINE __mmask16
pack_sign(__m512 v)
{
	return _mm512_cmp_ps_mask(v, _mm512_setzero_ps(), _CMP_GT_OQ);
}

INLINE __mmask16
pack_magnitude(__m512 v, __m512 threshold)
{
	return _mm512_cmp_ps_mask(_mm512_abs_ps(v), threshold, _CMP_GT_OQ);
}

static AVX512 void
bq_pack_avx512(const float *x, int dim, float threshold, uint8_t *planes)
{
	uint8_t    *magnitude = planes + bq_plane_nbytes(dim);
	__m512		cut = _mm512_set1_ps(threshold);
	int			i = 0;

	for (; i + 16 <= dim; i += 16)
	{
		__m512		v = _mm512_loadu_ps(x + i);
		uint16_t	s = pack_sign(v);
		uint16_t	m = pack_magnitude(v, cut);

		memcpy(planes + i / 8, &s, sizeof(s));
		memcpy(magnitude + i / 8, &m, sizeof(m));
	}
	if (i < dim)
	{
		/* zeros give zero bits: |0| exceeds no threshold */
		__m512		v = _mm512_maskz_loadu_ps(first_lanes(dim - i), x + i);

		store_last_bits(planes + i / 8, dim - i, pack_sign(v));
		store_last_bits(magnitude + i / 8, dim - i, pack_magnitude(v, cut));
	}
}

INLINE __m512
unpack_bits(__mmask16 s, __mmask16 m, __m512 weak, __m512 strong)
{
	return negate(_mm512_mask_blend_ps(m, weak, strong), _knot_mask16(s));
}

static AVX512 void
bq_unpack_avx512(const uint8_t *planes, int dim, float weak, float strong, float *x)
{
	const uint8_t *magnitude = planes + bq_plane_nbytes(dim);
	__m512		w = _mm512_set1_ps(weak);
	__m512		s = _mm512_set1_ps(strong);
	int			i = 0;

	for (; i + 16 <= dim; i += 16)
		_mm512_storeu_ps(x + i, unpack_bits(load_bits(planes + i / 8),
											load_bits(magnitude + i / 8), w, s));
	if (i < dim)
		_mm512_mask_storeu_ps(x + i, first_lanes(dim - i),
							  unpack_bits(load_last_bits(planes + i / 8, dim - i),
										  load_last_bits(magnitude + i / 8, dim - i), w, s));
}

static AVX512 void
bq_scale_avx512(float *y, const float *x, int n, float factor)
{
	__m512		f = _mm512_set1_ps(factor);
	int			i = 0;

	for (; i + 16 <= n; i += 16)
		_mm512_storeu_ps(y + i, _mm512_mul_ps(_mm512_loadu_ps(x + i), f));
	if (i < n)
	{
		__mmask16	rest = first_lanes(n - i);

		_mm512_mask_storeu_ps(y + i, rest, _mm512_mul_ps(_mm512_maskz_loadu_ps(rest, x + i), f));
	}
}

/* Flips of the 16 elements that start at bit i. */
INLINE __mmask16
load_flips(const uint64_t *flips, int i)
{
	uint32_t	bits;

	memcpy(&bits, (const uint8_t *) flips + i / 8, sizeof(bits));
	return (__mmask16) (bits >> (i % 8));
}

static AVX512 void
bq_flip_avx512(float *x, int n, const uint64_t *flips, int first)
{
	int			i = 0;

	for (; i + 16 <= n; i += 16)
		_mm512_storeu_ps(x + i, negate(_mm512_loadu_ps(x + i), load_flips(flips, first + i)));
	if (i < n)
	{
		__mmask16	rest = first_lanes(n - i);

		_mm512_mask_storeu_ps(x + i, rest, negate(_mm512_maskz_loadu_ps(rest, x + i),
												  load_flips(flips, first + i)));
	}
}

/*
 * One step inside a register: s + v or s - v, s being v with neighbours swapped.
 * Products with +-1 are exact, so the fused form rounds as the plain sum does.
 */
INLINE __m512
add_or_subtract(__m512 s, __m512 v, int minus)
{
	const __m512 one = _mm512_set1_ps(1.0f);

	return _mm512_fmadd_ps(v, _mm512_mask_blend_ps((__mmask16) minus, one, _mm512_set1_ps(-1.0f)),
						   s);
}

/* Four steps inside a register. */
INLINE __m512
transform_register(__m512 v)
{
	v = add_or_subtract(_mm512_permute_ps(v, 0xb1), v, 0xaaaa);
	v = add_or_subtract(_mm512_permute_ps(v, 0x4e), v, 0xcccc);
	v = add_or_subtract(_mm512_shuffle_f32x4(v, v, 0xb1), v, 0xf0f0);
	return add_or_subtract(_mm512_shuffle_f32x4(v, v, 0x4e), v, 0xff00);
}

/* Steps between registers, r[k] and r[k + step]; `count` must be a constant. */
INLINE void
transform_across(__m512 r[16], const int count)
{
	UNROLL
	for (int step = 1; step < count; step *= 2)
	{
		UNROLL
		for (int k = 0; k < count; k++)
		{
			if ((k & step) == 0)
			{
				__m512		a = r[k];
				__m512		b = r[k + step];

				r[k] = _mm512_add_ps(a, b);
				r[k + step] = _mm512_sub_ps(a, b);
			}
		}
	}
}

/* All steps of 16 * count elements, kept in registers. */
INLINE void
transform_block(float *x, const int count, const uint64_t *flips, int first, __m512 factor)
{
	__m512		r[16];

	UNROLL
	for (int k = 0; k < count; k++)
	{
		r[k] = _mm512_loadu_ps(x + 16 * k);
		if (flips != NULL)
			r[k] = negate(r[k], load_flips(flips, first + 16 * k));
		r[k] = transform_register(r[k]);
	}
	transform_across(r, count);
	UNROLL
	for (int k = 0; k < count; k++)
		_mm512_storeu_ps(x + 16 * k, _mm512_mul_ps(r[k], factor));
}

/* The steps h, 2h, ... below h * count, in one pass over memory. */
INLINE void
transform_pass(float *x, int n, int h, const int count, __m512 factor)
{
	for (int i = 0; i < n; i += count * h)
	{
		for (int j = i; j < i + h; j += 16)
		{
			__m512		r[16];

			UNROLL
			for (int k = 0; k < count; k++)
				r[k] = _mm512_loadu_ps(x + j + k * h);
			transform_across(r, count);
			UNROLL
			for (int k = 0; k < count; k++)
				_mm512_storeu_ps(x + j + k * h, _mm512_mul_ps(r[k], factor));
		}
	}
}

/* factor is 1 in all passes but the last: a product with 1 is exact. */
static AVX512 void
bq_hadamard_avx512(float *x, int n, const uint64_t *flips, int first, float factor)
{
	const __m512 one = _mm512_set1_ps(1.0f);
	__m512		last = _mm512_set1_ps(factor);
	int			h = 256;

	switch (n)
	{
		case 1:
		case 2:
		case 4:
		case 8:
			bq_kernel_portable.hadamard(x, n, flips, first, factor);
			return;
		case 16:
			transform_block(x, 1, flips, first, last);
			return;
		case 32:
			transform_block(x, 2, flips, first, last);
			return;
		case 64:
			transform_block(x, 4, flips, first, last);
			return;
		case 128:
			transform_block(x, 8, flips, first, last);
			return;
	}
	for (int i = 0; i < n; i += 256)
		transform_block(x + i, 16, flips, first + i, n == 256 ? last : one);
	while (h < n)
	{
		/* three steps in one pass if a multiple of three remains, else two, else one */
		int			left = __builtin_ctz((unsigned) (n / h));
		int			steps = left % 3 == 0 ? 3 : left == 1 ? 1 : 2;
		__m512		f = steps == left ? last : one;

		if (steps == 3)
			transform_pass(x, n, h, 8, f);
		else if (steps == 2)
			transform_pass(x, n, h, 4, f);
		else
			transform_pass(x, n, h, 2, f);
		h <<= steps;
	}
}

static AVX512 void
bq_mix_avx512(float *a, float *b, int n)
{
	const __m512 half_sqrt = _mm512_set1_ps(0.70710678f);
	int			i = 0;

	for (; i + 16 <= n; i += 16)
	{
		__m512		u = _mm512_loadu_ps(a + i);
		__m512		v = _mm512_loadu_ps(b + i);

		_mm512_storeu_ps(a + i, _mm512_mul_ps(_mm512_add_ps(u, v), half_sqrt));
		_mm512_storeu_ps(b + i, _mm512_mul_ps(_mm512_sub_ps(u, v), half_sqrt));
	}
	if (i < n)
	{
		__mmask16	rest = first_lanes(n - i);
		__m512		u = _mm512_maskz_loadu_ps(rest, a + i);
		__m512		v = _mm512_maskz_loadu_ps(rest, b + i);

		_mm512_mask_storeu_ps(a + i, rest, _mm512_mul_ps(_mm512_add_ps(u, v), half_sqrt));
		_mm512_mask_storeu_ps(b + i, rest, _mm512_mul_ps(_mm512_sub_ps(u, v), half_sqrt));
	}
}

/*
 * Four rows at a time.  The bytes of one code are brought side by side, each
 * gets its row's number above the nibble, and so one 64-entry lookup serves four
 * rows and one dot product with ones adds them up in 32 bits: 8 instructions for
 * 128 lookups, where a shuffle per row and 16-bit sums take 11.
 */
INLINE void
add_rows(__m512i table, __m512i codes, __m512i *low, __m512i *high)
{
	/* byte 4c + r takes byte 16r + c */
	const __m512i transpose = _mm512_set_epi32(
		0x3f2f1f0f, 0x3e2e1e0e, 0x3d2d1d0d, 0x3c2c1c0c, 0x3b2b1b0b, 0x3a2a1a0a, 0x39291909,
		0x38281808, 0x37271707, 0x36261606, 0x35251505, 0x34241404, 0x33231303, 0x32221202,
		0x31211101, 0x30201000);
	const __m512i row = _mm512_set1_epi32(0x30201000);
	const __m512i nibble = _mm512_set1_epi8(15);
	const __m512i ones = _mm512_set1_epi8(1);
	__m512i		index;

	codes = _mm512_permutexvar_epi8(transpose, codes);
	index = LOGIC(codes, nibble, row, (A & B) | C);
	*low = _mm512_dpbusd_epi32(*low, _mm512_permutexvar_epi8(index, table), ones);
	index = LOGIC(_mm512_srli_epi16(codes, 4), nibble, row, (A & B) | C);
	*high = _mm512_dpbusd_epi32(*high, _mm512_permutexvar_epi8(index, table), ones);
}

static AVX512 void
bq_lut_block_avx512(const uint8_t *table, const uint8_t *block, int nrows, uint16_t out[BQ_BLOCK])
{
	__m512i		low = _mm512_setzero_si512();
	__m512i		high = _mm512_setzero_si512();
	int			j = 0;

	for (; j + 4 <= nrows; j += 4)
		add_rows(load(table + 16 * j), load(block + 16 * j), &low, &high);
	if (j < nrows)
	{
		/* rows of zeros add nothing */
		__mmask16	rest = first_lanes(4 * (nrows - j));

		add_rows(_mm512_maskz_loadu_epi32(rest, table + 16 * j),
				 _mm512_maskz_loadu_epi32(rest, block + 16 * j), &low, &high);
	}
	_mm256_storeu_si256((__m256i *) out, _mm512_cvtepi32_epi16(low));
	_mm256_storeu_si256((__m256i *) (out + 16), _mm512_cvtepi32_epi16(high));
}

const BqKernel bq_kernel_avx512 = {
	.name = "avx512",
	.hamming = bq_hamming_avx512,
	.hamming_sign = bq_hamming_sign_avx512,
	.hamming_quiver = bq_hamming_quiver_avx512,
	.popcount = bq_popcount_avx512,
	.dot = bq_dot_avx512,
	.sum_squares = bq_sum_squares_avx512,
	.sum_absolute = bq_sum_absolute_avx512,
	.pack = bq_pack_avx512,
	.unpack = bq_unpack_avx512,
	.scale = bq_scale_avx512,
	.flip = bq_flip_avx512,
	.hadamard = bq_hadamard_avx512,
	.mix = bq_mix_avx512,
	.lut_block = bq_lut_block_avx512,
};

#endif							/* BQ_HAVE_X86 */
