/*
 * What a training step does beside its matrix products, where torch passes over memory several
 * times: id tables and the last layer. Compiled on the user's machine by step_kernels.py.
 *
 * No sum depends on the number of threads: each is taken by one thread, or over blocks of a fixed
 * number of rows whose sums are added in order.
 *
 * Letters: B batch, F sparse features, E width of an id embedding, C dense columns, W width.
 */
#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef uint16_t bfloat16;

enum { BLOCK = 128, AHEAD_ROWS = 4, AHEAD_GRADIENTS = 16, AHEAD_UPDATES = 8 };

static inline float widen(bfloat16 value) {
    uint32_t bits = (uint32_t)value << 16;
    float wide;
    memcpy(&wide, &bits, sizeof wide);
    return wide;
}

/* To the nearest, ties to even, as torch rounds. */
static inline bfloat16 narrow(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    bfloat16 rounded = (bfloat16)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
    return (bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0 : rounded;
}

/*
 * out (B, F * E + C): each feature's row and the dense columns side by side.
 * Returns the first place of ids, (B, F), that lies beyond its table; B * F for none.
 */
int64_t look_up(int64_t B, int64_t F, int64_t E, int64_t C, const int32_t *ids,
                const int64_t *first, const int64_t *size, const float *weight,
                const float *dense, bfloat16 *restrict out) {
    int64_t beyond = B * F;
#pragma omp parallel for schedule(static) reduction(min : beyond)
    for (int64_t b = 0; b < B; b++) {
        const int32_t *own = ids + b * F;
        bfloat16 *to = out + b * (F * E + C);
        if (b + AHEAD_ROWS < B)
            for (int64_t f = 0; f < F; f++)
                __builtin_prefetch(weight + (first[f] + own[AHEAD_ROWS * F + f]) * E);
        for (int64_t f = 0; f < F; f++) {
            if (own[f] < 0 || own[f] >= size[f]) {
                if (b * F + f < beyond) beyond = b * F + f;
                continue;
            }
            const float *row = weight + (first[f] + own[f]) * E;
            for (int64_t e = 0; e < E; e++) to[f * E + e] = narrow(row[e]);
        }
        for (int64_t c = 0; c < C; c++) to[F * E + c] = narrow(dense[b * C + c]);
    }
    return beyond;
}

/* What one thread needs for one feature: an open hash of its ids, and their summed gradients. */
typedef struct {
    int32_t *id, *place, *row;
    float *sum;
} Scratch;

static inline __attribute__((always_inline)) void learn_feature(
    int64_t B, int64_t F, int64_t E, int64_t W, int64_t f, int bits, int low, const int32_t *ids,
    const void *gradient, float *table, float *accumulator, float rate, float epsilon, Scratch s) {
    const bfloat16 *narrow_gradient = gradient;
    const float *wide_gradient = gradient;
    uint32_t mask = (1u << bits) - 1;
    memset(s.id, 0xff, (size_t)4 << bits);
    int64_t rows = 0;
    for (int64_t b = 0; b < B; b++) {
        int32_t id = ids[b * F + f];
        int64_t from = b * W + f * E;
        int64_t later = (b + AHEAD_GRADIENTS < B ? AHEAD_GRADIENTS : 0) * W;
        uint32_t slot = ((uint32_t)id * 2654435761u) >> (32 - bits);
        if (low)
            __builtin_prefetch(narrow_gradient + from + later);
        else
            __builtin_prefetch(wide_gradient + from + later);
        while (s.id[slot] != id && s.id[slot] != -1) slot = (slot + 1) & mask;
        if (s.id[slot] == -1) {
            s.id[slot] = id;
            s.place[slot] = (int32_t)rows;
            s.row[rows] = id;
            memset(s.sum + rows * E, 0, (size_t)E * sizeof(float));
            rows++;
        }
        float *sum = s.sum + (int64_t)s.place[slot] * E;
        if (low)
            for (int64_t e = 0; e < E; e++) sum[e] += widen(narrow_gradient[from + e]);
        else
            for (int64_t e = 0; e < E; e++) sum[e] += wide_gradient[from + e];
    }
    for (int64_t r = 0; r < rows; r++) {
        if (r + AHEAD_UPDATES < rows) {
            __builtin_prefetch(table + (int64_t)s.row[r + AHEAD_UPDATES] * E, 1);
            __builtin_prefetch(accumulator + s.row[r + AHEAD_UPDATES], 1);
        }
        const float *sum = s.sum + r * E;
        float squares = 0;
        for (int64_t e = 0; e < E; e++) squares += sum[e] * sum[e];
        float seen = accumulator[s.row[r]] + squares / (float)E;
        accumulator[s.row[r]] = seen;
        float by = rate / (sqrtf(seen) + epsilon);
        float *row = table + (int64_t)s.row[r] * E;
        for (int64_t e = 0; e < E; e++) row[e] -= by * sum[e];
    }
}

/*
 * Row-wise Adagrad of all rows named in ids (B, F), which lie within their tables. The gradient is
 * (B, W), its first F * E columns those of the rows; bfloat16 where low, else float.
 * Returns 0, or -1 where memory did not suffice and nothing was changed.
 */
int learn(int64_t B, int64_t F, int64_t E, int64_t W, int low, const int32_t *ids,
          const int64_t *first, const void *gradient, float *weight, float *accumulator,
          float rate, float epsilon) {
    int bits = 6, threads = omp_get_max_threads();
    while (((int64_t)1 << bits) < 2 * B) bits++;
    size_t slots = (size_t)1 << bits;
    size_t own = 4 * (2 * slots + (size_t)B + (size_t)(B * E));
    char *memory = malloc(own * (size_t)threads);
    if (memory == NULL) return -1;
#pragma omp parallel num_threads(threads)
    {
        int32_t *mine = (int32_t *)(memory + own * (size_t)omp_get_thread_num());
        Scratch s = {mine, mine + slots, mine + 2 * slots, (float *)(mine + 2 * slots + B)};
#pragma omp for schedule(dynamic, 1)
        for (int64_t f = 0; f < F; f++) {
            float *table = weight + first[f] * E, *sums = accumulator + first[f];
            if (low)
                learn_feature(B, F, E, W, f, bits, 1, ids, gradient, table, sums, rate, epsilon, s);
            else
                learn_feature(B, F, E, W, f, bits, 0, ids, gradient, table, sums, rate, epsilon, s);
        }
    }
    free(memory);
    return 0;
}

/* out (B,): seen (B, W) times weight (W,). */
void logits(int64_t B, int64_t W, const bfloat16 *seen, const float *weight, float *restrict out) {
#pragma omp parallel for schedule(static)
    for (int64_t b = 0; b < B; b++) {
        const bfloat16 *row = seen + b * W;
        float lane[32] = {0}, sum = 0;
        int64_t w = 0;
        for (; w + 32 <= W; w += 32)
            for (int l = 0; l < 32; l++) lane[l] += widen(row[w + l]) * weight[w + l];
        for (; w < W; w++) sum += widen(row[w]) * weight[w];
        for (int l = 0; l < 32; l++) sum += lane[l];
        out[b] = sum;
    }
}

/*
 * Of upstream (B,): d_seen (B, W) and d_weight (W,).
 * Returns 0, or -1 where memory did not suffice.
 */
int logit_gradients(int64_t B, int64_t W, const bfloat16 *seen, const float *weight,
                    const float *upstream, bfloat16 *restrict d_seen, float *restrict d_weight) {
    int64_t blocks = (B + BLOCK - 1) / BLOCK;
    float *sums = calloc((size_t)(blocks * W), sizeof(float));
    if (sums == NULL) return -1;
#pragma omp parallel for schedule(static)
    for (int64_t block = 0; block < blocks; block++) {
        float *restrict sum = sums + block * W;
        int64_t end = (block + 1) * BLOCK < B ? (block + 1) * BLOCK : B;
        for (int64_t b = block * BLOCK; b < end; b++) {
            const bfloat16 *row = seen + b * W;
            bfloat16 *to = d_seen + b * W;
            float up = upstream[b];
            for (int64_t w = 0; w < W; w++) {
                sum[w] += up * widen(row[w]);
                to[w] = narrow(up * weight[w]);
            }
        }
    }
    memset(d_weight, 0, (size_t)W * sizeof(float));
    for (int64_t block = 0; block < blocks; block++)
        for (int64_t w = 0; w < W; w++) d_weight[w] += sums[block * W + w];
    free(sums);
    return 0;
}
