// Elementary fp32 functions as branch-free code that the compiler vectorizes; each is accurate to a few ulp.
// Source: S. Moshier, Cephes (exp, log); the fits of expm1 and erf are our own.
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline, unused))

INLINE float float_from_bits(uint32_t bits) { float value; memcpy(&value, &bits, 4); return value; }
INLINE uint32_t bits_from_float(float value) { uint32_t bits; memcpy(&bits, &value, 4); return bits; }
INLINE double double_from_bits(uint64_t bits) { double value; memcpy(&value, &bits, 8); return value; }
INLINE uint64_t bits_from_double(double value) { uint64_t bits; memcpy(&bits, &value, 8); return bits; }

// A sum with this is rounded to a whole number: its lowest bits hold that number plus twice the exponent bias.
#define ROUNDER (12582912.0f + 254.0f)

// mantissa * 2^(sum - ROUNDER) in two factors, so that results down to the smallest denormal are right
INLINE float scale_by_power(float mantissa, float sum) {
  uint32_t bits = bits_from_float(sum), half = bits >> 1;
  return mantissa * float_from_bits(half << 23) * float_from_bits((bits - half) << 23);
}

// e^r - 1 - r for |r| <= ln(2) / 2, divided by r^2
INLINE float exp_polynomial(float r) {
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  return p * r + 5.0000001201e-1f;
}

INLINE float tn_expf(float x) {
  float clamped = x > 89.0f ? 89.0f : x;
  clamped = x < -104.0f ? 0.0f : clamped;  // no denormal: a processor takes a hundred times as long for those
  float sum = clamped * 1.44269504088896341f + ROUNDER, n = sum - ROUNDER;
  float r = clamped - n * 0.693359375f;
  r = r - n * -2.12194440e-4f;
  float result = scale_by_power(exp_polynomial(r) * r * r + r + 1.0f, sum);
  return x < -104.0f ? 0.0f : result;  // NaN if x is
}

INLINE float tn_exp2f(float x) {
  float clamped = x > 129.0f ? 129.0f : x;
  clamped = x < -151.0f ? 0.0f : clamped;
  float sum = clamped + ROUNDER, n = sum - ROUNDER;
  float r = (clamped - n) * 0.693147180559945309f;
  float result = scale_by_power(exp_polynomial(r) * r * r + r + 1.0f, sum);
  return x < -151.0f ? 0.0f : result;  // NaN if x is
}

// x = m 2^e with sqrt(1/2) <= m < sqrt(2); returns log(m) and the exponent
INLINE float log_parts(float x, float *exponent) {
  int tiny = x < 1.17549435e-38f;
  uint32_t bits = bits_from_float(tiny ? x * 8388608.0f : x);
  int32_t e = (int32_t)(bits >> 23) - 126 - (tiny ? 23 : 0);
  float m = float_from_bits((bits & 0x7fffffu) | 0x3f000000u);
  int low = m < 0.707106781186547524f;
  e = low ? e - 1 : e;
  float f = low ? m + m - 1.0f : m - 1.0f;
  float z = f * f, p = 7.0376836292e-2f;
  p = p * f - 1.1514610310e-1f;
  p = p * f + 1.1676998740e-1f;
  p = p * f - 1.2420140846e-1f;
  p = p * f + 1.4249322787e-1f;
  p = p * f - 1.6668057665e-1f;
  p = p * f + 2.0000714765e-1f;
  p = p * f - 2.4999993993e-1f;
  p = p * f + 3.3333331174e-1f;
  *exponent = (float)e;
  return f + (p * f * z - 0.5f * z);
}

INLINE float log_special(float x, float result) {
  result = x == 0.0f ? -INFINITY : result;
  result = x < 0.0f ? NAN : result;
  return x != x || x == INFINITY ? x : result;
}

INLINE float tn_logf(float x) {
  float e, log_m = log_parts(x, &e);
  return log_special(x, log_m + -2.12194440e-4f * e + 0.693359375f * e);
}

INLINE float tn_log2f(float x) {
  float e, log_m = log_parts(x, &e);
  return log_special(x, log_m * 1.44269504088896341f + e);
}

// e^x - 1 for -87 < x <= 0, as exact near 0 as elsewhere; the polynomial is a minimax fit of (e^r - 1 - r) / r^2
INLINE float expm1_within_range(float x) {
  float sum = x * 1.44269504088896341f + ROUNDER, n = sum - ROUNDER;
  float r = x - n * 0.693359375f;
  r = r - n * -2.12194440e-4f;
  float p = 1.388252144e-3f;
  p = p * r + 8.366520581e-3f;
  p = p * r + 4.166719986e-2f;
  p = p * r + 1.666654362e-1f;
  p = p * r + 4.999999815e-1f;
  float power = float_from_bits((bits_from_float(sum) - 127u) << 23);
  return (p * (r * r) + r) * power + (power - 1.0f);
}

INLINE float tn_tanhf(float x) {
  float a = __builtin_fabsf(x);
  a = a > 10.0f ? 10.0f : a;  // NaN if x is
  float e = expm1_within_range(-2.0f * a);
  return __builtin_copysignf(e / (e + 2.0f), x);
}

// 1 - e^-(a + a g(a)) for a = |x|, where g is a minimax fit of -log(erfc(a)) / a - 1
INLINE float tn_erff(float x) {
  float a = __builtin_fabsf(x);
  a = a > 4.0f ? 4.0f : a;  // NaN if x is
  float g = -9.256267378e-6f;
  g = g * a + 1.176412905e-4f;
  g = g * a - 6.328369218e-4f;
  g = g * a + 1.667027580e-3f;
  g = g * a - 1.603961841e-4f;
  g = g * a - 1.915306384e-2f;
  g = g * a + 1.027778305e-1f;
  g = g * a + 6.366193820e-1f;
  g = g * a + 1.283791716e-1f;
  return __builtin_copysignf(expm1_within_range(-(g * a + a)), x);
}

INLINE float tn_sigmoidf(float x) { return 1.0f / (1.0f + tn_expf(-x)); }
INLINE float tn_rsqrtf(float x) { return 1.0f / __builtin_sqrtf(x); }
INLINE double tn_rsqrt(double x) { return 1.0 / __builtin_sqrt(x); }

// maxnum / minnum ignore NaN, maximum / minimum propagate it
#define DEFINE_MINMAX(SUFFIX, TYPE)                                                                        \
  INLINE TYPE maxnum##SUFFIX(TYPE a, TYPE b) { TYPE m = a > b ? a : b; return b != b ? a : m; }            \
  INLINE TYPE minnum##SUFFIX(TYPE a, TYPE b) { TYPE m = a < b ? a : b; return b != b ? a : m; }            \
  INLINE TYPE maximum##SUFFIX(TYPE a, TYPE b) { TYPE m = a > b ? a : b; return a != a ? a : m; }           \
  INLINE TYPE minimum##SUFFIX(TYPE a, TYPE b) { TYPE m = a < b ? a : b; return a != a ? a : m; }
DEFINE_MINMAX(_f32, float)
DEFINE_MINMAX(_f64, double)

// for `#pragma omp simd reduction(maxnum_f32 : total)`; NaN is neutral, so an empty lane does not change the result
#pragma omp declare reduction(maxnum_f32:float : omp_out = maxnum_f32(omp_out, omp_in)) initializer(omp_priv = NAN)
#pragma omp declare reduction(minnum_f32:float : omp_out = minnum_f32(omp_out, omp_in)) initializer(omp_priv = NAN)
#pragma omp declare reduction(maxnum_f64:double : omp_out = maxnum_f64(omp_out, omp_in)) initializer(omp_priv = NAN)
#pragma omp declare reduction(minnum_f64:double : omp_out = minnum_f64(omp_out, omp_in)) initializer(omp_priv = NAN)
