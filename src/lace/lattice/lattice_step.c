/* One grafted layer in a step of decoding on a processor: what `LatticeAttention.added` computes by a dozen operators.

   For each row (thread) x of width D, with Z, H, K the low dimension, the query heads and the dimensions of a head:

       z = x W_down                               (Z)
       q_h, k, v, g_h = norm(z) W_proj            ((H + 2) K + H)
       q_h, k turned by cos and sin               of (step, thread id)
       entry = (k, v)                             into the cache
       w_h = softmax over {null} + {entries that are read} of q_h . k / sqrt(K)
       out = x + concat_h( sigmoid(g_h) * sum_j w_hj v_j ) W_up

   All products are of one form, `multiply`: LANES columns side by side, each a sum in one order of its depth. The
   columns of weights are outputs; those of attention are queries, all heads of all threads of a lattice, so that
   entries are read as they lie, each number for LANES queries. What a row gets depends, bit for bit, neither on which
   other rows and lattices there are nor on the number of processor threads: what is not read adds zeros, and the
   softmax is scaled anew where the lattice's own steps say so. In a model in bfloat16, what is multiplied is rounded to it,
   two numbers in a word; sums are always in float32.

   Shape letters as in attention.py: R rows, L lattices, N threads, S slots. */

#include "lanes.h"

#define SLOTS 8 /* that attend before the softmax is scaled anew; even, since two weights may go into one word */

typedef struct { /* as in native.py */
    int64_t width, low, heads, dim, gated, bfloat16;
    double epsilon;
    const void *down, *proj, *up; /* in panels, of words in bfloat16, padded with zeros */
    const float *norm;            /* (Z) */
    const void *null_key;         /* (K) */
} Layer;

typedef struct { /* as in native.py */
    int64_t rows, lattices, threads, slot, stop, horizon, read_self, processors;
    const int64_t *row_of; /* (L, N), -1 where there is no thread */
    const int64_t *starts; /* (L), the first slot of each lattice */
    const int64_t *steps;  /* (L, S, N) of the entries, -1 where nothing is written */
    int64_t steps_lattice, steps_slot;     /* distances in it */
    int64_t entries_lattice, entries_slot; /* distances in the entries, (L, S, N, 2 K), keys and values side by side */
    const float *cosines, *sines;          /* (R, K) */
} Step;

/* c (rows, LANES) = or += a (rows, depth) b (depth, LANES), likewise c2 by b2, of words or of numbers in float32. */
static void product(int in_words, int adding, int64_t rows, int64_t depth, const float *a, int64_t row, int64_t column,
                    const lanes *b, const lanes *b2, lanes *c, lanes *c2) {
    if (in_words && adding)
        multiply(1, WORDS, rows, depth, a, row, column, b, b2, c, c2);
    else if (in_words)
        multiply(0, WORDS, rows, depth, a, row, column, b, b2, c, c2);
    else if (adding)
        multiply(1, FLOATS, rows, depth, a, row, column, b, b2, c, c2);
    else
        multiply(0, FLOATS, rows, depth, a, row, column, b, b2, c, c2);
}

/* y (rows, whole panels) = x (rows, depth) w */
static void project(int in_words, int64_t rows, int64_t depth, int64_t columns, const float *x, const lanes *w, float *y) {
    const int64_t count = panels(columns);
    for (int64_t p = 0; p < count; p += 2) {
        lanes made[2][CHUNK];
        const lanes *b = w + p * depth;
        const int two = p + 1 < count;
        product(in_words, 0, rows, depth, x, depth, 1, b, two ? b + depth : 0, made[0], made[1]);
        for (int q = 0; q <= two; q++)
            for (int64_t r = 0; r < rows; r++) memcpy(y + (r * count + p + q) * LANES, made[q] + r, sizeof(lanes));
    }
}

/* Of a product with so many numbers: words hold two. */
static inline int64_t depth_of(const Layer *layer, int64_t count) { return layer->bfloat16 ? (count + 1) / 2 : count; }

/* Queries, entries and gates of up to CHUNK rows, (rows, whole panels of (H + 2) K + H). */
static int prepare(const Layer *layer, const Step *step, int64_t first, int64_t rows, const void *x, float *made) {
    const int64_t D = layer->width, Z = layer->low, H = layer->heads, K = layer->dim, low = panels(Z) * LANES;
    const int64_t columns = (H + 2) * K + (layer->gated ? H : 0), wide = layer->bfloat16, size = wide ? 2 : 4;
    const int64_t x_depth = depth_of(layer, D), z_depth = depth_of(layer, Z);
    lanes *memory = room(panels(rows * x_depth) + panels(rows * z_depth) + rows * panels(Z));
    if (!memory) return 1;
    float *in = (float *)memory, *normed = in + panels(rows * x_depth) * LANES, *z = normed + panels(rows * z_depth) * LANES;
    memset(memory, 0, sizeof(lanes) * (panels(rows * x_depth) + panels(rows * z_depth)));
    for (int64_t r = 0; r < rows; r++) memcpy(in + r * x_depth, (const char *)x + (first + r) * D * size, D * size);
    project(wide, rows, x_depth, Z, in, layer->down, z);
    for (int64_t r = 0; r < rows; r++, z += low) {
        float squares = 0;
        for (int64_t i = 0; i < Z; i++) squares += z[i] * z[i];
        const float scale = 1 / sqrtf(squares / Z + layer->epsilon);
        for (int64_t i = 0; i < Z; i++) store(normed + r * z_depth, i, wide, z[i] * scale * layer->norm[i]);
    }
    made += first * panels(columns) * LANES;
    project(wide, rows, z_depth, columns, normed, layer->proj, made);
    for (int64_t r = 0; r < rows; r++) {
        const float *cosine = step->cosines + (first + r) * K, *sine = step->sines + (first + r) * K;
        for (int64_t h = 0; h <= H; h++) turn(K, cosine, sine, made + r * panels(columns) * LANES + h * K);
    }
    free(memory);
    return 0;
}

/* 2^x for x <= 0: its Taylor polynomial on [-1/2, 1/2] times a power of two; 0 below -126. */
static inline lanes power_of_two(lanes x) {
    const masks counts = x > -126.0f;
    const lanes n = x + 12582912.0f; /* 1.5 * 2^23: the nearest whole number is in the last bits */
    x -= n - 12582912.0f;
    lanes p = x * 1.5403530e-4f + 1.3333558e-3f;
    p = p * x + 9.6181291e-3f;
    p = p * x + 5.5504109e-2f;
    p = p * x + 2.4022651e-1f;
    p = p * x + 6.9314718e-1f;
    p = p * x + 1.0f;
    return (lanes)((masks)((words)p + ((words)n << 23)) & counts);
}

/* Two numbers of each lane in bfloat16, to the nearest, ties to even. */
static inline words pair(lanes low, lanes high) {
    const words a = (words)low + 0x7FFF + ((words)low >> 16 & 1), b = (words)high + 0x7FFF + ((words)high >> 16 & 1);
    return a >> 16 | (b & 0xFFFF0000);
}

/* Values of two slots in words, (N, K), from entries (N, 2 K); the later slot may not be `there`. */
static void pair_values(int64_t threads, int64_t dim, const void *entries, int there, word *to) {
    const uint16_t *value = (const uint16_t *)entries + dim, *later = value + threads * 2 * dim;
    for (int64_t n = 0; n < threads; n++, value += 2 * dim, later += 2 * dim, to += dim)
        if (there)
            for (int64_t d = 0; d < dim; d++) to[d] = value[d] | (word)later[d] << 16;
        else
            for (int64_t d = 0; d < dim; d++) to[d] = value[d];
}

/* The queries in panels `from` to `to` of lattice l read; query q is head q % H of thread q / H. */
static int attend(const Layer *layer, const Step *step, int64_t l, int64_t from, int64_t to, const void *entries,
                  const float *made, int64_t made_row, void *read) {
    const int64_t H = layer->heads, K = layer->dim, N = step->threads, count = to - from;
    const int64_t begin = from * LANES, end = to * LANES < N * H ? to * LANES : N * H, start = step->starts[l];
    const int64_t *row_of = step->row_of + l * N, *steps = step->steps + l * step->steps_lattice;
    const int64_t *now = steps + step->slot * step->steps_slot;
    const int wide = layer->bfloat16, lie_apart = step->entries_slot != N * 2 * K;
    const int64_t depth = depth_of(layer, K), size = wide ? 2 : 4;
    int64_t first = step->stop - step->horizon, stop;
    if (!step->horizon || first < start) first = start;
    lanes *memory = room(count * (depth + K + 2) + 2 * SLOTS * N + panels(SLOTS * N * 2 * K));
    if (!memory) return 1;
    lanes *query = memory, *sum = query + count * depth, *largest = sum + count * K, *total = largest + count;
    lanes *scores = total + count;                       /* of two panels, (slots, N), then the weights */
    float *together = (float *)(scores + 2 * SLOTS * N); /* entries where they lie apart */
    word *paired = (word *)together + SLOTS * N * K;     /* values in words, behind entries in bfloat16 */
    const float scale = 1.44269504f / sqrtf(K); /* of scores in powers of two */
    memset(memory, 0, sizeof(lanes) * count * (depth + K + 1));
    for (int64_t q = begin; q < end; q++)
        for (int64_t d = 0; d < K && row_of[q / H] >= 0; d++) {
            const int64_t lane = q % LANES, at = wide ? (d / 2 * LANES + lane) * 2 + d % 2 : d * LANES + lane;
            store(query + (q / LANES - from) * depth, at, wide,
                  made[row_of[q / H] * made_row + q % H * K + d] * scale);
        }
    for (int64_t p = 0; p < count; p++) { /* the null entry, whose value is zero */
        product(wide, 0, 1, depth, layer->null_key, depth, 1, query + p * depth, 0, largest + p, 0);
        total[p] = (lanes){0} + 1;
    }
    for (int64_t s = first; s < step->stop; s = stop) {
        stop = s - (s - start) % SLOTS + SLOTS;
        if (stop > step->stop) stop = step->stop;
        const int64_t at = l * step->entries_lattice + s * step->entries_slot, read_now = (stop - s) * N;
        for (int64_t i = 0; lie_apart && i < stop - s; i++)
            memcpy((char *)together + i * N * 2 * K * size, (const char *)entries + (at + i * step->entries_slot) * size,
                   N * 2 * K * size);
        const float *keys = lie_apart ? together : (const float *)((const char *)entries + at * size);
        for (int64_t i = 0; wide && i < stop - s; i += 2)
            pair_values(N, K, keys + i * N * K, i + 1 < stop - s, paired + i / 2 * N * K);
        int gaps = 0; /* whether somebody has written nothing */
        for (int64_t i = s; i < stop; i++)
            for (int64_t n = 0; n < N; n++) gaps |= steps[i * step->steps_slot + n] < 0;
        for (int64_t first_of_two = 0; first_of_two < count; first_of_two += 2) {
            const int64_t two = first_of_two + 1 < count ? 2 : 1, both = two == 2;
            lanes *of = sum + first_of_two * K, *asking = query + first_of_two * depth;
            product(wide, 0, read_now, depth, keys, 2 * depth, 1, asking, both ? asking + depth : 0, scores,
                    scores + read_now);
            for (int64_t p = first_of_two; p < first_of_two + two; p++) {
                lanes *score = scores + (p - first_of_two) * read_now, most = largest[p], added = {0};
                for (int64_t q = begin + p * LANES; !step->read_self && q < end && q < begin + (p + 1) * LANES; q++) {
                    float *own = (float *)(score + q / H) + q % LANES;
                    for (int64_t i = 0; i < stop - s; i++) own[i * N * LANES] = -INFINITY;
                }
                for (int64_t e = 0; e < read_now && gaps; e++)
                    if (steps[(s + e / N) * step->steps_slot + e % N] < 0) score[e] = (lanes){0} - INFINITY;
                for (int64_t e = 0; e < read_now; e++) most = larger(score[e], most);
                const lanes kept = power_of_two(largest[p] - most);
                for (int64_t e = 0; e < read_now; e++) added += score[e] = power_of_two(score[e] - most);
                for (int64_t i = 0; wide && i < stop - s; i += 2)
                    for (int64_t e = i * N; e < (i + 1) * N; e++)
                        score[e - i / 2 * N] = (lanes)pair(score[e], i + 1 < stop - s ? score[e + N] : (lanes){0});
                total[p] = total[p] * kept + added;
                for (int64_t d = 0; d < K; d++) sum[p * K + d] *= kept;
                largest[p] = most;
            }
            const float *values = wide ? (const float *)paired : keys + K;
            product(wide, 1, K, wide ? (stop - s + 1) / 2 * N : read_now, values, 1, wide ? K : 2 * K, scores,
                    both ? scores + read_now : 0, of, of + K);
        }
    }
    for (int64_t q = begin; q < end; q++) {
        const int64_t row = row_of[q / H], p = q / LANES - from;
        if (row < 0) continue;
        float share = now[q / H] < 0 ? 0 : 1 / ((float *)(total + p))[q % LANES]; /* who writes nothing reads nothing */
        if (layer->gated) share /= 1 + expf(-made[row * made_row + (H + 2) * K + q % H]);
        for (int64_t d = 0; d < K; d++)
            store(read, (row * H + q % H) * K + d, wide, share * ((float *)(sum + p * K + d))[q % LANES]);
    }
    free(memory);
    return 0;
}

/* Entries of the layer, x and out (R, D) are all in float32 or all in bfloat16. Returns 1 if there is no memory. */
int lattice_step(const Layer *layer, const Step *step, void *entries, const void *x, void *out) {
    const int64_t R = step->rows, D = layer->width, H = layer->heads, K = layer->dim, N = step->threads;
    const int64_t depth = depth_of(layer, H * K);
    const int64_t made_row = panels((H + 2) * K + (layer->gated ? H : 0)) * LANES, wide = layer->bfloat16;
    lanes *memory = room(panels(R * made_row) + panels(R * H * K));
    if (!memory) return 1;
    float *made = (float *)memory, *read = made + panels(R * made_row) * LANES;
    const double products = R * (D * (double)(layer->low + H * K) + 2.0 * N * step->stop * H * K);
    const int processors = products < WORTH_SHARING ? 1 : step->processors;
    /* A lattice's panels of queries are shared out where there are fewer lattices than processor threads. */
    const int64_t of_lattice = panels(N * H), shares = (processors + step->lattices - 1) / step->lattices;
    const int64_t share = (of_lattice + shares - 1) / shares;
    int failed = 0;
    (void)processors; /* where there is no OpenMP */

#pragma omp parallel for num_threads(processors) if (processors > 1) reduction(| : failed)
    for (int64_t r = 0; r < R; r += CHUNK) failed |= prepare(layer, step, r, R - r < CHUNK ? R - r : CHUNK, x, made);
    for (int64_t place = 0; place < step->lattices * N && !failed; place++) {
        const int64_t l = place / N, n = place % N, row = step->row_of[place];
        const int none = row < 0 || step->steps[l * step->steps_lattice + step->slot * step->steps_slot + n] < 0;
        const int64_t at = l * step->entries_lattice + step->slot * step->entries_slot + n * 2 * K;
        for (int64_t i = 0; i < 2 * K; i++) store(entries, at + i, wide, none ? 0 : made[row * made_row + H * K + i]);
    }
#pragma omp parallel for collapse(2) num_threads(processors) if (processors > 1) reduction(| : failed)
    for (int64_t l = 0; l < step->lattices; l++)
        for (int64_t from = 0; from < of_lattice; from += share)
            if (!failed)
                failed |= attend(layer, step, l, from, from + share < of_lattice ? from + share : of_lattice, entries,
                                 made, made_row, read);
#pragma omp parallel for num_threads(processors) if (processors > 1)
    for (int64_t r = 0; r < R; r += CHUNK)
        for (int64_t p = 0; p < panels(D) && !failed; p++) {
            const int64_t rows = R - r < CHUNK ? R - r : CHUNK, columns = D - p * LANES < LANES ? D - p * LANES : LANES;
            lanes added[CHUNK];
            product(wide, 0, rows, depth, read + r * depth, depth, 1, (const lanes *)layer->up + p * depth, 0, added, 0);
            for (int64_t i = 0; i < rows; i++)
                for (int64_t j = 0; j < columns; j++) {
                    const int64_t at = (r + i) * D + p * LANES + j;
                    store(out, at, wide, load(x, at, wide) + ((float *)(added + i))[j]);
                }
        }
    free(memory);
    return failed;
}
