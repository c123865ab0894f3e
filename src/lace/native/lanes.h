/* What compiled steps are made of: products of LANES columns side by side, each a sum in one order of its depth.

   Weights lie in panels, (columns / LANES, depth, LANES), the last one filled up with zeros, so that a product reads
   them once and in order. A row's result is the same, bit for bit, however many rows are multiplied with it. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

#if defined(__AVX512BF16__) && !(__clang_major__ == 16 || __clang_major__ == 17) /* which crash at the instruction */
#define BY_WORDS 1
#else
#define BY_WORDS 0
#endif

#define LANES 16
#define WORTH_SHARING 1e6 /* products of a step; less is done before other processor threads are awake */
#define CHUNK 16   /* rows that are projected together */
#define AHEAD 3072 /* bytes of weights that are asked for before they are needed: processors guess no further than a page */
#ifdef __AVX512F__
#define TILE 8 /* rows of a product at once: as many as there are registers for */
#define TWO_PANELS 1 /* whether there are registers for them */
#else
#define TILE 4
#define TWO_PANELS 0
#endif

/* What lies in memory as numbers, in float32 or bfloat16, is also read as vectors and words. */
typedef float lanes __attribute__((vector_size(4 * LANES), may_alias));
typedef int32_t masks __attribute__((vector_size(4 * LANES)));
typedef uint32_t words __attribute__((vector_size(4 * LANES)));
typedef uint16_t halves __attribute__((vector_size(2 * LANES), may_alias)); /* in bfloat16 */
typedef uint32_t word __attribute__((may_alias));                           /* of two numbers in bfloat16 */

/* What is multiplied: both sides in float32; weights in bfloat16, two of the depth in a word; or both sides so. */
enum { FLOATS, PAIRS, WORDS };

static inline int64_t panels(int64_t columns) { return (columns + LANES - 1) / LANES; }

static inline lanes *room(int64_t count) { return aligned_alloc(sizeof(lanes), count * sizeof(lanes)); }

static inline lanes widened(halves x) { return (lanes)(__builtin_convertvector(x, words) << 16); }

/* sum + what a number, or two, or a word give with each lane of `by`; some processors take a word in the time of a number. */
static inline __attribute__((always_inline)) lanes plus(const int form, lanes sum, const float *number, lanes by) {
    if (form == FLOATS) return sum + *number * by;
    float low, high;
    if (form == PAIRS) {
        low = number[0], high = number[1];
    } else {
        const word both = *(const word *)number;
#if BY_WORDS
        return (lanes)_mm512_dpbf16_ps((__m512)sum, (__m512bh)by, (__m512bh)_mm512_set1_epi32(both));
#endif
        memcpy(&low, &(word){both << 16}, sizeof(low));
        memcpy(&high, &(word){both & 0xFFFF0000}, sizeof(high));
    }
    return sum + low * (lanes)((words)by << 16) + high * (lanes)((words)by & 0xFFFF0000);
}

static inline __attribute__((always_inline)) void tile(const int rows, const int both, const int adding,
                                                       const int form, int64_t depth, const float *a, int64_t row,
                                                       int64_t column, const void *b, const void *b2, lanes *c,
                                                       lanes *c2) {
    lanes sum[TILE], sum2[TILE];
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++) sum[i] = adding ? c[i] : (lanes){0};
#pragma GCC unroll 8
    for (int i = 0; both && i < rows; i++) sum2[i] = adding ? c2[i] : (lanes){0};
    for (int64_t d = 0; d < depth; d++) {
        const float *at = a + d * column * (form == PAIRS ? 2 : 1);
        const int64_t ahead = AHEAD + d * sizeof(lanes);
        __builtin_prefetch((const char *)b + ahead);
        if (both) __builtin_prefetch((const char *)b2 + ahead);
        const lanes by = ((const lanes *)b)[d], by2 = both ? ((const lanes *)b2)[d] : by;
#pragma GCC unroll 8
        for (int i = 0; i < rows; i++) {
            sum[i] = plus(form, sum[i], at + i * row, by);
            if (both) sum2[i] = plus(form, sum2[i], at + i * row, by2);
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++) c[i] = sum[i];
#pragma GCC unroll 8
    for (int i = 0; both && i < rows; i++) c2[i] = sum2[i];
}

/* c (rows, LANES) = or += a (rows, depth) b (depth, LANES), and c2 by b2 if they are given, which costs less than twice;
   `row` and `column` are the distances in a. Of words, depth and distances are those of words; of PAIRS, depth alone. */
static inline __attribute__((always_inline)) void multiply(const int adding, const int form, int64_t rows,
                                                           int64_t depth, const float *a, int64_t row, int64_t column,
                                                           const void *b, const void *b2, lanes *c, lanes *c2) {
    int64_t i = 0;
    if (b2 && TWO_PANELS) {
        for (; i + TILE <= rows; i += TILE)
            tile(TILE, 1, adding, form, depth, a + i * row, row, column, b, b2, c + i, c2 + i);
        for (; i + 4 <= rows; i += 4) tile(4, 1, adding, form, depth, a + i * row, row, column, b, b2, c + i, c2 + i);
        for (; i < rows; i++) tile(1, 1, adding, form, depth, a + i * row, row, column, b, b2, c + i, c2 + i);
        return;
    }
    for (; b; b = b2, c = c2, b2 = 0, i = 0) {
        for (; i + TILE <= rows; i += TILE) tile(TILE, 0, adding, form, depth, a + i * row, row, column, b, 0, c + i, 0);
        for (; i + 4 <= rows; i += 4) tile(4, 0, adding, form, depth, a + i * row, row, column, b, 0, c + i, 0);
        for (; i < rows; i++) tile(1, 0, adding, form, depth, a + i * row, row, column, b, 0, c + i, 0);
    }
}

static inline lanes larger(lanes a, lanes b) {
#ifdef __AVX512F__
    return (lanes)_mm512_max_ps((__m512)a, (__m512)b); /* compilers do not see it in what follows */
#else
    masks is = a > b;
    return (lanes)(((masks)a & is) | ((masks)b & ~is));
#endif
}

/* e^x for x <= 0: the polynomial of Cephes' expf on [-ln 2 / 2, ln 2 / 2] times a power of two; 0 below -87. */
static inline lanes exponential(lanes x) {
    masks counts = x > -87.0f;
    lanes n = x * 1.44269504f + 12582912.0f; /* 1.5 * 2^23: the nearest whole number is in the last bits */
    words power = ((words)n - 0x4B400000u + 127u) << 23;
    n -= 12582912.0f;
    x = (x - n * 0.693145752f) - n * 1.42860677e-6f;
    lanes p = x * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * x + 8.3334519073e-3f;
    p = p * x + 4.1665795894e-2f;
    p = p * x + 1.6666665459e-1f;
    p = p * x + 5.0000001201e-1f;
    p = p * (x * x) + x + 1.0f;
    return (lanes)((masks)(p * (lanes)power) & counts);
}

static inline float load(const void *x, int64_t i, int64_t bfloat16) {
    if (!bfloat16) return ((const float *)x)[i];
    const uint32_t bits = (uint32_t)((const uint16_t *)x)[i] << 16;
    float wide;
    memcpy(&wide, &bits, 4);
    return wide;
}

static inline void store(void *x, int64_t i, int64_t bfloat16, float value) {
    if (!bfloat16) {
        ((float *)x)[i] = value;
        return;
    }
    uint32_t bits;
    memcpy(&bits, &value, 4);
    bits = value != value ? 0x7FC00000 : bits + 0x7FFF + (bits >> 16 & 1); /* to the nearest, ties to even */
    ((uint16_t *)x)[i] = bits >> 16;
}

static inline void copy(int64_t count, const void *x, int64_t at, int64_t bfloat16, float *to) {
    if (bfloat16)
        for (int64_t i = 0; i < count; i++) to[i] = load(x, at + i, 1);
    else
        memcpy(to, (const float *)x + at, count * sizeof(float));
}

/* Rotary encoding of the dimensions of one head, whose halves are pairs. */
static inline void turn(int64_t dim, const float *cosine, const float *sine, float *x) {
    float *left = x, *right = x + dim / 2;
    for (int64_t i = 0; i < dim / 2; i++) {
        const float a = left[i], b = right[i];
        left[i] = a * cosine[i] - b * sine[i];
        right[i] = b * cosine[dim / 2 + i] + a * sine[dim / 2 + i];
    }
}
