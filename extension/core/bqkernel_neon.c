/* bqkernel_neon.c: the kernels for ARM64, where NEON is always there. */
#include "bqkernel.h"

#ifdef BQ_HAVE_NEON
#include <arm_neon.h>

#define TARGET
#define INLINE static inline __attribute__((always_inline))

/* The last n (1 to 15) bytes of a plane, then zeros. */
INLINE uint8x16_t
load_tail(const uint8_t *p, size_t n)
{
	uint8_t		bytes[16] = {0};

	memcpy(bytes, p, n);
	return vld1q_u8(bytes);
}

/* Add bytes of at most 32 to a sum in 16-bit lanes, wide enough for 2 * BQ_MAX_DIM bits. */
INLINE uint16x8_t
add_bytes(uint16x8_t sum, uint8x16_t bytes)
{
	return vpadalq_u8(sum, bytes);
}

INLINE uint8x16_t
hamming_bytes(uint8x16_t sa, uint8x16_t ma, uint8x16_t sb, uint8x16_t mb)
{
	uint8x16_t	differ = veorq_u8(sa, sb);
	uint8x16_t	low = veorq_u8(differ, veorq_u8(ma, mb));
	uint8x16_t	high = vandq_u8(differ, vorrq_u8(ma, mb));

	return vaddq_u8(vcntq_u8(low), vshlq_n_u8(vcntq_u8(high), 1));
}

static uint32_t
bq_hamming_neon(const uint8_t *a, const uint8_t *b, size_t nbytes)
{
	const uint8_t *am = a + nbytes;
	const uint8_t *bm = b + nbytes;
	uint16x8_t	sum = vdupq_n_u16(0);
	size_t		i = 0;

	for (; i + 16 <= nbytes; i += 16)
		sum = add_bytes(sum, hamming_bytes(vld1q_u8(a + i), vld1q_u8(am + i),
										   vld1q_u8(b + i), vld1q_u8(bm + i)));
	if (i < nbytes)
	{
		size_t		n = nbytes - i;

		sum = add_bytes(sum, hamming_bytes(load_tail(a + i, n), load_tail(am + i, n),
										   load_tail(b + i, n), load_tail(bm + i, n)));
	}
	return vaddlvq_u16(sum);
}

static uint32_t
bq_hamming_sign_neon(const uint8_t *a, const uint8_t *b, size_t nbytes)
{
	uint16x8_t	sum = vdupq_n_u16(0);
	size_t		i = 0;

	for (; i + 16 <= nbytes; i += 16)
		sum = add_bytes(sum, vcntq_u8(veorq_u8(vld1q_u8(a + i), vld1q_u8(b + i))));
	if (i < nbytes)
		sum = add_bytes(sum, vcntq_u8(veorq_u8(load_tail(a + i, nbytes - i),
											   load_tail(b + i, nbytes - i))));
	return vaddlvq_u16(sum);
}

/* 1, 2, 4 = 1 + [one is strong] + 2 [both are] */
INLINE uint8x16_t
quiver_bytes(uint8x16_t sa, uint8x16_t ma, uint8x16_t sb, uint8x16_t mb)
{
	uint8x16_t	differ = veorq_u8(sa, sb);
	uint8x16_t	one = vandq_u8(differ, vorrq_u8(ma, mb));
	uint8x16_t	both = vandq_u8(differ, vandq_u8(ma, mb));

	return vaddq_u8(vaddq_u8(vcntq_u8(differ), vcntq_u8(one)), vshlq_n_u8(vcntq_u8(both), 1));
}

static uint32_t
bq_hamming_quiver_neon(const uint8_t *a, const uint8_t *b, size_t nbytes)
{
	const uint8_t *am = a + nbytes;
	const uint8_t *bm = b + nbytes;
	uint16x8_t	sum = vdupq_n_u16(0);
	size_t		i = 0;

	for (; i + 16 <= nbytes; i += 16)
		sum = add_bytes(sum, quiver_bytes(vld1q_u8(a + i), vld1q_u8(am + i),
										  vld1q_u8(b + i), vld1q_u8(bm + i)));
	if (i < nbytes)
	{
		size_t		n = nbytes - i;

		sum = add_bytes(sum, quiver_bytes(load_tail(a + i, n), load_tail(am + i, n),
										  load_tail(b + i, n), load_tail(bm + i, n)));
	}
	return vaddlvq_u16(sum);
}

static uint32_t
bq_popcount_neon(const uint8_t *a, size_t nbytes)
{
	uint16x8_t	sum = vdupq_n_u16(0);
	size_t		i = 0;

	for (; i + 16 <= nbytes; i += 16)
		sum = add_bytes(sum, vcntq_u8(vld1q_u8(a + i)));
	if (i < nbytes)
		sum = add_bytes(sum, vcntq_u8(load_tail(a + i, nbytes - i)));
	return vaddlvq_u16(sum);
}

/* Bits 4 * half + k of `bits` spread to lanes k: all ones where set. */
INLINE uint32x4_t
spread_bits(uint8_t bits, int half)
{
	static const uint32_t lane[4] = {1, 2, 4, 8};

	return vtstq_u32(vdupq_n_u32((uint32_t) bits >> (4 * half)), vld1q_u32(lane));
}

INLINE float32x4_t
exclusive_or(float32x4_t v, uint32x4_t bits)
{
	return vreinterpretq_f32_u32(veorq_u32(vreinterpretq_u32_f32(v), bits));
}

/* v, negated where the mask is clear. */
INLINE float32x4_t
negate_unless(float32x4_t v, uint32x4_t mask)
{
	return exclusive_or(v, vbicq_u32(vdupq_n_u32(UINT32_C(0x80000000)), mask));
}

/* Sum of 32 lanes in the fixed order: l and l + 16, + 8, + 4, + 2, + 1. */
INLINE float
add_floats(const float32x4_t lanes[8])
{
	float32x4_t eight[2] = {
		vaddq_f32(vaddq_f32(lanes[0], lanes[4]), vaddq_f32(lanes[2], lanes[6])),
		vaddq_f32(vaddq_f32(lanes[1], lanes[5]), vaddq_f32(lanes[3], lanes[7]))
	};
	float32x4_t four = vaddq_f32(eight[0], eight[1]);
	float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));

	return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}

/* 32 terms of bq_dot. */
INLINE void
add_terms(const float *q, const uint8_t *sign, const uint8_t *magnitude,
		  float32x4_t all[8], float32x4_t strong[8])
{
	BQ_UNROLL
	for (int k = 0; k < 8; k++)
	{
		uint32x4_t	m = spread_bits(magnitude[k / 2], k % 2);
		float32x4_t term = negate_unless(vld1q_f32(q + 4 * k), spread_bits(sign[k / 2], k % 2));

		all[k] = vaddq_f32(all[k], term);
		/* adding +0 for a weak dimension changes no lane: none is ever -0 */
		strong[k] = vaddq_f32(strong[k],
							  vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(term), m)));
	}
}

static void
bq_dot_neon(const float *q, const uint8_t *planes, int dim, float *all, float *strong)
{
	size_t		nbytes = bq_plane_nbytes(dim);
	const uint8_t *magnitude = planes + nbytes;
	float32x4_t a[8];
	float32x4_t s[8];
	int			i = 0;

	BQ_UNROLL
	for (int k = 0; k < 8; k++)
		a[k] = s[k] = vdupq_n_f32(0);
	for (; i + 32 <= dim; i += 32)
		add_terms(q + i, planes + i / 8, magnitude + i / 8, a, s);
	if (i < dim)
	{
		float		values[32] = {0};
		uint8_t		bits[2][4] = {{0}};

		memcpy(values, q + i, (size_t) (dim - i) * sizeof(float));
		memcpy(bits[0], planes + i / 8, nbytes - (size_t) i / 8);
		memcpy(bits[1], magnitude + i / 8, nbytes - (size_t) i / 8);
		add_terms(values, bits[0], bits[1], a, s);
	}
	*all = add_floats(a);
	*strong = add_floats(s);
}

/* Sum of 32 double lanes in the fixed order. */
INLINE double
add_doubles(float64x2_t lanes[16])
{
	BQ_UNROLL
	for (int width = 8; width > 0; width /= 2)
	{
		BQ_UNROLL
		for (int k = 0; k < width; k++)
			lanes[k] = vaddq_f64(lanes[k], lanes[k + width]);
	}
	return vgetq_lane_f64(lanes[0], 0) + vgetq_lane_f64(lanes[0], 1);
}

/* Squares of floats are exact in double: fused or not, the same sum. */
INLINE float64x2_t
add_squares(float64x2_t sum, float32x2_t x)
{
	float64x2_t v = vcvt_f64_f32(x);

	return vfmaq_f64(sum, v, v);
}

INLINE float64x2_t
add_absolutes(float64x2_t sum, float32x2_t x)
{
	return vaddq_f64(sum, vcvt_f64_f32(vabs_f32(x)));
}

/* `add` is one of the two above, known when this is inlined. */
INLINE double
add_all(const float *x, int dim, float64x2_t (*add) (float64x2_t, float32x2_t))
{
	float64x2_t lanes[16];
	int			i = 0;

	BQ_UNROLL
	for (int k = 0; k < 16; k++)
		lanes[k] = vdupq_n_f64(0);
	for (; i + 32 <= dim; i += 32)
	{
		BQ_UNROLL
		for (int k = 0; k < 16; k++)
			lanes[k] = add(lanes[k], vld1_f32(x + i + 2 * k));
	}
	if (i < dim)
	{
		float		tail[32] = {0};

		memcpy(tail, x + i, (size_t) (dim - i) * sizeof(float));
		BQ_UNROLL
		for (int k = 0; k < 16; k++)
			lanes[k] = add(lanes[k], vld1_f32(tail + 2 * k));
	}
	return add_doubles(lanes);
}

static double
bq_sum_squares_neon(const float *x, int dim)
{
	return add_all(x, dim, add_squares);
}

static double
bq_sum_absolute_neon(const float *x, int dim)
{
	return add_all(x, dim, add_absolutes);
}

/* One bit per lane of two masks. */
INLINE uint8_t
join_bits(uint32x4_t lower, uint32x4_t upper)
{
	static const uint32_t lane[8] = {1, 2, 4, 8, 16, 32, 64, 128};

	return (uint8_t) vaddvq_u32(vorrq_u32(vandq_u32(lower, vld1q_u32(lane)),
										  vandq_u32(upper, vld1q_u32(lane + 4))));
}

/* Both bits of eight dimensions. */
INLINE void
pack_byte(const float *x, float32x4_t threshold, uint8_t *sign, uint8_t *magnitude)
{
	float32x4_t lower = vld1q_f32(x);
	float32x4_t upper = vld1q_f32(x + 4);

	*sign = join_bits(vcgtzq_f32(lower), vcgtzq_f32(upper));
	*magnitude = join_bits(vcagtq_f32(lower, threshold), vcagtq_f32(upper, threshold));
}

static void
bq_pack_neon(const float *x, int dim, float threshold, uint8_t *planes)
{
	uint8_t    *magnitude = planes + bq_plane_nbytes(dim);
	float32x4_t cut = vdupq_n_f32(threshold);
	int			i = 0;

	for (; i + 8 <= dim; i += 8)
		pack_byte(x + i, cut, planes + i / 8, magnitude + i / 8);
	if (i < dim)
	{
		/* zeros give zero bits: |0| exceeds no threshold */
		float		tail[8] = {0};

		memcpy(tail, x + i, (size_t) (dim - i) * sizeof(float));
		pack_byte(tail, cut, planes + i / 8, magnitude + i / 8);
	}
}

INLINE void
unpack_byte(uint8_t sign, uint8_t magnitude, float32x4_t weak, float32x4_t strong, float *x)
{
	BQ_UNROLL
	for (int half = 0; half < 2; half++)
		vst1q_f32(x + 4 * half,
				  negate_unless(vbslq_f32(spread_bits(magnitude, half), strong, weak),
								spread_bits(sign, half)));
}

static void
bq_unpack_neon(const uint8_t *planes, int dim, float weak, float strong, float *x)
{
	const uint8_t *magnitude = planes + bq_plane_nbytes(dim);
	float32x4_t w = vdupq_n_f32(weak);
	float32x4_t s = vdupq_n_f32(strong);
	int			i = 0;

	for (; i + 8 <= dim; i += 8)
		unpack_byte(planes[i / 8], magnitude[i / 8], w, s, x + i);
	if (i < dim)
	{
		float		tail[8];

		unpack_byte(planes[i / 8], magnitude[i / 8], w, s, tail);
		memcpy(x + i, tail, (size_t) (dim - i) * sizeof(float));
	}
}

/* A string of flips, from one of its bits on. */
typedef struct Flips
{
	const uint8_t *bytes;
	int32x4_t	shift;			/* brings bit k of a word to the sign of lane k */
} Flips;

INLINE Flips
start_flips(const uint64_t *flips, unsigned first)
{
	static const int32_t shift[4] = {31, 30, 29, 28};

	return (Flips) {
		(const uint8_t *) flips + first / 8,
		vsubq_s32(vld1q_s32(shift), vdupq_n_s32((int32_t) (first % 8)))
	};
}

/* v, flipped by bits i to i + 3; i is a multiple of 4. */
INLINE float32x4_t
flip_register(float32x4_t v, Flips flips, size_t i)
{
	uint32_t	word;
	uint32x4_t	signs;

	memcpy(&word, flips.bytes + i / 8, sizeof(word));
	signs = vshlq_u32(vdupq_n_u32(word >> (i % 8)), flips.shift);
	return exclusive_or(v, vandq_u32(signs, vdupq_n_u32(UINT32_C(0x80000000))));
}

/* Two steps inside a register: s + v or s - v, s being v with halves swapped. */
INLINE float32x4_t
transform_register(float32x4_t v)
{
	static const uint32_t odd[4] = {0, UINT32_C(0x80000000), 0, UINT32_C(0x80000000)};
	static const uint32_t upper[4] = {0, 0, UINT32_C(0x80000000), UINT32_C(0x80000000)};

	v = vaddq_f32(vrev64q_f32(v), exclusive_or(v, vld1q_u32(odd)));
	return vaddq_f32(vextq_f32(v, v, 2), exclusive_or(v, vld1q_u32(upper)));
}

#define Floats float32x4_t
#define LANES 4
#define REGISTERS 16

INLINE Floats
load_floats(const float *x)
{
	return vld1q_f32(x);
}

INLINE void
store_floats(float *x, Floats v)
{
	vst1q_f32(x, v);
}

INLINE Floats
all_floats(float f)
{
	return vdupq_n_f32(f);
}

#include "bqkernel_floats.h"

static void
bq_lut_block_neon(const uint8_t *table, const uint8_t *block, int nrows, uint16_t out[BQ_BLOCK])
{
	uint16x8_t	sum[4] = {vdupq_n_u16(0), vdupq_n_u16(0), vdupq_n_u16(0), vdupq_n_u16(0)};

	for (int j = 0; j < nrows; j++)
	{
		uint8x16_t	t = vld1q_u8(table + 16 * j);
		uint8x16_t	codes = vld1q_u8(block + 16 * j);
		uint8x16_t	low = vqtbl1q_u8(t, vandq_u8(codes, vdupq_n_u8(15)));
		uint8x16_t	high = vqtbl1q_u8(t, vshrq_n_u8(codes, 4));

		sum[0] = vaddw_u8(sum[0], vget_low_u8(low));
		sum[1] = vaddw_high_u8(sum[1], low);
		sum[2] = vaddw_u8(sum[2], vget_low_u8(high));
		sum[3] = vaddw_high_u8(sum[3], high);
	}
	for (int k = 0; k < 4; k++)
		vst1q_u16(out + 8 * k, sum[k]);
}

/* Transpose 16 x 16 bytes, as the kernels of x86 do. */
static inline void
transpose(uint8x16_t v[16])
{
	for (int round = 0; round < 4; round++)
	{
		uint8x16_t	w[16];

		for (int i = 0; i < 8; i++)
		{
			w[2 * i] = vzip1q_u8(v[i], v[i + 8]);
			w[2 * i + 1] = vzip2q_u8(v[i], v[i + 8]);
		}
		for (int i = 0; i < 16; i++)
			v[i] = w[i];
	}
}

static void
bq_unstage_neon(const uint8_t *staged, int nrows, uint8_t *rows)
{
	const uint8x16_t low = vdupq_n_u8(15);
	int			stride = nrows / 2;

	if (nrows % 2 != 0 || stride < 16)
	{
		bq_kernel_portable.unstage(staged, nrows, rows);
		return;
	}
	for (int from = 0; from < stride; from += 16)
	{
		int			at = from + 16 <= stride ? from : stride - 16;
		uint8_t    *out = rows + 32 * at;
		uint8x16_t	a[16];
		uint8x16_t	b[16];

		for (int c = 0; c < 16; c++)
		{
			a[c] = vld1q_u8(staged + c * stride + at);
			b[c] = vld1q_u8(staged + (c + 16) * stride + at);
		}
		transpose(a);
		transpose(b);
		for (int k = 0; k < 16; k++)
		{
			vst1q_u8(out + 32 * k, vorrq_u8(vandq_u8(a[k], low), vshlq_n_u8(b[k], 4)));
			vst1q_u8(out + 32 * k + 16, vorrq_u8(vshrq_n_u8(a[k], 4), vbicq_u8(b[k], low)));
		}
	}
}

const BqKernel bq_kernel_neon = {
	.name = "neon",
	.hamming = bq_hamming_neon,
	.hamming_sign = bq_hamming_sign_neon,
	.hamming_quiver = bq_hamming_quiver_neon,
	.popcount = bq_popcount_neon,
	.dot = bq_dot_neon,
	.sum_squares = bq_sum_squares_neon,
	.sum_absolute = bq_sum_absolute_neon,
	.pack = bq_pack_neon,
	.unpack = bq_unpack_neon,
	.scale = scale_floats,
	.flip = flip_floats,
	.hadamard = hadamard_floats,
	.mix = mix_floats,
	.lut_block = bq_lut_block_neon,
	.scale_sums = bq_scale_sums_portable,
	.find_sums = bq_find_sums_portable,
	.unstage = bq_unstage_neon,
};

#endif							/* BQ_HAVE_NEON */
