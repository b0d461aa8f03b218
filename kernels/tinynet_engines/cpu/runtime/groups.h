// Products of groups: thin matrices side by side, as of grouped convolutions. A vector of C holds columns of several
// groups; what each of its lanes reads of a row of A lies in the same vector of A, or in the same group's vectors.
#pragma once
#include "dot.h"

#if defined(__AVX512F__)
enum { GROUP_ROWS = 12, LOWER_ROWS = 8 };  // lower strips where a row takes a register, or pairs are multiplied
#elif defined(__AVX2__)
enum { GROUP_ROWS = 6, LOWER_ROWS = 6 };
#else
enum { GROUP_ROWS = 4, LOWER_ROWS = 4 };
#endif
enum { STRIPS_AT_ONCE = 8 };  // that take the same columns, one after the other
enum { LARGEST_ROW = 1024 };  // elements: a row of zeros is in `zeros`
// A sum over rows stays in registers for REDUCED_ROWS of them, which are a multiple of ROWS_AT_ONCE, with rows of zeros.
enum { REDUCED_ROWS = 64, ROWS_AT_ONCE = 16, PREFETCHED_ROWS = 8 };
enum { MOST_ROWS_AHEAD = 32 };  // that a strip or a prefetch reaches past the end

#if defined(__AVX512F__)
static const lane_numbers lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
#elif defined(__AVX2__)
static const lane_numbers lanes = {0, 1, 2, 3, 4, 5, 6, 7};
#else
static const lane_numbers lanes = {0, 1, 2, 3};
#endif

INLINE int takes_pairs(int kind) { return kind == ELEMENT_BF16 && HAS_PAIRS; }

// LANES elements as fp32
INLINE vector load_vector(const void *line, int64_t start, int kind) {
  if (kind == ELEMENT_F32) return *(const vector *)((const float *)line + start);
  const uint16_t *source = (const uint16_t *)line + start;
#if defined(__AVX512F__)
  __m256i bits = _mm256_loadu_si256((const void *)source);
  if (kind == ELEMENT_F16) return (vector)_mm512_cvtph_ps(bits);
  return (vector)_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16);
#else
  vector out;
  for (int i = 0; i < LANES; i++) out[i] = kind == ELEMENT_BF16 ? load_bf16(source[i]) : load_f16(source[i]);
  return out;
#endif
}

// sum[rows][vectors] += a's groups times b's, for the columns from `column` on and one part of a queue. `a`: rows.
// Of two vectors each row's address is loaded once; `vectors` is one where groups are narrower than a vector.
INLINE void add_groups(int rows, int vectors, int width, int kind, const void *const *a, const vector *b, int64_t column,
                       vector (*sum)[2]) {
  int narrow = width < LANES;
  const lane_numbers group = lanes & ~(width - 1);  // where a lane's group begins
  int64_t first = narrow ? column : column / width * width;
  int to_next = LANES / width * width;  // from the group of a vector to that of the next
#if defined(BF16_PAIRS)
  if (kind == ELEMENT_BF16 && width == LANES) {  // one group: its pairs are broadcast as they are read
#pragma GCC unroll 16
    for (int pair = 0; pair < width / 2; pair++) {
#pragma GCC unroll 2
      for (int j = 0; j < vectors; j++) {
#pragma GCC unroll 16
        for (int i = 0; i < rows; i++) {
          uint32_t left;
          memcpy(&left, (const uint16_t *)a[i] + first + j * to_next + 2 * pair, 4);
          sum[i][j] = multiply_add(sum[i][j], left, b[j * width / 2 + pair], 1);
        }
      }
    }
    return;
  }
#endif
  vector x[GROUP_ROWS];  // of one vector of columns
#if defined(BF16_PAIRS)
  if (kind == ELEMENT_BF16) {  // lanes of x are pairs of elements
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++)
      x[i] = (vector)_mm512_castsi256_si512(_mm256_loadu_si256((const void *)((const uint16_t *)a[i] + first)));
#pragma GCC unroll 16
    for (int pair = 0; pair < width / 2; pair++) {
      lane_numbers of_group = group / 2 + pair;
#pragma GCC unroll 16
      for (int i = 0; i < rows; i++)
        sum[i][0] = (vector)_mm512_dpbf16_ps((__m512)sum[i][0], (__m512bh)__builtin_shuffle(x[i], of_group), (__m512bh)b[pair]);
    }
    return;
  }
#endif
  if (narrow) {
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++) x[i] = load_vector(a[i], first, kind);
#pragma GCC unroll 16
    for (int d = 0; d < width; d++) {
#pragma GCC unroll 16
      for (int i = 0; i < rows; i++) sum[i][0] += __builtin_shuffle(x[i], group + d) * b[d];
    }
    return;
  }
  float wide[GROUP_ROWS * 2 * LANES] __attribute__((aligned(64)));
  for (int start = 0; start < width; start += LANES, b += LANES) {
    const float *line[GROUP_ROWS];  // elements are broadcast as they are read: a shuffle would wait for the multiplier
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++) {
      line[i] = kind == ELEMENT_F32 ? (const float *)a[i] + first + start : wide + i * 2 * LANES;
#pragma GCC unroll 2
      for (int j = 0; j < vectors && kind != ELEMENT_F32; j++)
        *(vector *)(wide + (2 * i + j) * LANES) = load_vector(a[i], first + start + j * to_next, kind);
    }
    int next = kind == ELEMENT_F32 ? to_next : LANES;
    if (kind != ELEMENT_F32) __asm__("" : "+r"(line[0]) : : "memory");
#pragma GCC unroll 16
    for (int d = 0; d < LANES; d++) {
#pragma GCC unroll 2
      for (int j = 0; j < vectors; j++) {
#pragma GCC unroll 16
        for (int i = 0; i < rows; i++) sum[i][j] += line[i][j * next + d] * b[j * width + d];
      }
    }
  }
}

// Stores finished rows of c as the target's. Not in line, where it would take registers from the loop over parts.
static __attribute__((noinline)) void store_groups(const struct product_queue *queue, int64_t row, int rows, int64_t column,
                                                   int vectors) {
  enum { AT_ONCE = 4 };
  vector tile[AT_ONCE][WIDE];
  int i = 0;
  for (; i + AT_ONCE <= rows && vectors == 2; i += AT_ONCE) {
    const float *c = queue->c + (row + i) * queue->c_stride + column;
    for (int k = 0; k < 2 * AT_ONCE; k++) tile[k / 2][k % 2] = *(const vector *)(c + k / 2 * queue->c_stride + k % 2 * LANES);
    store_tile(AT_ONCE, 2, queue->target, row + i, column, tile);
  }
  for (; i < rows; i++) {
    for (int j = 0; j < vectors; j++) {
      tile[0][0] = *(const vector *)(queue->c + (row + i) * queue->c_stride + column + j * LANES);
      store_tile(1, 1, queue->target, row + i, column + j * LANES, tile);
    }
  }
}

// c[rows][vectors] += sum over parts of a's groups times b's, for the columns from `column` on; with a target, the sums
// are stored there instead
INLINE void group_kernel(int rows, int vectors, int width, int kind, const struct product_queue *queue, int64_t row,
                         int64_t column) {
  vector sum[GROUP_ROWS][2];
  int64_t before = column * width / (takes_pairs(kind) ? 2 : 1);  // in B
  float *c = queue->c + row * queue->c_stride + column;
  int64_t c_stride = queue->c_stride;
#pragma GCC unroll 16
  for (int i = 0; i < rows; i++) {
#pragma GCC unroll 2
    for (int j = 0; j < vectors; j++) sum[i][j] = queue->fresh ? (vector){0} : *(const vector *)(c + i * c_stride + j * LANES);
  }
  for (const struct product_part *part = queue->parts, *end = part + queue->count; part < end; part++) {
    const void *const *a = (const void *const *)part->a_table + row;
    __asm__("" : "+r"(a));  // one register, from which gcc would derive one per row
    if (part + 1 == end) {  // the last tap is the first to read a pixel; the next strip's may be far from this one's
#pragma GCC unroll 16
      for (int i = 0; i < rows; i++) {
#pragma GCC unroll 2
        for (int j = 0; j < vectors; j++) __builtin_prefetch((const char *)a[rows + i] + (column + j * LANES) * element_bytes(kind));
      }
    }
    add_groups(rows, vectors, width, kind, a, (const vector *)(part->b + before), column, sum);
  }
  if (queue->target && width < LANES) {
    vector tile[GROUP_ROWS][WIDE];
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++) tile[i][0] = sum[i][0];
    store_tile(rows, 1, queue->target, row, column, tile);
    return;
  }
#pragma GCC unroll 16
  for (int i = 0; i < rows; i++) {
#pragma GCC unroll 2
    for (int j = 0; j < vectors; j++) *(vector *)(c + i * c_stride + j * LANES) = sum[i][j];
  }
  if (queue->target && width >= LANES) store_groups(queue, row, rows, column, vectors);
}

// As many strips of `rows` rows as there are from `row` on; returns the first row of the rest. A few strips take the
// columns in turn: their part of A and of B stays in the first-level cache, and rows of A are often whole powers of two
// apart, whose lines evict each other.
INLINE int group_strips(int rows, int vectors, int width, int kind, const struct product_queue *queue, int row) {
  for (int end; row + rows <= queue->rows; row = end) {
    int64_t column = 0;
    end = row + (int)least(STRIPS_AT_ONCE, (queue->rows - row) / rows) * rows;
    for (; column + vectors * LANES <= queue->columns; column += vectors * LANES)
      for (int strip = row; strip < end; strip += rows) group_kernel(rows, vectors, width, kind, queue, strip, column);
    for (; column < queue->columns; column += LANES)
      for (int strip = row; strip < end; strip += rows) group_kernel(rows, 1, width, kind, queue, strip, column);
  }
  return row;
}

#define DEFINE_GROUPS(NAME, WIDTH, KIND)                                               \
  static __attribute__((noinline)) void NAME(const struct product_queue *queue) {       \
    int narrow = WIDTH < LANES, pairs = KIND == ELEMENT_BF16 && HAS_PAIRS;              \
    int vectors = narrow ? 1 : 2;                                                       \
    int rows = narrow || pairs ? LOWER_ROWS : GROUP_ROWS;                               \
    int row = group_strips(rows, vectors, WIDTH, KIND, queue, 0);                       \
    row = group_strips(2, 1, WIDTH, KIND, queue, row);                                  \
    group_strips(1, 1, WIDTH, KIND, queue, row);                                        \
  }

#define DEFINE_WIDTH(WIDTH)                            \
  DEFINE_GROUPS(groups_of_##WIDTH##_f32, WIDTH, ELEMENT_F32)   \
  DEFINE_GROUPS(groups_of_##WIDTH##_bf16, WIDTH, ELEMENT_BF16) \
  DEFINE_GROUPS(groups_of_##WIDTH##_f16, WIDTH, ELEMENT_F16)
DEFINE_WIDTH(2)
DEFINE_WIDTH(4)
DEFINE_WIDTH(8)
DEFINE_WIDTH(16)

#define OF_WIDTH(WIDTH) [WIDTH] = {groups_of_##WIDTH##_f32, groups_of_##WIDTH##_bf16, groups_of_##WIDTH##_f16}
static void (*const group_products[17][3])(const struct product_queue *) = {OF_WIDTH(2), OF_WIDTH(4), OF_WIDTH(8), OF_WIDTH(16)};

INLINE int whole_vectors(int columns) { return (columns + LANES - 1) / LANES * LANES; }

// B as panels out[vector][d][LANES] in fp32 or, of bf16 where the processor multiplies pairs, out[vector][d / 2][LANES];
// zeros past the last group
INLINE void pack_groups(const struct group_product *p, int kind, float *panel) {
  int columns = p->valid * p->width, step = takes_pairs(kind) ? 2 : 1;
  for (int first = 0; first < columns; first += LANES) {
    int count = (int)least(LANES, columns - first);
    if (kind == ELEMENT_F32 && p->width >= LANES && count == LANES && (p->b_stride[1] == 1 || p->b_stride[2] == 1)) {
      const float *b = (const float *)p->b + first / p->width * p->b_stride[0] + first % p->width * p->b_stride[2];
      const uint32_t *line[LANES];
      for (int i = 0; i < LANES; i++) line[i] = (const uint32_t *)(b + i * p->b_stride[2]);
      if (p->b_stride[1] == 1) transpose_lines(line, LANES, p->width, (uint32_t *)panel, LANES);
      else for (int d = 0; d < p->width; d++) *(vector *)(panel + d * LANES) = *(const vector *)(b + d * p->b_stride[1]);
      panel += p->width * LANES;
      continue;
    }
    int64_t offset[LANES] = {0};
    for (int i = 0; i < count; i++)
      offset[i] = (first + i) / p->width * p->b_stride[0] + (first + i) % p->width * p->b_stride[2];
    for (int d = 0; d < p->width; d += step, panel += LANES) {
      const char *line = (const char *)p->b + d * p->b_stride[1] * element_bytes(kind);
      if (takes_pairs(kind)) {
        const uint16_t *even = (const uint16_t *)line, *odd = even + p->b_stride[1];
        for (int i = 0; i < LANES; i++) panel[i] = float_from_bits((uint32_t)odd[offset[i]] << 16 | even[offset[i]]);
      } else
        for (int i = 0; i < LANES; i++) panel[i] = read_element(line, offset[i], kind);
      for (int i = count; i < LANES; i++) panel[i] = 0.0f;
    }
  }
}

// A table of rows that may be read in whole vectors: zeros for NULL, copies where the last group ends within a vector.
// Rows of zeros follow, for strips and prefetches that reach past the end.
static const void **rows_of_groups(const void *const *source, int rows, int columns, int kind, char **memory) {
  const void **table = (const void **)take(memory, (int64_t)sizeof(void *) * (rows + MOST_ROWS_AHEAD));
  int64_t bytes = (int64_t)columns * element_bytes(kind), whole = (int64_t)whole_vectors(columns) * element_bytes(kind);
  for (int i = 0; i < rows; i++) {
    table[i] = source[i] ? source[i] : zeros;
    if (bytes == whole) continue;
    char *copy = memset(take(memory, whole), 0, (size_t)whole);
    table[i] = memcpy(copy, table[i], (size_t)bytes);
  }
  for (int i = 0; i < MOST_ROWS_AHEAD; i++) table[rows + i] = zeros;
  return table;
}

static void enqueue_groups(const struct group_product *p, struct product_queue *queue) {
  if (p->valid <= 0 || p->rows <= 0) return;
  int columns = whole_vectors(p->valid * p->width);
  if (queue->count && (queue->count == queue->capacity || columns != queue->columns || p->rows != queue->rows)) finish(queue);
  char **memory = &queue->free;
  struct product_part part = {0};
  part.a_table = rows_of_groups(p->a, p->rows, p->valid * p->width, p->kind, memory);
  float *panels = (float *)take(memory, (int64_t)sizeof(float) * columns * p->width);
  if (p->kind == ELEMENT_F32) pack_groups(p, ELEMENT_F32, panels);
  else if (p->kind == ELEMENT_BF16) pack_groups(p, ELEMENT_BF16, panels);
  else pack_groups(p, ELEMENT_F16, panels);
  part.b = panels;
  queue->product = group_products[p->width][p->kind];
  queue->rows = p->rows, queue->columns = columns;
  queue->parts[queue->count++] = part;
  if (p->transient) finish(queue);
}

static void dot_groups(const struct group_product *p) {
  int width = p->groups * p->width;
  struct product_queue queue = {.capacity = 1, .height = p->m, .width = width, .c = p->c, .c_stride = width,
                                .memory = p->scratch, .free = p->scratch};
  enqueue_groups(p, &queue);
  finish(&queue);
}

// --------------------------------------------------------------------------------------------- sums over rows

#if defined(BF16_PAIRS)
// LANES pairs of bf16: of an element of one line and that of another
INLINE vector pairs_of_lines(const void *even, const void *odd, int64_t start) {
  __m512i low = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)((const uint16_t *)even + start)));
  __m512i high = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)((const uint16_t *)odd + start)));
  return (vector)_mm512_or_si512(low, _mm512_slli_epi32(high, 16));
}
#endif

// c[width][LANES] += sum over a multiple of ROWS_AT_ONCE rows of a's groups times b, for the vector of columns at
// `column`
INLINE void reduce_kernel(int rows, int width, int kind, const void *const *a, const void *const *b, int64_t column,
                          float *c, int64_t c_stride) {
  enum { MOST = LANES < 16 ? LANES : 16 };
  int narrow = width < LANES, block = narrow ? width : MOST, chains = block >= 8 ? 1 : 8 / block;
  const lane_numbers group = lanes & ~(width - 1);
  int64_t first = narrow ? column : column / width * width;
  for (int start = 0; start < width; start += block) {
    vector sum[16] = {0};  // several of each: a processor adds to others while it waits for one
    int row = 0;
#if defined(BF16_PAIRS)
    for (; kind == ELEMENT_BF16 && row < rows; row += 2 * chains) {  // pairs of rows
#pragma GCC unroll 4
      for (int chain = 0; chain < chains; chain++) {
        const void *const *left = a + row + 2 * chain, *const *right = b + row + 2 * chain;
#pragma GCC unroll 2
        for (int i = 0; i < 2; i++) {
          __builtin_prefetch((const char *)left[i + PREFETCHED_ROWS] + column * element_bytes(kind));
          __builtin_prefetch((const char *)right[i + PREFETCHED_ROWS] + column * element_bytes(kind));
        }
        vector x = pairs_of_lines(left[0], left[1], first + start), z = pairs_of_lines(right[0], right[1], column);
        uint32_t pairs[LANES] __attribute__((aligned(64)));
        const uint32_t *broadcast = pairs;
        if (!narrow) {
          *(vector *)pairs = x;
          __asm__("" : "+r"(broadcast) : : "memory");  // to read pairs from memory, which takes no shuffle
        }
#pragma GCC unroll 16
        for (int d = 0; d < block; d++) {
          vector pair = narrow ? __builtin_shuffle(x, group + d) : (vector)_mm512_set1_epi32((int)broadcast[d]);
          sum[chain * block + d] = (vector)_mm512_dpbf16_ps((__m512)sum[chain * block + d], (__m512bh)pair, (__m512bh)z);
        }
      }
    }
#endif
    for (; row < rows; row += chains) {
#pragma GCC unroll 4
      for (int chain = 0; chain < chains; chain++) {
        const void *line = a[row + chain];
        __builtin_prefetch((const char *)a[row + chain + PREFETCHED_ROWS] + column * element_bytes(kind));
        __builtin_prefetch((const char *)b[row + chain + PREFETCHED_ROWS] + column * element_bytes(kind));
        vector x = load_vector(line, first + start, kind), z = load_vector(b[row + chain], column, kind);
        const float *numbers = (const float *)&x;
        if (kind == ELEMENT_F32) {
          numbers = (const float *)line + first + start;
          __asm__("" : "+r"(numbers));
        }
#pragma GCC unroll 16
        for (int d = 0; d < block; d++)
          sum[chain * block + d] += narrow ? __builtin_shuffle(x, group + d) * z : numbers[d] * z;
      }
    }
#pragma GCC unroll 16
    for (int d = 0; d < block; d++) {
#pragma GCC unroll 4
      for (int chain = 1; chain < chains; chain++) sum[d] += sum[chain * block + d];
      *(vector *)(c + (start + d) * c_stride) += sum[d];
    }
  }
}

INLINE void reduce_all(int width, int kind, const void *const *a, const void *const *b, int rows, int columns, float *c,
                       int64_t c_stride) {
  for (int row = 0; row < rows; row += REDUCED_ROWS) {
    int count = (int)least(REDUCED_ROWS, (rows - row + ROWS_AT_ONCE - 1) / ROWS_AT_ONCE * ROWS_AT_ONCE);
    for (int column = 0; column < columns; column += LANES)
      reduce_kernel(count, width, kind, a + row, b + row, column, c + column, c_stride);
  }
}

static void reduce_groups(const struct group_reduction *p) {
  if (p->valid <= 0 || p->rows <= 0) return;
  int count = p->valid * p->width, columns = whole_vectors(count), c_stride = p->groups * p->width;
  char *memory = p->scratch;
  const void **a = rows_of_groups(p->a, p->rows, count, p->kind, &memory);
  const void **b = rows_of_groups(p->b, p->rows, count, p->kind, &memory);
#define REDUCE(WIDTH, KIND) \
  if (p->width == WIDTH && p->kind == KIND) reduce_all(WIDTH, KIND, a, b, p->rows, columns, p->c, c_stride);
#define REDUCE_WIDTH(WIDTH) REDUCE(WIDTH, ELEMENT_F32) REDUCE(WIDTH, ELEMENT_BF16) REDUCE(WIDTH, ELEMENT_F16)
  REDUCE_WIDTH(2) REDUCE_WIDTH(4) REDUCE_WIDTH(8) REDUCE_WIDTH(16)
#undef REDUCE_WIDTH
#undef REDUCE
}
