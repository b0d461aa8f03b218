// Dot products of tiles. B is packed into panels of PANEL columns or, if A has few rows, read in place; A is read in
// place where possible. Products wait in a queue; a register-blocked micro-kernel, written with the compiler's vector
// types, computes them together. One source serves AVX-512, AVX2 and plain C: only the lane count, the tile height, the
// transpose and the bf16 dot differ.
#pragma once
#include "targets.h"

// -------------------------------------------------------------------------------------------------- micro-kernels

// How the micro-kernel reads A and B. B is packed in panels except in the last forms, which read its rows in place.
enum form {
  A_ROW_MAJOR, A_COLUMN_MAJOR, A_ROW_TABLE, A_COLUMN_TABLE, A_STRIPS, A_ROW_MAJOR_B_ROWS, A_COLUMN_MAJOR_B_ROWS,
  A_COLUMN_TABLE_B_ROWS
};

// Packing B costs as much as the products of a few rows: with columns of A it is worth it from this many rows on.
enum { MOST_ROWS_OF_UNPACKED_B = 128 };
// Packing A's columns strip by strip costs as much as the products of some columns: it is worth it from this many on.
enum { LEAST_COLUMNS_OF_STRIPS = 256 };
// The processor does not foresee rows of B that are pages apart: they are prefetched, this many ahead.
enum { ROWS_AHEAD = 8 };

// One A operand as the micro-kernel reads it, in elements (fp32) or in pairs of bf16.
struct a_view {
  const uint32_t *data;
  int64_t stride;
  const uint32_t *const *table;
};

INLINE vector multiply_add(vector sum, uint32_t a, vector b, int pairs) {
#if defined(BF16_PAIRS)
  if (pairs) return (vector)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32((int)a), (__m512bh)b);
#endif
  return sum + float_from_bits(a) * b;
}

INLINE void fetch(const void *line) { __builtin_prefetch(line, 0, 2); }  // into the second-level cache

// c[rows][columns] += sum over parts of a[rows][depth] b[depth][columns], columns = vectors * LANES of panel `panel`;
// with a target, the sums are stored there instead
INLINE void micro_kernel(int rows, int vectors, enum form form, int pairs, const struct product_queue *queue,
                         int64_t row, int64_t panel, float *c, int64_t c_stride) {
  vector sum[TILE_ROWS][WIDE];
#pragma GCC unroll 16
  for (int i = 0; i < rows; i++) {
#pragma GCC unroll 2
    for (int j = 0; j < vectors; j++) sum[i][j] = queue->fresh ? (vector){0} : *(const vector *)(c + i * c_stride + j * LANES);
  }
  int a_is_strided = form == A_ROW_MAJOR || form == A_ROW_MAJOR_B_ROWS, a_has_rows = a_is_strided || form == A_ROW_TABLE;
  int b_has_rows = form == A_ROW_MAJOR_B_ROWS || form == A_COLUMN_MAJOR_B_ROWS || form == A_COLUMN_TABLE_B_ROWS;
  int fetches = (form == A_COLUMN_MAJOR || form == A_COLUMN_MAJOR_B_ROWS) && !pairs;  // columns of pairs are copies
  for (const struct product_part *part = queue->parts, *end = part + queue->count; part < end; part++) {
    const uint32_t *data = part->a, *const *table = part->a_table, *line[TILE_ROWS];
    const char *third[(TILE_ROWS + 2) / 3];  // every third row of A: those between are one and two strides after it
    int64_t stride = part->a_stride, depth = part->depth - (pairs ? part->odd : 0);
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++)
      line[i] = (form == A_ROW_TABLE ? table[row + i] : a_has_rows ? data + (row + i) * stride : data) + depth;
    int64_t step = stride * (int64_t)sizeof *data;
#pragma GCC unroll 4
    for (int i = 0; i < rows; i += 3) third[i / 3] = (const char *)(data + (row + i) * stride);
    const uint32_t *column = data + (form == A_STRIPS ? row * depth : row);
    const float *b = part->b + panel * part->panel_depth * PANEL;
    // A long sum reads its operands from memory: the first reader of a line prefetches the one that the next queue
    // will read in its place. Rows of A are excluded, for which no register is left.
    int64_t a_ahead = panel == 0 ? queue->a_ahead : 0, b_ahead = row == 0 ? queue->b_ahead : 0;
    // Instead, the next strip's part of each row is prefetched here: it is too short for the processor to recognize.
    if (form == A_ROW_MAJOR && panel == 0 && part->a_in_place && row + rows < queue->rows) {
      for (int64_t at = 0; at < depth; at += 16) {
        const uint32_t *next = data + (row + rows) * stride + at;
#pragma GCC unroll 16
        for (int i = 0; i < rows; i++) fetch(next + i * stride);
      }
    }
    for (int64_t k = -depth; k != 0; k++, b += PANEL) {  // from the ends of lines: the counter is the index
      vector right[2];
      if (b_has_rows) b = (const float *)part->b_table[depth + k] + panel * PANEL;
#pragma GCC unroll 2
      for (int j = 0; j < vectors; j++) right[j] = *(const vector *)(b + j * LANES);
      if (form == A_COLUMN_TABLE || form == A_COLUMN_TABLE_B_ROWS) column = table[depth + k] + row;
      if (fetches && a_ahead) fetch(column + a_ahead);
      if (form == A_ROW_MAJOR_B_ROWS && row == 0) {
        const float *later = (const float *)part->b_table[least(depth + k + ROWS_AHEAD, depth - 1)] + panel * PANEL;
#pragma GCC unroll 2
        for (int j = 0; j < vectors; j++) __builtin_prefetch(later + j * LANES);
      }
      if (form == A_COLUMN_MAJOR_B_ROWS && b_ahead) {
#pragma GCC unroll 2
        for (int j = 0; j < vectors; j++) fetch(b + b_ahead + j * LANES);
      }
#pragma GCC unroll 16
      for (int i = 0; i < rows; i++) {
        uint32_t left;
        memcpy(&left, a_is_strided ? third[i / 3] + i % 3 * step : (const char *)(a_has_rows ? line[i] + k : column + i), 4);
#pragma GCC unroll 2
        for (int j = 0; j < vectors; j++) sum[i][j] = multiply_add(sum[i][j], left, right[j], pairs);
      }
#pragma GCC unroll 4
      for (int i = 0; i < rows && a_is_strided; i += 3) {
        third[i / 3] += 4;
        __asm__("" : "+r"(third[i / 3]));  // else the compiler computes a pointer per row, more than it has registers
      }
      if (form == A_COLUMN_MAJOR || form == A_COLUMN_MAJOR_B_ROWS) column += stride;
      if (form == A_STRIPS) column += rows;
    }
    if (!pairs || !a_has_rows || !part->odd) continue;
    vector right[2];  // the last pair is half of one: what follows in a row of A is not read
#pragma GCC unroll 2
    for (int j = 0; j < vectors; j++) right[j] = *(const vector *)(b + j * LANES);
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++) {
      uint16_t left;
      memcpy(&left, line[i], 2);
#pragma GCC unroll 2
      for (int j = 0; j < vectors; j++) sum[i][j] = multiply_add(sum[i][j], left, right[j], pairs);
    }
  }
  if (queue->target) {
    store_tile(rows, vectors, queue->target, row, panel * PANEL, sum);
    return;
  }
#pragma GCC unroll 16
  for (int i = 0; i < rows; i++) {
#pragma GCC unroll 2
    for (int j = 0; j < vectors; j++) *(vector *)(c + i * c_stride + j * LANES) = sum[i][j];
  }
}

// The same for all of a few rows, whose products take as long as memory does: WIDE vectors of each row of B, in place.
INLINE void wide_kernel(int rows, enum form form, const struct product_queue *queue, int64_t column) {
  vector sum[WIDE_ROWS][WIDE];
  float *c = queue->c + column;
#pragma GCC unroll 4
  for (int i = 0; i < rows; i++) {
#pragma GCC unroll 8
    for (int j = 0; j < WIDE; j++) sum[i][j] = queue->fresh ? (vector){0} : *(const vector *)(c + i * queue->c_stride + j * LANES);
  }
  for (const struct product_part *part = queue->parts, *end = part + queue->count; part < end; part++) {
    int64_t row_stride = form == A_ROW_MAJOR_B_ROWS ? part->a_stride : 1;
    int64_t column_stride = form == A_ROW_MAJOR_B_ROWS ? 1 : part->a_stride;
    const float *a = part->a;
    for (int64_t k = 0; k < part->depth; k++, a += column_stride) {
      const float *b = (const float *)part->b_table[k] + column;
      const float *later = (const float *)part->b_table[least(k + ROWS_AHEAD, part->depth - 1)] + column;
      vector left[WIDE_ROWS];
#pragma GCC unroll 4
      for (int i = 0; i < rows; i++) left[i] = (vector){0} + a[i * row_stride];
#pragma GCC unroll 8
      for (int j = 0; j < WIDE; j++) {
        vector right = *(const vector *)(b + j * LANES);
        __builtin_prefetch(later + j * LANES);
#pragma GCC unroll 4
        for (int i = 0; i < rows; i++) sum[i][j] += left[i] * right;
      }
    }
  }
  if (queue->target) {
    store_tile(rows, WIDE, queue->target, 0, column, sum);
    return;
  }
#pragma GCC unroll 4
  for (int i = 0; i < rows; i++) {
#pragma GCC unroll 8
    for (int j = 0; j < WIDE; j++) *(vector *)(c + i * queue->c_stride + j * LANES) = sum[i][j];
  }
}

// As many columns of c, of up to WIDE_ROWS rows, as the wide kernel takes; returns the first of the rest.
INLINE int wide_columns(enum form form, const struct product_queue *queue) {
  int columns = (int)least(queue->columns, queue->width) / (WIDE * LANES) * (WIDE * LANES);
  for (int column = 0; column < columns; column += WIDE * LANES) {
    if (queue->rows == 3) wide_kernel(3, form, queue, column);
    else if (queue->rows == 2) wide_kernel(2, form, queue, column);
    else wide_kernel(1, form, queue, column);
  }
  return columns;
}

// The strips of rows that the micro-kernel takes, by STRIP(HEIGHT).
#if defined(__AVX512F__)
#define STRIPS() STRIP(TILE_ROWS) STRIP(9) STRIP(8) STRIP(4) STRIP(3) STRIP(2) STRIP(1)  // 9 and 3: taps of three channels
#else
#define STRIPS() STRIP(TILE_ROWS) STRIP(4) STRIP(3) STRIP(2) STRIP(1)
#endif

INLINE void panel_rows(int vectors, enum form form, int pairs, const struct product_queue *queue, int64_t panel,
                       float *c) {
  int row = 0, rows = queue->rows;
  int64_t c_stride = queue->c_stride;
#define STRIP(HEIGHT)                                                                              \
  for (; row + HEIGHT <= rows; row += HEIGHT)                                                      \
    micro_kernel(HEIGHT, vectors, form, pairs, queue, row, panel, c + row * c_stride, c_stride);
  STRIPS()
#undef STRIP
}

// fewer columns than a vector holds: through a copy
INLINE void narrow_rows(int rows, enum form form, int pairs, const struct product_queue *queue, int64_t row, int64_t panel,
                        float *c, int width) {
  float tile[TILE_ROWS * PANEL] __attribute__((aligned(64))) = {0};
  int64_t c_stride = queue->c_stride;
  for (int i = 0; i < rows && !queue->fresh; i++) memcpy(tile + i * PANEL, c + (row + i) * c_stride, sizeof(float) * (size_t)width);
  micro_kernel(rows, 2, form, pairs, queue, row, panel, tile, PANEL);
  for (int i = 0; i < rows; i++) memcpy(c + (row + i) * c_stride, tile + i * PANEL, sizeof(float) * (size_t)width);
}

INLINE void narrow_panel(enum form form, int pairs, const struct product_queue *queue, int64_t panel, float *c, int width) {
  int row = 0, rows = queue->rows;
#define STRIP(HEIGHT) \
  for (; row + HEIGHT <= rows; row += HEIGHT) narrow_rows(HEIGHT, form, pairs, queue, row, panel, c, width);
  STRIPS()
#undef STRIP
}

#define DEFINE_PRODUCT(NAME, FORM, PAIRS)                                                                   \
  static __attribute__((noinline)) void NAME(const struct product_queue *queue) {                             \
    int columns = queue->columns, width = queue->width;                                                       \
    float *c = queue->c;                                                                                      \
    int reads_rows = FORM == A_ROW_MAJOR_B_ROWS || FORM == A_COLUMN_MAJOR_B_ROWS;                             \
    int wide = reads_rows && queue->rows <= WIDE_ROWS ? wide_columns(FORM, queue) : 0;                        \
    for (int n = wide; n < columns; n += PANEL) {                                                             \
      if (width - n >= PANEL && columns - n > LANES) panel_rows(2, FORM, PAIRS, queue, n / PANEL, c + n);    \
      else if (width - n >= LANES && columns - n <= LANES) panel_rows(1, FORM, PAIRS, queue, n / PANEL, c + n); \
      else narrow_panel(FORM, PAIRS, queue, n / PANEL, c + n, width - n);                                    \
    }                                                                                                         \
  }

DEFINE_PRODUCT(product_row_major, A_ROW_MAJOR, 0)
DEFINE_PRODUCT(product_column_major, A_COLUMN_MAJOR, 0)
DEFINE_PRODUCT(product_row_table, A_ROW_TABLE, 0)
DEFINE_PRODUCT(product_column_table, A_COLUMN_TABLE, 0)
DEFINE_PRODUCT(product_strips, A_STRIPS, 0)
DEFINE_PRODUCT(product_row_major_b_rows, A_ROW_MAJOR_B_ROWS, 0)
DEFINE_PRODUCT(product_column_major_b_rows, A_COLUMN_MAJOR_B_ROWS, 0)
DEFINE_PRODUCT(product_column_table_b_rows, A_COLUMN_TABLE_B_ROWS, 0)
#if defined(BF16_PAIRS)
DEFINE_PRODUCT(product_row_major_pairs, A_ROW_MAJOR, 1)
DEFINE_PRODUCT(product_column_major_pairs, A_COLUMN_MAJOR, 1)
DEFINE_PRODUCT(product_row_table_pairs, A_ROW_TABLE, 1)
enum { HAS_PAIRS = 1 };
#else
#define product_row_major_pairs product_row_major
#define product_column_major_pairs product_column_major
#define product_row_table_pairs product_row_table
enum { HAS_PAIRS = 0 };
#endif

// by form, then by whether elements are pairs of bf16, which the last four forms never are
static void (*const products[][2])(const struct product_queue *) = {
    [A_ROW_MAJOR] = {product_row_major, product_row_major_pairs},
    [A_COLUMN_MAJOR] = {product_column_major, product_column_major_pairs},
    [A_ROW_TABLE] = {product_row_table, product_row_table_pairs},
    [A_COLUMN_TABLE] = {product_column_table, NULL},
    [A_STRIPS] = {product_strips, NULL},
    [A_ROW_MAJOR_B_ROWS] = {product_row_major_b_rows, NULL},
    [A_COLUMN_MAJOR_B_ROWS] = {product_column_major_b_rows, NULL},
    [A_COLUMN_TABLE_B_ROWS] = {product_column_table_b_rows, NULL},
};

// ------------------------------------------------------------------------------------------------------- operands

INLINE int element_bytes(int kind) { return kind == ELEMENT_F32 ? 4 : 2; }

INLINE float read_element(const void *line, int64_t index, int kind) {
  if (kind == ELEMENT_F32) return ((const float *)line)[index];
  uint16_t bits = ((const uint16_t *)line)[index];
  return kind == ELEMENT_BF16 ? load_bf16(bits) : load_f16(bits);
}

// out[0..PANEL) as fp32 from contiguous elements
INLINE void read_elements(const void *restrict line, int64_t start, int kind, float *restrict out) {
  uint32_t wide[PANEL];
  const uint16_t *restrict source = (const uint16_t *)line + start;
  for (int i = 0; i < PANEL; i++) wide[i] = source[i];
  for (int i = 0; i < PANEL; i++) out[i] = kind == ELEMENT_BF16 ? load_bf16((uint16_t)wide[i]) : load_f16((uint16_t)wide[i]);
}

// Start of line `index` along `axis`, or NULL for a line of zeros. `*step` is the distance between a line's elements.
INLINE const char *operand_line(const struct operand *x, int axis, int index, int kind, int64_t *step) {
  if (x->rows) {
    *step = 1;
    return x->rows[index];
  }
  *step = x->stride[1 - axis];
  return (const char *)x->data + index * x->stride[axis] * element_bytes(kind);
}

// The axis along which an operand's lines are contiguous, or -1.
INLINE int contiguous_axis(const struct operand *x) {
  if (x->rows) return 1 - x->table_axis;
  return x->stride[1] == 1 ? 1 : x->stride[0] == 1 ? 0 : -1;
}

static const char zeros[4096] __attribute__((aligned(64)));

// out[0..count) as fp32 from bf16
INLINE void widen_line(const uint16_t *restrict line, int count, float *restrict out) {
#if defined(__AVX512BW__)
  for (int i = 0; i < count; i += 16) {  // short lines, as of a row of taps, are one load and one store
    __mmask16 given = count - i >= 16 ? 0xffff : (__mmask16)((1u << (count - i)) - 1);
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(given, line + i));
    _mm512_mask_storeu_epi32(out + i, given, _mm512_slli_epi32(wide, 16));
  }
#else
#pragma omp simd
  for (int i = 0; i < count; i++) out[i] = load_bf16(line[i]);
#endif
}

// out[index][0..count) as fp32 from line `index` of the operand
INLINE void read_line(const struct operand *x, int axis, int index, int count, int kind, float *out) {
  int64_t step;
  const char *line = operand_line(x, axis, index, kind, &step);
  if (!line || index >= x->valid[axis]) memset(out, 0, sizeof(float) * (size_t)count);
  else if (step == 1 && kind == ELEMENT_BF16) widen_line((const uint16_t *)line, count, out);
  else if (step == 1) {
#pragma omp simd
    for (int i = 0; i < count; i++) out[i] = read_element(line, i, kind);
  } else
    for (int i = 0; i < count; i++) out[i] = read_element(line, i * step, kind);
}

// ------------------------------------------------------------------------------------------------------- transpose

// out[j * out_stride + i] = line[i][j] for i < LANES, j < LANES, in 32-bit units
INLINE void transpose_block(const uint32_t *const *line, int64_t offset, uint32_t *out, int64_t out_stride) {
#if defined(__AVX512F__)
  __m512i r[16], t[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; i++) r[i] = _mm512_loadu_si512(line[i] + offset);
#pragma GCC unroll 8
  for (int i = 0; i < 8; i++) {
    t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
    r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    _mm512_storeu_si512(out + i * out_stride, _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88));
    _mm512_storeu_si512(out + (i + 8) * out_stride, _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd));
    _mm512_storeu_si512(out + (i + 4) * out_stride, _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88));
    _mm512_storeu_si512(out + (i + 12) * out_stride, _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd));
  }
#elif defined(__AVX2__)
  __m256 r[8], t[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; i++) r[i] = _mm256_loadu_ps((const float *)(line[i] + offset));
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    t[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 2; i++) {
    r[4 * i] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0x44);
    r[4 * i + 1] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0xee);
    r[4 * i + 2] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0x44);
    r[4 * i + 3] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0xee);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    _mm256_storeu_ps((float *)(out + i * out_stride), _mm256_permute2f128_ps(r[i], r[i + 4], 0x20));
    _mm256_storeu_ps((float *)(out + (i + 4) * out_stride), _mm256_permute2f128_ps(r[i], r[i + 4], 0x31));
  }
#else
  for (int i = 0; i < LANES; i++)
    for (int j = 0; j < LANES; j++) out[j * out_stride + i] = line[i][offset + j];
#endif
}

// out[j * out_stride + i] = line[i][j] for i < lines <= LANES, j < count; missing lines count as zeros
static void transpose_lines(const uint32_t **line, int lines, int count, uint32_t *out, int64_t out_stride) {
  int j = 0;
  if (lines == LANES)
    for (; j + LANES <= count; j += LANES) transpose_block(line, j, out + j * out_stride, out_stride);
  for (; j < count; j++)
    for (int i = 0; i < LANES; i++) out[j * out_stride + i] = i < lines ? line[i][j] : 0;
}

// ---------------------------------------------------------------------------------------------------------- packing

// Rows k of B side by side: out[panel][k][PANEL], fp32
INLINE void pack_b_rows(const struct operand *b, int depth, int columns, int kind, float *out) {
  for (int k = 0; k < depth; k++) {
    int64_t step;
    const char *line = operand_line(b, 0, k, kind, &step);
    float *panel = out + (int64_t)k * PANEL;
    for (int n = 0; n < columns; n += PANEL, panel += (int64_t)depth * PANEL) {
      int count = (int)least(PANEL, columns - n);
      if (!line) memset(panel, 0, sizeof(float) * PANEL);
      else if (step == 1 && count == PANEL && kind == ELEMENT_F32) memcpy(panel, (const float *)line + n, sizeof(float) * PANEL);
      else if (step == 1 && count == PANEL) read_elements(line, n, kind, panel);
      else
        for (int i = 0; i < PANEL; i++) panel[i] = i < count ? read_element(line, (n + i) * step, kind) : 0.0f;
    }
  }
}

// Columns n of B, contiguous along k, transposed into panels
INLINE void pack_b_columns(const struct operand *b, int depth, int columns, int kind, float *out, float *line_buffer) {
  for (int n = 0; n < columns; n += LANES) {
    const uint32_t *line[LANES];
    int lines = (int)least(LANES, b->valid[1] - n);
    for (int i = 0; i < lines; i++) {
      if (kind == ELEMENT_F32) {
        int64_t step;
        line[i] = (const uint32_t *)operand_line(b, 1, n + i, kind, &step);
        if (line[i]) continue;
      }
      read_line(b, 1, n + i, depth, kind, line_buffer + (int64_t)i * depth);
      line[i] = (const uint32_t *)(line_buffer + (int64_t)i * depth);
    }
    transpose_lines(line, lines, depth, (uint32_t *)out + (int64_t)(n / PANEL) * depth * PANEL + n % PANEL, PANEL);
  }
}

// out[i] = (even[i], odd[i]) as one pair; a NULL line is zeros
INLINE void interleave(const uint16_t *even, const uint16_t *odd, int64_t step, int count, uint32_t *out) {
  int i = 0;
#if defined(BF16_PAIRS)
  if (step == 1 && 2 * (size_t)count <= sizeof zeros) {
    // A padded pixel is a line of zeros too; without this it would go through the slow loop below.
    if (!even) even = (const uint16_t *)zeros;
    if (!odd) odd = (const uint16_t *)zeros;
    for (; i + 16 <= count; i += 16) {
      __m512i low = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)(even + i)));
      __m512i high = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)(odd + i)));
      _mm512_storeu_si512(out + i, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
    }
    __mmask16 rest = (__mmask16)((1u << (count - i)) - 1);
    __m512i low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(rest, even + i));
    __m512i high = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(rest, odd + i));
    _mm512_mask_storeu_epi32(out + i, rest, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
    return;
  }
#endif
  for (; i < count; i++) out[i] = (even ? even[i * step] : 0u) | (odd ? (uint32_t)odd[i * step] : 0u) << 16;
}

// bf16 pairs (k, k + 1): out[panel][k / 2][PANEL]
INLINE void pack_b_pairs(const struct operand *b, int depth, int columns, uint32_t *out, uint32_t *line_buffer) {
  int axis = contiguous_axis(b), pairs = (depth + 1) / 2;
  if (axis == 0) {  // lines are columns n, in which pairs are adjacent
    for (int n = 0; n < columns; n += LANES) {
      const uint32_t *line[LANES];
      int lines = (int)least(LANES, b->valid[1] - n);
      for (int i = 0; i < lines; i++) {
        int64_t step;
        line[i] = (const uint32_t *)operand_line(b, 1, n + i, ELEMENT_BF16, &step);
        if (line[i] && depth % 2 == 0) continue;
        uint32_t *copy = line_buffer + (int64_t)i * pairs;
        memset(copy, 0, 4 * (size_t)pairs);
        if (line[i]) memcpy(copy, line[i], 2 * (size_t)depth);
        line[i] = copy;
      }
      transpose_lines(line, lines, pairs, out + (int64_t)(n / PANEL) * pairs * PANEL + n % PANEL, PANEL);
    }
    return;
  }
  for (int k = 0; k < depth; k += 2) {
    int64_t step = 1;
    const uint16_t *even = (const uint16_t *)operand_line(b, 0, k, ELEMENT_BF16, &step);
    const uint16_t *odd = k + 1 < depth ? (const uint16_t *)operand_line(b, 0, k + 1, ELEMENT_BF16, &step) : 0;
    uint32_t *panel = out + (int64_t)(k / 2) * PANEL;
    for (int n = 0; n < columns; n += PANEL, panel += (int64_t)pairs * PANEL) {
      int count = (int)least(PANEL, columns - n);
      if (count < PANEL) memset(panel + count, 0, 4 * (size_t)(PANEL - count));
      interleave(even ? even + n * step : 0, odd ? odd + n * step : 0, step, count, panel);
    }
  }
}

static int product_depth(const struct dot_product *d) {
  return (int)least(d->k, least(d->a.valid[1], d->b.valid[0]));
}

INLINE void pack_segment(const struct operand *b, int kind, int depth, float *out, float *line_buffer) {
  int columns = b->valid[1], by_column = contiguous_axis(b) == 0;
  if (kind == ELEMENT_BF16 && HAS_PAIRS) pack_b_pairs(b, depth, columns, (uint32_t *)out, (uint32_t *)line_buffer);
#define PACK(KIND)                                                               \
  else if (kind == KIND) {                                                       \
    if (by_column) pack_b_columns(b, depth, columns, KIND, out, line_buffer);   \
    else pack_b_rows(b, depth, columns, KIND, out);                             \
  }
  PACK(ELEMENT_F32) PACK(ELEMENT_BF16) PACK(ELEMENT_F16)
#undef PACK
}

// `line_buffer` holds LANES lines of depth k in fp32
static void pack_b(const struct dot_product *d, int depth, float *out, float *line_buffer) {
  struct operand part = d->b;
  int columns = part.valid[1], packed_depth = d->kind == ELEMENT_BF16 && HAS_PAIRS ? (depth + 1) / 2 : depth;
  int segment = part.segment ? part.segment : columns;
  for (int n = 0; n < columns; n += segment) {  // a segment consists of whole panels
    if (n) part.rows += d->k;
    part.valid[1] = (int)least(segment, columns - n);
    pack_segment(&part, d->kind, depth, out + (int64_t)n * packed_depth, line_buffer);
  }
}

// out[0..count) = line[0..count), and zeros up to `room`
INLINE void copy_halves(const uint16_t *line, int count, int room, uint16_t *restrict out) {
#if defined(__AVX512BW__)
  for (int k = 0; k < room; k += 32) {  // short lines, as of a row of taps, are one load and one store
    __mmask32 given = count - k >= 32 ? ~0u : count > k ? (1u << (count - k)) - 1 : 0u;
    __mmask32 stored = room - k >= 32 ? ~0u : (1u << (room - k)) - 1;
    _mm512_mask_storeu_epi16(out + k, stored, _mm512_maskz_loadu_epi16(given, line + k));
  }
#else
  for (int k = 0; k < room; k++) out[k] = k < count ? line[k] : 0;
#endif
}

// A as pairs of bf16 along k: [m][k / 2] if its lines run along k, else [k / 2][m]
static struct a_view pack_a_pairs(const struct operand *a, int along_k, int depth, uint32_t *out) {
  int rows = a->valid[0], half = (depth + 1) / 2;
  int64_t step = 1;
  if (along_k) {
    for (int m = 0; m < rows; m++) {
      const uint16_t *line = (const uint16_t *)operand_line(a, 0, m, ELEMENT_BF16, &step);
      uint16_t *restrict into = (uint16_t *)(out + (int64_t)m * half);
      if (line && step == 1) {
        copy_halves(line, depth, 2 * half, into);
        continue;
      }
      memset(into, 0, 4 * (size_t)half);
      for (int k = 0; line && k < depth; k++) into[k] = line[k * step];
    }
    return (struct a_view){out, half, 0};
  }
  for (int k = 0; k < depth; k += 2) {
    const uint16_t *even = (const uint16_t *)operand_line(a, 1, k, ELEMENT_BF16, &step);
    const uint16_t *odd = k + 1 < depth ? (const uint16_t *)operand_line(a, 1, k + 1, ELEMENT_BF16, &step) : 0;
    uint32_t *into = out + (int64_t)(k / 2) * rows;
    interleave(even, odd, step, rows, into);
  }
  return (struct a_view){out, rows, 0};
}

// A in fp32: [m][k] if its lines run along k, else [k][m]
static struct a_view pack_a(const struct dot_product *d, int along_k, int depth, float *out) {
  int rows = d->a.valid[0], lines = along_k ? rows : depth, count = along_k ? depth : rows;
#define PACK(KIND)     \
  if (d->kind == KIND) \
    for (int line = 0; line < lines; line++) read_line(&d->a, !along_k, line, count, KIND, out + (int64_t)line * count);
  PACK(ELEMENT_F32) PACK(ELEMENT_BF16) PACK(ELEMENT_F16)
#undef PACK
  return (struct a_view){(const uint32_t *)out, count, 0};
}

// Columns of A in fp32, strip by strip: within one, each column's part follows the one before.
static void pack_a_strips(const struct operand *a, int depth, int rows, float *out) {
  for (int k = 0; k < depth; k++) {
    const float *column = a->rows ? a->rows[k] : (const float *)a->data + k * a->stride[1];
    if (!column) column = (const float *)zeros;
    int row = 0;
#define STRIP(HEIGHT) \
  for (; row + HEIGHT <= rows; row += HEIGHT) memcpy(out + row * depth + k * HEIGHT, column + row, sizeof(float) * HEIGHT);
    STRIPS()
#undef STRIP
  }
}

INLINE char *take(char **memory, int64_t bytes) {
  char *start = *memory;
  *memory += (bytes + 63) & ~(int64_t)63;
  return start;
}

// Row table without NULLs: missing rows point to zeros, which are in `memory` if a row is longer than `zeros`.
static const void *complete_table(const struct operand *a, int entries, int64_t line_bytes, const void **table, char **memory) {
  const void *nothing = zeros;
  if (line_bytes > (int64_t)sizeof zeros) nothing = memset(take(memory, line_bytes), 0, (size_t)line_bytes);
  for (int i = 0; i < entries; i++) table[i] = a->rows[i] ? a->rows[i] : nothing;
  return table;
}

// Whether the lines of a matrix are pages apart.
INLINE int far_apart(int64_t stride) { return stride >= 1024 || stride <= -1024; }

// Table of the rows of B, to be read in place; NULL unless they are contiguous and whole vectors long.
static const void *const *rows_of_b(const struct dot_product *d, int depth, int rows, int columns, char **memory) {
  const struct operand *b = &d->b;
  if (d->packed_b || b->segment || (b->transient && !d->a.transient) || d->kind != ELEMENT_F32 || columns % LANES != 0) return NULL;
  if (b->rows ? b->table_axis != 0 : b->stride[1] != 1 || (far_apart(b->stride[0]) && rows > MOST_ROWS_OF_UNPACKED_B)) return NULL;
  const void **table = (const void **)take(memory, (int64_t)sizeof(void *) * depth);
  if (b->rows) return complete_table(b, depth, (int64_t)sizeof(float) * columns, table, memory);
  for (int k = 0; k < depth; k++) table[k] = (const float *)b->data + k * b->stride[0];
  return table;
}

// The queue entry of a product; operands that cannot be read in place are packed at *memory.
static struct product_part prepare(const struct dot_product *d, int depth, int rows, int columns, int pairs, char **memory,
                                   enum form *form) {
  struct product_part part = {.b = d->packed_b, .depth = pairs ? (depth + 1) / 2 : depth};
  part.panel_depth = pairs ? (d->k + 1) / 2 : d->k;
  int axis = contiguous_axis(&d->a);  // 1: contiguous along k, 0: along m
  int direct = d->kind == ELEMENT_F32 ? axis >= 0 : pairs && axis == 1;
  // Of rows that are pages apart, the few columns of each strip would cost a cache miss per row.
  if (axis == 0 && !d->a.rows && far_apart(d->a.stride[1]) && rows >= 64) direct = 0;
  *form = axis == 0 ? A_COLUMN_MAJOR : A_ROW_MAJOR;
  // Of columns in strips, each line is read once and runs on to the next.
  int strips = axis == 0 && d->kind == ELEMENT_F32 && rows > MOST_ROWS_OF_UNPACKED_B && columns >= LEAST_COLUMNS_OF_STRIPS &&
               sizeof(float) * (size_t)rows <= sizeof zeros;
  if (strips) direct = 0;
  int has_strided_rows = axis == 1 && !d->a.rows, has_few_columns = axis == 0 && rows <= MOST_ROWS_OF_UNPACKED_B;
  if (has_strided_rows || has_few_columns) part.b_table = rows_of_b(d, depth, rows, columns, memory);
  if (part.b_table) *form = axis == 0 ? A_COLUMN_MAJOR_B_ROWS : A_ROW_MAJOR_B_ROWS;
  else if (!part.b) {
    int64_t width = (columns + LARGEST_PANEL - 1) / LARGEST_PANEL * LARGEST_PANEL;
    float *panels = (float *)take(memory, sizeof(float) * (size_t)(depth + 1) * (size_t)width);
    pack_b(d, depth, panels, (float *)*memory);
    part.b = panels;
    part.panel_depth = part.depth;
  }
  part.odd = direct && pairs && depth % 2;
  if (direct && d->a.rows) {
    int entries = axis == 1 ? rows : depth;
    const void **table = (const void **)take(memory, (int64_t)sizeof(void *) * entries);
    int64_t line_bytes = (int64_t)(axis == 1 ? depth : rows) * element_bytes(d->kind);
    part.a_table = complete_table(&d->a, entries, line_bytes, table, memory);
    *form = axis == 1 ? A_ROW_TABLE : part.b_table ? A_COLUMN_TABLE_B_ROWS : A_COLUMN_TABLE;
  } else if (direct) {
    part.a = d->a.data;
    part.a_stride = d->a.stride[1 - axis];
    part.a_in_place = 1;
    if (pairs && part.a_stride % 2) {  // rows at odd offsets: a table entry per row makes pairs readable
      const void **table = (const void **)take(memory, (int64_t)sizeof(void *) * rows);
      for (int m = 0; m < rows; m++) table[m] = (const uint16_t *)d->a.data + m * part.a_stride;
      part.a_table = table;
      *form = A_ROW_TABLE;
    } else if (pairs) part.a_stride /= 2;
  } else if (strips) {
    float *packed = (float *)take(memory, (int64_t)sizeof(float) * rows * depth);
    pack_a_strips(&d->a, depth, rows, packed);
    part.a = (const uint32_t *)packed;
    *form = A_STRIPS;
  } else {
    int64_t values = pairs ? (int64_t)rows * part.depth : (int64_t)rows * depth;
    float *packed = (float *)take(memory, (int64_t)sizeof(float) * values);
    struct a_view a = pairs ? pack_a_pairs(&d->a, axis != 0, depth, (uint32_t *)packed) : pack_a(d, axis != 0, depth, packed);
    part.a = a.data;
    part.a_stride = a.stride;
  }
  return part;
}

// Zero the elements of c that the first products do not store.
static void clear_rest(const struct product_queue *queue) {
  int rows = queue->count ? queue->rows : 0, columns = queue->columns;
  if (rows == queue->height && columns == queue->width) return;
  for (int row = 0; row < queue->height; row++) {
    int done = row < rows ? columns : 0;
    memset(queue->c + row * queue->c_stride + done, 0, sizeof(float) * (size_t)(queue->width - done));
  }
}

static void finish(struct product_queue *queue) {
  if (queue->fresh && !queue->target) clear_rest(queue);
  if (queue->count) queue->product(queue);
  queue->count = queue->fresh = 0;
  queue->free = queue->memory;
  queue->a_ahead = queue->b_ahead = 0;
}

// Computes what is left in the queue, and stores the finished accumulator, which nothing else may read.
static void finish_into(struct product_queue *queue, const struct product_target *target) {
  int covers = queue->rows == target->rows && queue->columns == target->columns && queue->width % LANES == 0;
  if (queue->count && covers) queue->target = target;
  finish(queue);
  if (!queue->target) store_rows(target, 0, target->rows, 0, target->columns, queue->c, queue->c_stride);
}

// `d` is the first product after the queue: record the distance of its operands from those of the queue's first part.
static void look_ahead(struct product_queue *queue, const struct dot_product *d) {
  const struct product_part *first = queue->parts;
  if (first->a_in_place && !d->a.rows) queue->a_ahead = (const uint32_t *)d->a.data - (const uint32_t *)first->a;
  if (first->b_table && !d->b.rows) queue->b_ahead = (const float *)d->b.data - (const float *)first->b_table[0];
}

static void enqueue(const struct dot_product *d, struct product_queue *queue) {
  int depth = product_depth(d), rows = (int)least(d->m, d->a.valid[0]), columns = (int)least(d->n, d->b.valid[1]);
  if (depth <= 0 || rows <= 0 || columns <= 0) return;
  if (queue->count == queue->capacity || queue->free > queue->memory + d->scratch_bytes * (queue->capacity - 1)) {
    look_ahead(queue, d);
    finish(queue);
  }
  int pairs = d->kind == ELEMENT_BF16 && HAS_PAIRS;
  enum form kind;
  struct product_part part = prepare(d, depth, rows, columns, pairs, &queue->free, &kind);
  void (*product)(const struct product_queue *) = products[kind][pairs];
  if (queue->count && (rows != queue->rows || columns != queue->columns || product != queue->product)) {
    char *used = queue->free;
    finish(queue);
    queue->free = used;  // this part's memory follows that of the others
  }
  queue->rows = rows, queue->columns = columns, queue->product = product;
  queue->parts[queue->count++] = part;
  if (d->a.transient) finish(queue);
}

static void dot(const struct dot_product *d) {
  struct product_queue queue = {.capacity = 1, .height = d->m, .width = d->n, .c = d->c, .c_stride = d->c_stride,
                                .memory = d->scratch, .free = d->scratch};
  enqueue(d, &queue);
  finish(&queue);
}

static void pack_b_for_later(const struct dot_product *d, void *out) {
  pack_b(d, d->k, out, d->scratch);
}
