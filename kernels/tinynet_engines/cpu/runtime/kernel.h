// Included by every generated kernel: conversions of small floats, integer division that cannot trap, and the table of
// services (dot products, printing, failing) of the run-time library.
#pragma once
#include "directed.h"
#include "elementary.h"
#include "services.h"
#include <time.h>

// bf16, fp16 and fp8 values live in fp32 variables that hold representable numbers only; memory holds the bits.
INLINE float load_bf16(uint16_t bits) { return float_from_bits((uint32_t)bits << 16); }
INLINE uint16_t store_bf16(float value) { return (uint16_t)(bits_from_float(value) >> 16); }
// The shift up is the last step, so that compilers drop it where `store_bf16` follows. NaN becomes one NaN, as in PyTorch.
INLINE float round_bf16(float value) {
  uint32_t bits = bits_from_float(value), rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return float_from_bits((value != value ? 0x7fc0u : rounded) << 16);
}

INLINE float load_f16(uint16_t bits) {
  uint32_t magnitude = (uint32_t)(bits & 0x7fffu) << 13;
  uint32_t value = bits_from_float(float_from_bits(magnitude) * 0x1p112f);
  value = magnitude >= 0x0f800000u ? magnitude | 0x7f800000u : value;
  return float_from_bits(value | (uint32_t)(bits & 0x8000u) << 16);
}
INLINE uint16_t store_f16(float value) {
  uint32_t bits = bits_from_float(value), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
  uint32_t denormal = bits_from_float(float_from_bits(magnitude) + 0.5f) - 0x3f000000u;
  uint32_t normal = (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
  uint32_t half = magnitude < 0x38800000u ? denormal : normal;
  half = magnitude >= 0x477ff000u ? 0x7c00u : half;
  half = magnitude > 0x7f800000u ? 0x7e00u : half;
  return (uint16_t)(sign | half);
}
INLINE float round_f16(float value) { return load_f16(store_f16(value)); }

#include "halves.h"

// What loads read in place of a row that a mask leaves out.
static const char row_of_zeros[4096] __attribute__((aligned(64)));

// 16 bits from an even address, for vector loads at arbitrary places: gathers exist for 32 bits only. The aligned word
// around the value is in the same page.
INLINE uint16_t gathered_half(const uint16_t *place) {
  typedef uint32_t __attribute__((may_alias)) word;
  uintptr_t address = (uintptr_t)place;
  return (uint16_t)(*(const word *)(address & ~(uintptr_t)3) >> 8 * (address & 2));
}

// fp8: rounded to nearest even by counting in units in the last place. Too large values become infinity or, in formats
// without it, the largest number (E4M3FN) or NaN (the formats with NUZ), as in PyTorch.
INLINE uint8_t small_float(float value, int mantissa_bits, int bias, uint32_t overflow, uint32_t largest, uint32_t nan) {
  uint32_t bits = bits_from_float(value), sign = bits >> 24 & 0x80u, magnitude = bits & 0x7fffffffu;
  int32_t exponent = (int32_t)(magnitude >> 23) - 127 + bias;
  int32_t place = exponent > 0 ? exponent : 1;
  float units = float_from_bits(magnitude) * float_from_bits((uint32_t)(127 + bias - place + mantissa_bits) << 23);
  uint32_t count = (uint32_t)(units < 65536.0f ? __builtin_rintf(units) : 65536.0f);
  uint32_t code = count + ((uint32_t)(place - 1) << mantissa_bits);
  code = magnitude >= 0x7f800000u || code > largest ? overflow : code;
  return (uint8_t)(sign | (magnitude > 0x7f800000u ? nan : code));
}
INLINE uint8_t store_f8E5M2(float value) { return small_float(value, 2, 15, 0x7cu, 0x7bu, 0x7fu); }
INLINE float load_f8E5M2(uint8_t bits) { return load_f16((uint16_t)(bits << 8)); }
INLINE float round_f8E5M2(float value) { return load_f8E5M2(store_f8E5M2(value)); }
INLINE uint8_t store_f8E4M3FN(float value) { return small_float(value, 3, 7, 0x7eu, 0x7eu, 0x7fu); }
INLINE float load_f8E4M3FN(uint8_t bits) {
  float value = float_from_bits((uint32_t)(bits & 0x7fu) << 20) * 0x1p120f;
  value = (bits & 0x7fu) == 0x7fu ? NAN : value;
  return __builtin_copysignf(value, bits & 0x80u ? -1.0f : 1.0f);
}
INLINE float round_f8E4M3FN(float value) { return load_f8E4M3FN(store_f8E4M3FN(value)); }

// without infinity and negative zero, whose code is the one NaN
INLINE uint8_t store_unsigned_zero(float value, int mantissa_bits, int bias) {
  uint8_t code = small_float(value, mantissa_bits, bias, 0x80u, 0x7fu, 0x80u);
  return (code & 0x7fu) == 0 && code != 0 ? (__builtin_fabsf(value) < 1.0f ? 0 : 0x80u) : code;
}
INLINE float load_unsigned_zero(uint8_t bits, int mantissa_bits, float unit) {
  float value = float_from_bits((uint32_t)(bits & 0x7fu) << (23 - mantissa_bits)) * unit;
  return bits == 0x80u ? NAN : bits & 0x80u ? -value : value;
}
INLINE uint8_t store_f8E5M2FNUZ(float value) { return store_unsigned_zero(value, 2, 16); }
INLINE float load_f8E5M2FNUZ(uint8_t bits) { return load_unsigned_zero(bits, 2, 0x1p111f); }
INLINE float round_f8E5M2FNUZ(float value) { return load_f8E5M2FNUZ(store_f8E5M2FNUZ(value)); }
INLINE uint8_t store_f8E4M3FNUZ(float value) { return store_unsigned_zero(value, 3, 8); }
INLINE float load_f8E4M3FNUZ(uint8_t bits) { return load_unsigned_zero(bits, 3, 0x1p119f); }
INLINE float round_f8E4M3FNUZ(float value) { return load_f8E4M3FNUZ(store_f8E4M3FNUZ(value)); }

// microscaling formats: numbers of four bits, and powers of two
INLINE float load_f4E2M1(uint8_t bits) {
  float value = float_from_bits((uint32_t)(bits & 7u) << 22) * 0x1p126f;
  return bits & 8u ? -value : value;
}
INLINE float load_f8E8M0(uint8_t bits) { return bits == 0xffu ? NAN : float_from_bits((uint32_t)bits << 23); }

// rounded towards zero: the code before that of a rounded value which is too large
#define DEFINE_TRUNCATED(KIND, CODE)                                                                       \
  INLINE float truncated_##KIND(float value) {                                                             \
    float nearest = round_##KIND(value);                                                                   \
    CODE code = store_##KIND(nearest);                                                                     \
    return __builtin_fabsf(nearest) > __builtin_fabsf(value) ? load_##KIND((CODE)(code - 1)) : nearest;    \
  }
DEFINE_TRUNCATED(bf16, uint16_t)
DEFINE_TRUNCATED(f16, uint16_t)
DEFINE_TRUNCATED(f8E5M2, uint8_t)

// Integer division that cannot trap: a divisor of 0 counts as 1. 32-bit quotients go through doubles, where they are
// exact and vectorize.
INLINE int32_t divide_i32(int32_t a, int32_t b) { return (int32_t)(int64_t)((double)a / (double)(b == 0 ? 1 : b)); }
INLINE uint32_t divide_u32(uint32_t a, uint32_t b) { return (uint32_t)(int64_t)((double)a / (double)(b == 0 ? 1 : b)); }
INLINE int64_t divide_i64(int64_t a, int64_t b) {
  if (((((uint64_t)a + 0x80000000u) | ((uint64_t)b + 0x80000000u)) >> 32) == 0) return divide_i32((int32_t)a, (int32_t)b);
  return b == -1 ? (int64_t)(0 - (uint64_t)a) : a / (b == 0 ? 1 : b);
}
INLINE uint64_t divide_u64(uint64_t a, uint64_t b) { return a / (b == 0 ? 1 : b); }
INLINE int32_t remainder_i32(int32_t a, int32_t b) { return (int32_t)((uint32_t)a - (uint32_t)divide_i32(a, b) * (uint32_t)b); }
INLINE uint32_t remainder_u32(uint32_t a, uint32_t b) { return a - divide_u32(a, b) * b; }
INLINE int64_t remainder_i64(int64_t a, int64_t b) { return (int64_t)((uint64_t)a - (uint64_t)divide_i64(a, b) * (uint64_t)b); }
INLINE uint64_t remainder_u64(uint64_t a, uint64_t b) { return a - divide_u64(a, b) * b; }

// Division of many numbers by one: adding 1/2 keeps every quotient further from whole numbers than the product's error.
INLINE double inverse_i32(int32_t b) { return 1.0 / (double)(b == 0 ? 1 : b); }
INLINE int32_t divide_by_i32(int32_t a, double inverse) {
  return (int32_t)(int64_t)(((double)a + (a < 0 ? -0.5 : 0.5)) * inverse);
}

INLINE int32_t mulhi_i32(int32_t a, int32_t b) { return (int32_t)(((int64_t)a * b) >> 32); }
INLINE uint32_t mulhi_u32(uint32_t a, uint32_t b) { return (uint32_t)(((uint64_t)a * b) >> 32); }
INLINE int64_t mulhi_i64(int64_t a, int64_t b) { return (int64_t)(((__int128)a * b) >> 64); }
INLINE uint64_t mulhi_u64(uint64_t a, uint64_t b) { return (uint64_t)(((unsigned __int128)a * b) >> 64); }

// Conversions of floats to integers saturate, and NaN becomes 0, as on a GPU; both are undefined in plain C.
INLINE int32_t float_to_i32(float x) {
  int32_t value = (int32_t)(x >= -2147483648.0f && x < 2147483648.0f ? x : 0.0f);
  return x >= 2147483648.0f ? INT32_MAX : x < -2147483648.0f ? INT32_MIN : value;
}
INLINE int64_t float_to_i64(double x) {
  int64_t value = (int64_t)(x >= -0x1p63 && x < 0x1p63 ? x : 0.0);
  return x >= 0x1p63 ? INT64_MAX : x < -0x1p63 ? INT64_MIN : value;
}
INLINE uint32_t float_to_u32(double x) { return x >= 4294967296.0 ? UINT32_MAX : x > 0.0 ? (uint32_t)(int64_t)x : 0; }
INLINE uint64_t float_to_u64(double x) { return x >= 0x1p64 ? UINT64_MAX : x > 0.0 ? (uint64_t)x : 0; }

INLINE int64_t later(int64_t nanoseconds) {  // by the clock that waits are limited by
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  int64_t sum, start = now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
  return __builtin_add_overflow(start, nanoseconds, &sum) || nanoseconds < 0 ? INT64_MAX : sum;
}

INLINE int overlap(const void *a, int64_t a_bytes, const void *b, int64_t b_bytes) {
  return (const char *)a < (const char *)b + b_bytes && (const char *)b < (const char *)a + a_bytes;
}
INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t clip_count(int64_t count, int64_t limit) { return count < 0 ? 0 : count > limit ? limit : count; }
