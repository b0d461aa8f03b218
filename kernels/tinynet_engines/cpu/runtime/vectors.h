// The vector that products are computed with, and the tiles of the accumulator that stay in registers.
#pragma once
#include "kernel.h"

#if defined(__AVX512F__)
#include <immintrin.h>
enum { LANES = 16, TILE_ROWS = 12 };
#elif defined(__AVX2__)
#include <immintrin.h>
enum { LANES = 8, TILE_ROWS = 6 };
#else
enum { LANES = 4, TILE_ROWS = 4 };
#endif
enum { PANEL = 2 * LANES, LARGEST_PANEL = 32 };
enum { WIDE_ROWS = 3, WIDE = 2 * TILE_ROWS / WIDE_ROWS };  // tiles of few rows: WIDE is in vectors

// BF16_PAIRS is defined where products of pairs of bf16 are fastest; else bf16 is widened to fp32 when it is packed.
#if defined(BF16_PAIRS) && !defined(__AVX512BF16__)
#undef BF16_PAIRS  // a compiler that does not know the instructions
#endif

typedef float vector __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t lane_numbers __attribute__((vector_size(4 * LANES)));
