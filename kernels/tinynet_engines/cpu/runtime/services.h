// The contract between generated kernels and the run-time library.
#pragma once
#include <stddef.h>
#include <stdint.h>

// One 2-D operand of a dot product. Strided: element (i, j) is data[i * stride[0] + j * stride[1]]. With a row table,
// rows[] holds a pointer for every index along table_axis and the other axis has unit stride; a NULL row is all zeros.
// Rows of B may be split into segments of `segment` columns: rows[] then holds one table for all first segments, then
// one for all second segments, and so on. Elements at or past `valid` along either axis are zero and never read.
struct operand {
  const void *data;
  int64_t stride[2];
  const void *const *rows;
  int32_t table_axis;
  int32_t valid[2];
  int32_t transient;  // whether the memory is reused before a queue of products is finished
  int32_t segment;    // 0: rows are not split
};

enum element_kind { ELEMENT_F32, ELEMENT_BF16, ELEMENT_F16 };

// c[m][n] += sum over k of a[m][k] b[k][n], in fp32. `scratch` holds `scratch_bytes`, the most one product needs.
struct dot_product {
  int32_t m, n, k;
  int32_t kind;
  struct operand a, b;
  const void *packed_b;  // what pack_b wrote, or NULL
  float *c;
  int64_t c_stride;
  void *scratch;
  int64_t scratch_bytes;
};

// A queue of products that are added to one accumulator, deferred until they can be computed together: a tile of the
// accumulator then stays in registers over all of them. Up to `capacity` products; `memory` holds their scratch_bytes.
struct product_part {
  const void *a;  // see struct a_view
  int64_t a_stride;
  const void *a_table;
  const float *b;              // panels, or NULL:
  const void *const *b_table;  // rows of B, read in place
  int32_t depth, panel_depth;  // of pairs for bf16
  int32_t odd;                 // whether a row of A ends in the middle of its last pair
  int32_t a_in_place;  // whether `a` is the product's operand itself, not a copy
};
enum { LARGEST_QUEUE = 16 };
// The result that a finished accumulator is stored as: out[i][j] = z <= floor ? floor : z, where z = c[i][j] + bias[j].
struct product_target {
  void *out;
  int64_t stride;  // of a row, in elements
  int32_t kind;
  int32_t columns;
  const float *bias;  // or NULL
  float floor;
  int32_t rows;
};
struct product_queue {
  void (*product)(const struct product_queue *);  // computes what is in the queue
  int32_t capacity, count;
  int32_t fresh;  // whether c is uninitialized: the first products are stored instead of added
  int32_t height, width;        // of c
  int32_t rows, columns;        // of the products in the queue
  float *c;
  int64_t c_stride;
  char *memory, *free;
  const struct product_target *target;  // where the products in the queue are stored, or NULL: in c
  int64_t a_ahead, b_ahead;  // from the first part's operands to those of the first product after the queue, or 0
  struct product_part parts[LARGEST_QUEUE];
};

// A product in each of several groups that lie side by side, where width = 2, 4, 8 or 16:
// c[i][width g + j] += sum over d of a[i][width g + d] b[g][d][j], in fp32.
struct group_product {
  int32_t m, groups, width;
  int32_t rows, valid;  // rows and groups from here on count as zeros and are never read
  int32_t kind;
  const void *const *a;  // rows; NULL for a row of zeros
  int32_t transient;     // whether the memory of rows is reused before a queue of products is finished
  const void *b;
  int64_t b_stride[3];  // to the next group, row and column
  float *c;             // rows of groups * width
  void *scratch;
  int64_t scratch_bytes;
};

// Sums over rows in each of such groups: c[d][width g + j] += sum over i of a[i][width g + d] b[i][width g + j].
struct group_reduction {
  int32_t groups, width;
  int32_t rows, valid;  // as in struct group_product
  int32_t kind;
  const void *const *a, *const *b;  // rows; NULL for a row of zeros
  float *c;                         // rows of groups * width
  void *scratch;
};

struct program;

struct services {
  void (*dot)(const struct dot_product *);
  void (*dot_groups)(const struct group_product *);
  void (*reduce_groups)(const struct group_reduction *);
  void (*enqueue)(const struct dot_product *, struct product_queue *);
  void (*enqueue_groups)(const struct group_product *, struct product_queue *);
  void (*finish)(struct product_queue *);
  void (*finish_into)(struct product_queue *, const struct product_target *);
  void (*pack_b)(const struct dot_product *, void *out);
  void (*print)(const struct program *, const char *prefix, const int64_t *index, int rank, int kind, double value, int64_t integer);
  void (*fail)(const struct program *, const char *message);
};

union argument {
  void *pointer;
  int64_t integer;
  double real;
};

typedef void (*kernel_function)(const struct program *);

// One launch as the driver describes it; read-only, so that threads can share it.
struct launch {
  kernel_function kernel;
  void (*parallel)(void (*)(void *), void *, unsigned, unsigned);  // GOMP_parallel, or NULL for one thread
  int64_t threads;
  int64_t grid[3];
  int64_t arena_bytes;
  union argument arguments[];
};

// Two arguments, of which at least one is written: if their memory overlaps, the launch is refused.
struct disjoint_pair {
  int64_t written, other;              // positions in the argument list
  int64_t written_bytes, other_bytes;  // length of each
};

// The state of one program of a kernel: its ids, its arguments and its memory for tiles.
struct program {
  int32_t id[3];
  int32_t count[3];
  const union argument *arguments;
  char *arena;
  const struct services *services;
  const char **failure;
};
