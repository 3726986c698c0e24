/* Kernels of expert banks, float32 and bfloat16, built on request by native.py.
 *
 * Row-wise ones do in one pass over memory what takes two to six in separate tensor operations, and
 * one runs a whole bank, reading every weight once a span of rows. bfloat16 is widened to float32,
 * computed, and rounded to nearest even. No libraries: threads are those of whichever OpenMP
 * runtime the process has loaded already.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

#define PARALLEL_FROM 32768 /* elements below which a second thread costs more than it saves */
#define SHARED_FROM 400000  /* the same for multiply-adds */

static inline float as_float(uint32_t word) {
  float value;
  memcpy(&value, &word, sizeof value);
  return value;
}

static inline uint32_t as_word(float value) {
  uint32_t word;
  memcpy(&word, &value, sizeof word);
  return word;
}

static inline float load_f32(float value) { return value; }
static inline float store_f32(float value) { return value; }
static inline float round_f32(float value) { return value; }
static inline float load_bf16(uint16_t half) { return as_float((uint32_t)half << 16); }
/* A NaN made from bfloat16 has its low half clear, so that rounding cannot carry out of it. */
static inline uint16_t store_bf16(float value) {
  uint32_t word = as_word(value);
  return (uint16_t)((word + 0x7fffu + ((word >> 16) & 1u)) >> 16);
}

static inline float round_bf16(float value) { return load_bf16(store_bf16(value)); }

/* 1 / (1 + 2^t), t = -x log2(e) = n + f: 2^f by its series to the sixth power (relative error
 * below 1e-7 on [-1/2, 1/2]), 2^n by the exponent bits. */
static inline float sigmoid(float x) {
  float t = x * -1.44269504f;
  t = t < 128.0f ? t : 128.0f; /* 2^128 is infinity in the exponent bits: sigmoid 0 */
  t = t > -120.0f ? t : -120.0f;
  float n = t + 12582912.0f; /* 1.5 * 2^23: rounds, and leaves n in the low bits */
  uint32_t shift = as_word(n) << 23;
  float f = t - (n - 12582912.0f);
  float p = 1.54035304e-4f;
  p = p * f + 1.33335581e-3f;
  p = p * f + 9.61812911e-3f;
  p = p * f + 5.55041087e-2f;
  p = p * f + 2.40226507e-1f;
  p = p * f + 6.93147181e-1f;
  p = p * f + 1.0f;
  return 1.0f / (1.0f + as_float(as_word(p) + shift));
}

static void gated(const float *gate, const float *up, float *h, int64_t n) {
#pragma omp simd
  for (int64_t j = 0; j < n; j++) h[j] = gate[j] * sigmoid(gate[j]) * up[j];
}

/* Rows lie side by side in panels, x[k][lanes], so that a weight is one number for all lanes and
 * need not be packed. A tile is some rows of weights times a panel of one or two vectors; its sums,
 * up to twelve, stay in registers: enough of them to hide their latency. */
#ifndef LANES /* of a vector: 8 or 16 */
#ifdef __AVX512F__
#define LANES 16
#else
#define LANES 8
#endif
#endif
_Static_assert(16 % LANES == 0, "callers reserve room for rows padded to a multiple of 16");
#define GROUP 12  /* rows of weights that one thread takes at a time */
#define SCANT 4   /* rows up to which a dot product a row is faster */
#define CHUNK 256 /* numbers of each that are widened at a time */
typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

/* out[i][lanes] (+)= sum over j of w[i][j] x[j][lanes] */
#define TILE(V, W)                                                                              \
  static void tile_##V##_##W(const float *w, int64_t stride, const float *x, float *out,        \
                             int64_t n, int adds) {                                             \
    vec sums[W][V];                                                                             \
    for (int i = 0; i < W; i++)                                                                 \
      for (int v = 0; v < V; v++)                                                               \
        sums[i][v] = (vec){0.0f};                                                               \
    for (int64_t j = 0; j < n; j++) {                                                           \
      vec in[V];                                                                                \
      for (int v = 0; v < V; v++) in[v] = *(const vec *)(x + LANES * (V * j + v));              \
      _Pragma("GCC unroll 12")                                                                  \
      for (int i = 0; i < W; i++) {                                                             \
        float weight = w[stride * i + j];                                                       \
        for (int v = 0; v < V; v++) sums[i][v] += weight * in[v];                               \
      }                                                                                         \
    }                                                                                           \
    for (int i = 0; i < W; i++)                                                                 \
      for (int v = 0; v < V; v++) {                                                             \
        vec *to = (vec *)(out + LANES * (V * i + v));                                           \
        if (adds) sums[i][v] += *to;                                                            \
        *to = sums[i][v];                                                                       \
      }                                                                                         \
  }
TILE(1, 12) TILE(1, 4) TILE(1, 1) TILE(2, 6) TILE(2, 4) TILE(2, 1)

static void tiles(const float *w, int64_t stride, const float *x, float *out, int64_t g, int64_t n,
                  int adds, int vectors) {
  int64_t width = vectors * LANES, i = 0;
#define TILES(V, W) \
  for (; i + W <= g; i += W) tile_##V##_##W(w + stride * i, stride, x, out + width * i, n, adds)
  if (vectors == 2) {
    TILES(2, 6);
    TILES(2, 4);
    TILES(2, 1);
  } else {
    TILES(1, 12);
    TILES(1, 4);
    TILES(1, 1);
  }
#undef TILES
}

/* Panels of a block hold two vectors of rows each, the last perhaps one. */
static inline int64_t padded(int64_t rows) { return (rows + LANES - 1) / LANES * LANES; }
static inline int vectors_at(int64_t row, int64_t rows) { return rows - row > LANES ? 2 : 1; }

/* Sort pairs by expert: the pair of every sorted row, and the end of every expert's rows. */
static int64_t sort_pairs(const int64_t *idx, int64_t pairs, int64_t experts, int64_t most,
                          int64_t *pair_of, int64_t *end_of) {
  int64_t before = 0;
  for (int64_t e = 0; e < experts; e++) end_of[e] = 0;
  for (int64_t p = 0; p < pairs; p++) {
    if (idx[p] < -1 || idx[p] >= experts) return 2;
    if (idx[p] >= 0 && ++end_of[idx[p]] > most) return 1;
  }
  for (int64_t e = 0; e < experts; e++) { /* where each begins; filling moves it to the end */
    int64_t count = end_of[e];
    end_of[e] = before;
    before += count;
  }
  for (int64_t p = 0; p < pairs; p++)
    if (idx[p] >= 0) pair_of[end_of[idx[p]]++] = p;
  return 0;
}

/* Weights as float32, n of each row: where they lie, or widened into a buffer. */
static const int64_t at_once_f32 = 512, at_once_bf16 = CHUNK; /* short sums round less */
static inline const float *wide_f32(const float *w, int64_t k, int64_t g, int64_t n, float *buffer,
                                    int64_t *stride) {
  (void)g, (void)n, (void)buffer;
  *stride = k;
  return w;
}
static inline const float *wide_bf16(const uint16_t *w, int64_t k, int64_t g, int64_t n,
                                     float *buffer, int64_t *stride) {
  for (int64_t i = 0; i < g; i++)
    for (int64_t j = 0; j < n; j++) buffer[CHUNK * i + j] = load_bf16(w[k * i + j]);
  *stride = CHUNK;
  return buffer;
}

/* swiglu: h = silu(gate) * up of a = [gate, up], rows of 2 f. */
/* swiglu_back: the same h, and da of dh. */
/* weigh_back: g = w[row] * grad[rows[row]], dw[row] = <grad[rows[row]], y[row]>. */
/* dots: out[r] = w x[r], rounded to T: a weight is read once for four rows. */
/* product: the same of a block's panels, x[k][lanes] to out[g][lanes]. */
/* scant, panels: sums[n] += w[n][k] * an expert's output for some of its pairs, by dots and by
 * product. */
/* swiglu_bank: y[n] = sum of w[n][k] second[e] (silu * up of first[e] x[n]), e = idx[n][k] or -1.
 * An expert's rows are taken span at a time, which stay in cache from one product to the next.
 * order holds a number a pair and one an expert. work holds, for each of span rows padded to
 * sixteen, f and the greater of d + 2 f and d_out; and y's numbers where y is not float32.
 * Returns 1 where an expert has more than most rows, 2 for an e that is not there: then y is not
 * written. No size is zero. */
#define DEFINE(T, NAME)                                                                         \
  void swiglu_##NAME(const T *a, T *h, int64_t rows, int64_t f) {                               \
    _Pragma("omp parallel for if (rows * f > PARALLEL_FROM)")                                   \
    for (int64_t i = 0; i < rows; i++) {                                                        \
      const T *gate = a + 2 * f * i, *up = gate + f;                                            \
      T *out = h + f * i;                                                                       \
      _Pragma("omp simd")                                                                       \
      for (int64_t j = 0; j < f; j++) {                                                         \
        float x = load_##NAME(gate[j]);                                                         \
        out[j] = store_##NAME(x * sigmoid(x) * load_##NAME(up[j]));                             \
      }                                                                                         \
    }                                                                                           \
  }                                                                                             \
  void swiglu_back_##NAME(const T *a, const T *dh, T *h, T *da, int64_t rows, int64_t f) {      \
    _Pragma("omp parallel for if (rows * f > PARALLEL_FROM)")                                   \
    for (int64_t i = 0; i < rows; i++) {                                                        \
      const T *gate = a + 2 * f * i, *up = gate + f, *grad = dh + f * i;                        \
      T *out = h + f * i, *d_gate = da + 2 * f * i, *d_up = d_gate + f;                         \
      _Pragma("omp simd")                                                                       \
      for (int64_t j = 0; j < f; j++) {                                                         \
        float x = load_##NAME(gate[j]), u = load_##NAME(up[j]), d = load_##NAME(grad[j]);       \
        float s = sigmoid(x), silu = x * s;                                                     \
        out[j] = store_##NAME(silu * u);                                                        \
        d_up[j] = store_##NAME(d * silu);                                                       \
        d_gate[j] = store_##NAME(d * u * (s + silu * (1.0f - s)));                              \
      }                                                                                         \
    }                                                                                           \
  }                                                                                             \
  void weigh_back_##NAME(const T *grad, const T *y, const int64_t *rows_of, const float *w,     \
                         T *g, float *dw, int64_t rows, int64_t d) {                            \
    _Pragma("omp parallel for if (rows * d > PARALLEL_FROM)")                                   \
    for (int64_t i = 0; i < rows; i++) {                                                        \
      const T *from = grad + d * rows_of[i], *out = y + d * i;                                  \
      T *to = g + d * i;                                                                        \
      float weight = w[i], sum = 0.0f;                                                          \
      _Pragma("omp simd reduction(+ : sum)")                                                    \
      for (int64_t j = 0; j < d; j++) {                                                         \
        float value = load_##NAME(from[j]);                                                     \
        sum += value * load_##NAME(out[j]);                                                     \
        to[j] = store_##NAME(weight * value);                                                   \
      }                                                                                         \
      dw[i] = sum;                                                                              \
    }                                                                                           \
  }                                                                                             \
  static void dots_##NAME(const T *w, const float *x, float *out, int64_t rows, int64_t g,      \
                             int64_t d) {                                                       \
    _Pragma("omp parallel for if (rows * g * d > SHARED_FROM)")                                 \
    for (int64_t i = 0; i < g; i++) {                                                           \
      const T *row = w + d * i;                                                                 \
      int64_t r = 0;                                                                            \
      for (; r + 4 <= rows; r += 4) {                                                           \
        const float *p = x + d * r, *q = p + d, *s = q + d, *t = s + d;                         \
        float a = 0.0f, b = 0.0f, c = 0.0f, e = 0.0f;                                           \
        _Pragma("omp simd reduction(+ : a, b, c, e)")                                           \
        for (int64_t j = 0; j < d; j++) {                                                       \
          float weight = load_##NAME(row[j]);                                                   \
          a += weight * p[j], b += weight * q[j], c += weight * s[j], e += weight * t[j];       \
        }                                                                                       \
        out[g * r + i] = round_##NAME(a), out[g * (r + 1) + i] = round_##NAME(b);               \
        out[g * (r + 2) + i] = round_##NAME(c), out[g * (r + 3) + i] = round_##NAME(e);         \
      }                                                                                         \
      for (; r < rows; r++) {                                                                   \
        const float *p = x + d * r;                                                             \
        float a = 0.0f;                                                                         \
        _Pragma("omp simd reduction(+ : a)")                                                    \
        for (int64_t j = 0; j < d; j++) a += load_##NAME(row[j]) * p[j];                        \
        out[g * r + i] = round_##NAME(a);                                                       \
      }                                                                                         \
    }                                                                                           \
  }                                                                                             \
  static void product_##NAME(const T *w, const float *x, float *out, int64_t rows, int64_t g,   \
                             int64_t k) {                                                       \
    _Pragma("omp parallel for if (rows * g * k > SHARED_FROM)")                                 \
    for (int64_t i = 0; i < g; i += GROUP) {                                                    \
      float buffer[GROUP * CHUNK];                                                              \
      int64_t many = g - i < GROUP ? g - i : GROUP, stride;                                     \
      for (int64_t j = 0, n; j < k; j += n) {                                                   \
        n = k - j < at_once_##NAME ? k - j : at_once_##NAME;                                    \
        const float *weights = wide_##NAME(w + k * i + j, k, many, n, buffer, &stride);         \
        for (int64_t r = 0, width; r < rows; r += width) {                                      \
          int vectors = vectors_at(r, rows);                                                    \
          width = vectors * LANES;                                                              \
          tiles(weights, stride, x + k * r + width * j, out + g * r + width * i, many, n, j > 0,\
                vectors);                                                                       \
        }                                                                                       \
      }                                                                                         \
      for (int64_t r = 0, width; r < rows; r += width) {                                        \
        width = vectors_at(r, rows) * LANES;                                                    \
        float *to = out + g * r + width * i;                                                    \
        for (int64_t j = 0; j < width * many; j++) to[j] = round_##NAME(to[j]);                 \
      }                                                                                         \
    }                                                                                           \
  }                                                                                             \
  static void scant_##NAME(const T *x, const T *w, const int64_t *pair_of, const T *first,      \
                           const T *second, float *work, float *sums, int64_t rows,             \
                           int64_t places, int64_t d, int64_t f, int64_t d_out) {               \
    float *h = work, *a = h + rows * f, *in = a + rows * 2 * f, *y = a;                         \
    for (int64_t r = 0; r < rows; r++) {                                                        \
      const T *from = x + d * (pair_of[r] / places);                                            \
      for (int64_t j = 0; j < d; j++) in[d * r + j] = load_##NAME(from[j]);                     \
    }                                                                                           \
    dots_##NAME(first, in, a, rows, 2 * f, d);                                                  \
    for (int64_t r = 0; r < rows; r++) gated(a + 2 * f * r, a + 2 * f * r + f, h + f * r, f);   \
    for (int64_t j = 0; j < rows * f; j++) h[j] = round_##NAME(h[j]);                           \
    dots_##NAME(second, h, y, rows, d_out, f);                                                  \
    for (int64_t r = 0; r < rows; r++) {                                                        \
      float *sum = sums + d_out * (pair_of[r] / places), weight = load_##NAME(w[pair_of[r]]);   \
      for (int64_t j = 0; j < d_out; j++) sum[j] += weight * y[d_out * r + j];                  \
    }                                                                                           \
  }                                                                                             \
  static void panels_##NAME(const T *x, const T *w, const int64_t *pair_of, const T *first,     \
                            const T *second, float *work, float *sums, int64_t rows,            \
                            int64_t places, int64_t d, int64_t f, int64_t d_out) {              \
    int64_t wide = padded(rows);                                                                \
    float *h = work, *a = h + wide * f, *in = a + wide * 2 * f, *y = a;                         \
    for (int64_t r = 0, width; r < rows; r += width) {                                          \
      width = vectors_at(r, rows) * LANES;                                                      \
      for (int64_t lane = 0; lane < width; lane++) {                                            \
        const T *from = x + d * (pair_of[r + lane < rows ? r + lane : r] / places);             \
        for (int64_t j = 0; j < d; j++) in[d * r + width * j + lane] = load_##NAME(from[j]);    \
      }                                                                                         \
    }                                                                                           \
    product_##NAME(first, in, a, rows, 2 * f, d);                                               \
    for (int64_t r = 0, width; r < rows; r += width) {                                          \
      width = vectors_at(r, rows) * LANES;                                                      \
      gated(a + 2 * f * r, a + 2 * f * r + f * width, h + f * r, f * width);                    \
    }                                                                                           \
    for (int64_t j = 0; j < wide * f; j++) h[j] = round_##NAME(h[j]);                           \
    product_##NAME(second, h, y, rows, d_out, f);                                               \
    for (int64_t r = 0, width; r < rows; r += width) {                                          \
      width = vectors_at(r, rows) * LANES;                                                      \
      for (int64_t lane = 0; lane < width && r + lane < rows; lane++) {                         \
        int64_t pair = pair_of[r + lane];                                                       \
        float *sum = sums + d_out * (pair / places), weight = load_##NAME(w[pair]);             \
        for (int64_t j = 0; j < d_out; j++) sum[j] += weight * y[d_out * r + width * j + lane]; \
      }                                                                                         \
    }                                                                                           \
  }                                                                                             \
  int64_t swiglu_bank_##NAME(const T *x, const int64_t *idx, const T *w, const T *first,        \
                            const T *second, int64_t *order, float *work, T *y, int64_t tokens, \
                            int64_t places, int64_t experts, int64_t d, int64_t f, int64_t d_out,\
                            int64_t most, int64_t span) {                                       \
    int64_t *pair_of = order, *end_of = order + tokens * places;                                \
    int64_t fault = sort_pairs(idx, tokens * places, experts, most, pair_of, end_of);           \
    if (fault) return fault;                                                                    \
    int is_float = sizeof(T) == sizeof(float);                                                  \
    float *sums = is_float ? (float *)(void *)y : work;                                         \
    float *buffers = is_float ? work : work + tokens * d_out;                                   \
    for (int64_t j = 0; j < tokens * d_out; j++) sums[j] = 0.0f;                                \
    for (int64_t e = 0, start = 0, rows; e < experts; e++) {                                    \
      for (; start < end_of[e]; start += rows) {                                                \
        rows = end_of[e] - start < span ? end_of[e] - start : span;                             \
        (rows > SCANT ? panels_##NAME : scant_##NAME)(                                          \
            x, w, pair_of + start, first + e * 2 * f * d, second + e * d_out * f, buffers, sums,\
            rows, places, d, f, d_out);                                                         \
      }                                                                                         \
    }                                                                                           \
    if (!is_float)                                                                              \
      for (int64_t j = 0; j < tokens * d_out; j++) y[j] = store_##NAME(sums[j]);                \
    return 0;                                                                                   \
  }

DEFINE(float, f32)
DEFINE(uint16_t, bf16)
