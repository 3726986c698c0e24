/* Row-wise kernels of expert banks, float32 and bfloat16, built on request by native.py.
 *
 * Each does in one pass over memory what takes two to six in separate tensor operations. bfloat16
 * is widened to float32, computed, and rounded to nearest even. No libraries: threads are those of
 * whichever OpenMP runtime the process has loaded already.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

#define PARALLEL_FROM 32768 /* elements below which a second thread costs more than it saves */

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
static inline float load_bf16(uint16_t half) { return as_float((uint32_t)half << 16); }
/* A NaN made from bfloat16 has its low half clear, so that rounding cannot carry out of it. */
static inline uint16_t store_bf16(float value) {
  uint32_t word = as_word(value);
  return (uint16_t)((word + 0x7fffu + ((word >> 16) & 1u)) >> 16);
}

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

/* swiglu: h = silu(gate) * up of a = [gate, up], rows of 2 f. */
/* swiglu_back: the same h, and da of dh. */
/* weigh_back: g = w[row] * grad[rows[row]], dw[row] = <grad[rows[row]], y[row]>. */
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
  }

DEFINE(float, f32)
DEFINE(uint16_t, bf16)
