/* A step of a decoder of the Llama kind on a processor: what `LeanDecoder` computes, in one call. Where the model is in
   bfloat16, so are weights, embeddings and caches, and sums are still in float32. What is multiplied with weights is
   rounded to bfloat16 if the processor takes two such numbers at once.

   For each row r with the token t at the position p, D, H, G, K, F the width, the query heads, the key-value heads, the
   dimensions of a head and the inner width of the MLP:

       h = embedding of t                              (D)
       for each block:
           q, k, v = norm(h) W_qkv                     ((H + 2 G) K), q and k normed, where the model does, and turned by p
           a = softmax(q . cached k) cached v          (H K), over the row's own columns and its new one
           a = a + what the lattice reads              see lattice_step.c
           h = h + a W_o
           h = h + (silu(norm(h) W_gate) * norm(h) W_up) W_down
       logits = norm(h) W_head                         (V)

   What a row gets depends, bit for bit, neither on which other rows there are, nor on where its columns begin, nor on the
   number of processor threads.

   Shape letters: R rows, C columns of the cache with the new one, V vocabulary. */

#include "lanes.h"

#define MOST_PARTS 16 /* of a head, LANES dimensions each */

typedef struct { /* as in native_decoder.py; vectors are in float32, padded to whole panels, NULL where there are none */
    const void *qkv, *o, *gate, *up, *down; /* in panels, of words in bfloat16 */
    const float *before, *after, *q_norm, *k_norm, *qkv_bias, *o_bias, *gate_bias, *up_bias, *down_bias;
} Block;

typedef struct { /* as in native_decoder.py */
    int64_t width, heads, key_heads, dim, inner, vocabulary, count, bfloat16;
    double epsilon, scaling;
    const void *embeddings; /* (V, D) */
    const void *head;
    const float *norm, *head_bias;
    const Block *blocks;
    int (*lattice_step)(const void *layer, const void *step, void *entries, const void *x, void *out);
} Model;

typedef struct { /* as in native_decoder.py */
    int64_t rows, columns, first, angles, processors; /* columns from the first that is read; positions with angles */
    const int64_t *tokens, *positions; /* (R) */
    const int64_t *mask;               /* (R, C) 0 for the columns before a row's own, or NULL */
    int64_t mask_row;                  /* distance in it */
    const float *cosines, *sines;      /* (angles, K) */
    void *const *keys, *const *values; /* of each block, (R, G, .., K), of which the last column is written here */
    int64_t cache_row, cache_head;      /* distances in them */
    const void *lattice;                /* as `lattice_step` takes it, NULL where nobody reads */
    const void *const *readers;         /* of each block, likewise: its grafted layer */
    void *const *entries;               /* of each block */
} Step;

static inline int64_t padded(int64_t width) { return panels(width) * LANES; }

static inline float sum(lanes x) {
    float total = 0;
    for (int i = 0; i < LANES; i++) total += ((float *)&x)[i];
    return total;
}

/* y = x / rms(x) * weight, of `width` numbers; all are padded with zeros. */
static inline void rms_norm(int64_t width, double epsilon, const float *x, const float *weight, float *y) {
    const lanes *in = (const lanes *)x, *by = (const lanes *)weight;
    lanes squares = {0}, *out = (lanes *)y;
    for (int64_t p = 0; p < panels(width); p++) squares += in[p] * in[p];
    const float scale = 1 / sqrtf(sum(squares) / width + (float)epsilon);
    for (int64_t p = 0; p < panels(width); p++) out[p] = in[p] * scale * by[p];
}

static void norm_rows(const Model *model, int64_t rows, const float *x, const float *weight, float *y) {
    const int64_t row = padded(model->width);
    for (int64_t r = 0; r < rows; r++) rms_norm(model->width, model->epsilon, x + r * row, weight, y + r * row);
}

/* What is multiplied with weights: x (R, width) itself or, in `to`, the nearest in bfloat16, ties to even; rows are padded
   with zeros. */
static const float *factors(const Model *model, int64_t rows, int64_t width, const float *x, halves *to) {
    if (!BY_WORDS || !model->bfloat16) return x;
#if BY_WORDS
    for (int64_t i = 0; i < rows * panels(width); i++) to[i] = (halves)_mm512_cvtneps_pbh(((const __m512 *)x)[i]);
#endif
    return (const float *)to;
}

/* Two panels of y (R, columns) = or += x (R, depth) w + bias; rows of x are padded, those of y lie `y_row` apart. */
static inline __attribute__((always_inline)) void two_panels(const int form, int64_t p, int64_t rows, int64_t depth,
                                                             int64_t columns, const float *x, const lanes *w,
                                                             const float *bias, float *y, int64_t y_row, int adding) {
    const int64_t within = columns - p * LANES < 2 * LANES ? columns - p * LANES : 2 * LANES;
    const int64_t x_row = form == WORDS ? padded(depth) / 2 : padded(depth), size = form == FLOATS ? depth : (depth + 1) / 2;
    const lanes *b = w + p * size, *b2 = within > LANES ? b + size : 0;
    for (int64_t r = 0; r < rows; r += CHUNK) {
        const int64_t count = rows - r < CHUNK ? rows - r : CHUNK;
        lanes made[2][CHUNK];
        multiply(0, form, count, size, x + r * x_row, x_row, 1, b, b2, made[0], made[1]);
        for (int64_t i = 0; i < count; i++)
            for (int64_t j = 0; j < within; j++) {
                float *to = y + (r + i) * y_row + p * LANES + j, one = ((float *)(made[j / LANES] + i))[j % LANES];
                if (bias) one += bias[p * LANES + j];
                *to = adding ? *to + one : one;
            }
    }
}

/* y (R, columns) = or += x w + bias, of `factors` x. */
static void product(const Model *model, int64_t rows, int64_t depth, int64_t columns, const float *x, const void *w,
                    const float *bias, float *y, int64_t y_row, int adding, int processors) {
    (void)processors; /* where there is no OpenMP */
#pragma omp parallel for num_threads(processors) if (processors > 1)
    for (int64_t p = 0; p < panels(columns); p += 2) {
        if (model->bfloat16)
            two_panels(BY_WORDS ? WORDS : PAIRS, p, rows, depth, columns, x, w, bias, y, y_row, adding);
        else
            two_panels(FLOATS, p, rows, depth, columns, x, w, bias, y, y_row, adding);
    }
}

/* The sums of 16 vectors, side by side: halves are added and laid behind one another until each is one number. */
#if defined(__clang__)
#define PICK(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define PICK(a, b, ...) __builtin_shuffle(a, b, (masks){__VA_ARGS__})
#endif
static inline lanes sums(lanes x[LANES]) {
    for (int i = 0; i < 8; i++)
        x[i] = PICK(x[i], x[i + 8], 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
               PICK(x[i], x[i + 8], 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
    for (int i = 0; i < 4; i++)
        x[i] = PICK(x[i], x[i + 4], 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27) +
               PICK(x[i], x[i + 4], 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31);
    for (int i = 0; i < 2; i++)
        x[i] = PICK(x[i], x[i + 2], 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29) +
               PICK(x[i], x[i + 2], 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
    return PICK(x[0], x[1], 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30) +
           PICK(x[0], x[1], 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31);
}

typedef lanes loose_lanes __attribute__((aligned(4)));
typedef halves loose_halves __attribute__((aligned(2)));

static inline __attribute__((always_inline)) lanes entry(const int half, const void *x, int64_t i) {
    return half ? widened(((const loose_halves *)x)[i]) : (lanes)((const loose_lanes *)x)[i];
}

/* A query reads `count` columns; the keys and values of a column are `parts` vectors. */
static inline __attribute__((always_inline)) void read_columns(const int half, const int parts, int64_t count,
                                                               const float *query, float scaling, const void *keys,
                                                               const void *values, lanes *score, float *read) {
    lanes q[MOST_PARTS], most = (lanes){0} - INFINITY, total = {0};
    for (int j = 0; j < parts; j++) q[j] = ((const loose_lanes *)query)[j] * scaling;
    for (int64_t c = 0; c < count; c += LANES) {
        const int here = count - c < LANES ? count - c : LANES;
        lanes part[LANES] = {0};
        for (int i = 0; i < here; i++)
            for (int j = 0; j < parts; j++) part[i] += q[j] * entry(half, keys, (c + i) * parts + j);
        lanes made = sums(part);
        for (int i = here; i < LANES; i++) ((float *)&made)[i] = -INFINITY;
        most = larger(made, most);
        score[c / LANES] = made;
    }
    float largest = -INFINITY;
    for (int i = 0; i < LANES; i++) largest = fmaxf(largest, ((float *)&most)[i]);
    for (int64_t c = 0; c < panels(count); c++) total += score[c] = exponential(score[c] - largest);
    const float scale = 1 / sum(total), *weight = (const float *)score;
    for (int first = 0; first < parts; first += 2) { /* two vectors of four columns at once: as long as an addition takes */
        const int both = first + 1 < parts;
        lanes left[4] = {0}, right[4] = {0};
        for (int64_t c = 0; c < count; c += 4)
            for (int i = 0; i < 4 && c + i < count; i++) {
                left[i] += weight[c + i] * entry(half, values, (c + i) * parts + first);
                if (both) right[i] += weight[c + i] * entry(half, values, (c + i) * parts + first + 1);
            }
        ((loose_lanes *)read)[first] = ((left[0] + left[1]) + (left[2] + left[3])) * scale;
        if (both) ((loose_lanes *)read)[first + 1] = ((right[0] + right[1]) + (right[2] + right[3])) * scale;
    }
}

/* The queries of key-value head g of row r; writes the row's new column. qkv (H + 2 G, K) is of the row. */
static void attend(const Model *model, const Step *step, int64_t layer, int64_t r, int64_t g, int64_t start, float *qkv,
                   lanes *score, float *read) {
    const Block *block = model->blocks + layer;
    const int64_t H = model->heads, G = model->key_heads, K = model->dim, count = step->columns - start;
    const int64_t at = r * step->cache_row + g * step->cache_head + (step->first + start) * K;
    const int half = model->bfloat16;
    char *keys = (char *)step->keys[layer] + at * (half ? 2 : 4), *values = (char *)step->values[layer] + at * (half ? 2 : 4);
    const float *cosine = step->cosines + step->positions[r] * K, *sine = step->sines + step->positions[r] * K;
    float *key = qkv + (H + g) * K;
    if (block->k_norm) rms_norm(K, model->epsilon, key, block->k_norm, key);
    turn(K, cosine, sine, key);
    for (int64_t i = 0; i < K; i++) {
        store(keys, (count - 1) * K + i, half, key[i]);
        store(values, (count - 1) * K + i, half, qkv[(H + G + g) * K + i]);
    }
    for (int64_t h = g * (H / G); h < (g + 1) * (H / G); h++) {
        float *query = qkv + h * K, *to = read + h * K;
        if (block->q_norm) rms_norm(K, model->epsilon, query, block->q_norm, query);
        turn(K, cosine, sine, query);
#define READ(parts)                                                                                                    \
    half ? read_columns(1, parts, count, query, model->scaling, keys, values, score, to)                               \
         : read_columns(0, parts, count, query, model->scaling, keys, values, score, to)
        switch (K / LANES) {
        case 2: READ(2); break;
        case 4: READ(4); break;
        case 8: READ(8); break;
        default: READ(K / LANES);
        }
    }
}

/* gate = silu(gate) * up */
static void activate(int64_t count, lanes *gate, const lanes *up) {
    for (int64_t i = 0; i < count; i++) {
        const masks negative = gate[i] < 0.0f;
        const lanes size = (lanes)((masks)gate[i] & 0x7FFFFFFF), small = exponential(-size);
        const lanes above = (lanes)(((masks)small & negative) | ((masks)((lanes){0} + 1.0f) & ~negative));
        gate[i] *= above / (1.0f + small) * up[i];
    }
}

/* Returns 1 if there is no memory, 2 for a position without angles, 3 for a token or position that cannot be. */
int decoder_step(const Model *model, const Step *step, float *logits) {
    const int64_t R = step->rows, D = model->width, H = model->heads, G = model->key_heads, K = model->dim;
    const int64_t F = model->inner, V = model->vocabulary, qkv_row = (H + 2 * G) * K;
    const int64_t wide = F > H * K ? F : H * K, widest = wide > D ? wide : D;
    const double weights = model->count * (D * (double)(qkv_row + H * K + 3 * F)) + D * (double)V;
    const double products = R * (weights + model->count * 2.0 * H * K * step->columns);
    for (int64_t r = 0; r < R; r++) {
        if (step->tokens[r] < 0 || step->tokens[r] >= V || step->positions[r] < 0) return 3;
        if (step->positions[r] >= step->angles) return 2;
    }
    const int processors = products < WORTH_SHARING ? 1 : step->processors;
    const int64_t scores = panels(step->columns);
    lanes *memory = room(R * (2 * panels(D) + panels(qkv_row) + panels(H * K) + 2 * panels(F) + panels(widest) + scores));
    int64_t *starts = malloc(R * sizeof(int64_t));
    int failed = !memory || !starts;
    if (failed) goto end;
    float *h = (float *)memory, *x = h + R * padded(D), *qkv = x + R * padded(D), *read = qkv + R * qkv_row;
    float *gate = read + R * H * K, *up = gate + R * padded(F);
    halves *rounded = (halves *)(up + R * padded(F));
    lanes *score = (lanes *)rounded + R * panels(widest);
    void *x_of_lattice = model->bfloat16 ? (void *)rounded : (void *)read;
    memset(memory, 0, 2 * R * padded(D) * sizeof(float));
    for (int64_t r = 0; r < R; r++) {
        const int64_t *own = step->mask ? step->mask + r * step->mask_row : 0;
        for (starts[r] = 0; own && starts[r] < step->columns - 1 && !own[starts[r]];) starts[r]++;
        copy(D, model->embeddings, step->tokens[r] * D, model->bfloat16, h + r * padded(D));
    }
    for (int64_t layer = 0; layer < model->count && !failed; layer++) {
        const Block *block = model->blocks + layer;
        norm_rows(model, R, h, block->before, x);
        const float *in = factors(model, R, D, x, rounded);
        product(model, R, D, qkv_row, in, block->qkv, block->qkv_bias, qkv, qkv_row, 0, processors);
#pragma omp parallel for num_threads(processors) if (processors > 1)
        for (int64_t r = 0; r < R; r++)
            for (int64_t g = 0; g < G; g++)
                attend(model, step, layer, r, g, starts[r], qkv + r * qkv_row, score + r * scores, read + r * H * K);
        if (step->lattice && step->readers[layer]) {
            for (int64_t i = 0; i < R * H * K && model->bfloat16; i++) store(x_of_lattice, i, 1, read[i]);
            failed = model->lattice_step(step->readers[layer], step->lattice, step->entries[layer], x_of_lattice, x_of_lattice);
            for (int64_t i = 0; i < R * H * K && model->bfloat16; i++) read[i] = load(x_of_lattice, i, 1);
        }
        in = factors(model, R, H * K, read, rounded);
        product(model, R, H * K, D, in, block->o, block->o_bias, h, padded(D), 1, processors);
        norm_rows(model, R, h, block->after, x);
        in = factors(model, R, D, x, rounded);
        product(model, R, D, padded(F), in, block->gate, block->gate_bias, gate, padded(F), 0, processors);
        product(model, R, D, padded(F), in, block->up, block->up_bias, up, padded(F), 0, processors);
        activate(R * panels(F), (lanes *)gate, (const lanes *)up);
        in = factors(model, R, F, gate, rounded);
        product(model, R, F, D, in, block->down, block->down_bias, h, padded(D), 1, processors);
    }
    norm_rows(model, R, h, model->norm, x);
    product(model, R, D, V, factors(model, R, D, x, rounded), model->head, model->head_bias, logits, V, 0, processors);
end:
    free(memory);
    free(starts);
    return failed;
}
