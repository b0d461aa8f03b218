// Where products go: they are added to an accumulator in fp32, but the last products of a queue can be stored as the
// kernel's result, from registers.
#pragma once
#include "vectors.h"

// Stores c[0..rows)[0..columns) as the target's elements from (row, column) on.
static __attribute__((noinline)) void store_rows(const struct product_target *target, int64_t row, int rows,
                                                 int64_t column, int columns, const float *c, int64_t c_stride) {
  for (int i = 0; i < rows; i++, c += c_stride) {
    int64_t place = (row + i) * target->stride + column;
    for (int first = 0; first < columns; first += BLOCK) {
      float line[BLOCK] __attribute__((aligned(64))) = {0};
      uint16_t halves[BLOCK];
      int count = (int)least(BLOCK, columns - first);
      memcpy(line, c + first, sizeof(float) * (size_t)count);
      for (int j = 0; j < count && target->bias; j++) line[j] += target->bias[column + first + j];
      for (int j = 0; j < BLOCK; j++) line[j] = line[j] <= target->floor ? target->floor : line[j];
      if (target->kind == ELEMENT_F32) {
        memcpy((float *)target->out + place + first, line, sizeof(float) * (size_t)count);
        continue;
      }
      if (target->kind == ELEMENT_BF16) round_block_bf16(halves, line);
      else round_block_f16(halves, line);
      memcpy((uint16_t *)target->out + place + first, halves, sizeof(uint16_t) * (size_t)count);
    }
  }
}

#if defined(__AVX512BF16__)
// Stores the tile as bf16, unless an element is denormal, which the conversion would take for 0: then returns 0.
INLINE int store_tile_bf16(int rows, int vectors, uint16_t *out, int64_t stride, int last, vector (*sum)[WIDE]) {
  __mmask16 denormal = 0;
#pragma GCC unroll 16
  for (int i = 0; i < rows; i++) {
#pragma GCC unroll 8
    for (int j = 0; j < vectors; j++) denormal |= _mm512_fpclass_ps_mask((__m512)sum[i][j], 0x20);
  }
  if (denormal) return 0;
#pragma GCC unroll 16
  for (int i = 0; i < rows; i++) {
#pragma GCC unroll 8
    for (int j = 0; j < vectors - 1; j++)
      _mm256_storeu_si256((void *)(out + i * stride + j * LANES), (__m256i)_mm512_cvtneps_pbh((__m512)sum[i][j]));
  }
  uint16_t *end = out + (vectors - 1) * LANES;
  if (last == LANES) {
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++)
      _mm256_storeu_si256((void *)(end + i * stride), (__m256i)_mm512_cvtneps_pbh((__m512)sum[i][vectors - 1]));
    return 1;
  }
#pragma GCC unroll 16
  for (int i = 0; i < rows; i++) {
    __m256i halves = (__m256i)_mm512_cvtneps_pbh((__m512)sum[i][vectors - 1]);
    _mm256_mask_storeu_epi16(end + i * stride, (__mmask16)((1u << last) - 1), halves);
  }
  return 1;
}
#endif

// Stores the tile as fp32. `last`: columns of the last vector
INLINE int store_tile_f32(int rows, int vectors, float *out, int64_t stride, int last, vector (*sum)[WIDE]) {
  float *end = out + (vectors - 1) * LANES;
#if !defined(__AVX512F__)
  if (last < LANES) return 0;
#endif
#pragma GCC unroll 16
  for (int i = 0; i < rows; i++) {
#pragma GCC unroll 8
    for (int j = 0; j < vectors - 1; j++) *(vector *)(out + i * stride + j * LANES) = sum[i][j];
  }
  if (last == LANES) {
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++) *(vector *)(end + i * stride) = sum[i][vectors - 1];
    return 1;
  }
#if defined(__AVX512F__)
#pragma GCC unroll 16
  for (int i = 0; i < rows; i++)
    _mm512_mask_storeu_ps(end + i * stride, (__mmask16)((1u << last) - 1), (__m512)sum[i][vectors - 1]);
#endif
  return 1;
}

// x <= floor ? floor : x, which leaves NaN
INLINE vector at_least(vector x, float floor) {
  vector smallest = (vector){0} + floor;
#if defined(__AVX512F__)
  __mmask16 below = _mm512_cmp_ps_mask((__m512)x, (__m512)smallest, _CMP_LE_OQ);
  return (vector)_mm512_mask_mov_ps((__m512)x, below, (__m512)smallest);
#else
  lane_numbers below = x <= smallest;
  return (vector)((below & (lane_numbers)smallest) | (~below & (lane_numbers)x));
#endif
}

// Adds the bias to a tile of sums from `column` on and applies the floor.
INLINE void finish_tile(int rows, int vectors, const struct product_target *target, int64_t column, vector (*sum)[WIDE]) {
  if (target->bias) {
#pragma GCC unroll 8
    for (int j = 0; j < vectors; j++) {
      vector bias = *(const vector *)(target->bias + column + j * LANES);
#pragma GCC unroll 16
      for (int i = 0; i < rows; i++) sum[i][j] += bias;
    }
  }
  if (target->floor == -__builtin_inff()) return;
#pragma GCC unroll 16
  for (int i = 0; i < rows; i++) {
#pragma GCC unroll 8
    for (int j = 0; j < vectors; j++) sum[i][j] = at_least(sum[i][j], target->floor);
  }
}

// Stores a tile of sums as the target's elements from (row, column) on.
INLINE void store_tile(int rows, int vectors, const struct product_target *target, int64_t row, int64_t column,
                       vector (*sum)[WIDE]) {
  int columns = (int)least(vectors * LANES, target->columns - column);
  int64_t stride = target->stride, place = row * stride + column;
  int last = columns - (vectors - 1) * LANES, stored = 0;
  finish_tile(rows, vectors, target, column, sum);
  if (target->kind == ELEMENT_F32) stored = store_tile_f32(rows, vectors, (float *)target->out + place, stride, last, sum);
#if defined(__AVX512BF16__)
  if (target->kind == ELEMENT_BF16)
    stored = store_tile_bf16(rows, vectors, (uint16_t *)target->out + place, stride, last, sum);
#endif
  if (stored) return;
  struct product_target rest = *target;  // what is left to do
  rest.bias = NULL;
  rest.floor = -__builtin_inff();
  float tile[TILE_ROWS * PANEL] __attribute__((aligned(64)));
#pragma GCC unroll 16
  for (int i = 0; i < rows; i++) {
#pragma GCC unroll 8
    for (int j = 0; j < vectors; j++) *(vector *)(tile + (i * vectors + j) * LANES) = sum[i][j];
  }
  store_rows(&rest, row, rows, column, columns, tile, vectors * LANES);
}
