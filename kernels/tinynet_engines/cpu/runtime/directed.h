// Arithmetic that rounds in a given direction: the nearest result, moved by one step if the exact one lies on the other
// side of it. A result in double precision comes with the sign of its own error.
#pragma once
#include "elementary.h"

enum direction { NEAREST, TO_ZERO, DOWN, UP };

// by how many steps (-1, 0, 1) a nearest result moves if the exact one minus it has the sign of `rest`
INLINE int step(double nearest, double rest, enum direction direction) {
  if (direction == TO_ZERO) direction = nearest > 0 ? DOWN : UP;
  return direction == DOWN && rest < 0 ? -1 : direction == UP && rest > 0 ? 1 : 0;
}
INLINE float nearby_f32(double exact, double rest, enum direction direction) {
  float nearest = (float)exact;
  double above = exact - (double)nearest;
  int move = direction == NEAREST ? 0 : step(nearest, above != 0 ? above : rest, direction);
  return move ? nextafterf(nearest, move < 0 ? -INFINITY : INFINITY) : nearest;
}
INLINE double nearby_f64(double nearest, double rest, enum direction direction) {
  int move = direction == NEAREST ? 0 : step(nearest, rest, direction);
  return move ? nextafter(nearest, move < 0 ? -INFINITY : INFINITY) : nearest;
}
// a + b - sum (D. Knuth)
INLINE double rest_of_sum(double a, double b, double sum) {
  double part = sum - a;
  return (a - (sum - part)) + (b - part);
}
// to nearest: by way of double precision, so that a compiler cannot merge a product and a sum
#define DEFINE_DIRECTED(KIND, TYPE)                                                                                    \
  INLINE TYPE directed_add_##KIND(TYPE a, TYPE b, enum direction direction) {                                          \
    double sum = (double)a + b;                                                                                        \
    return direction == NEAREST ? (TYPE)sum : nearby_##KIND(sum, rest_of_sum(a, b, sum), direction);                   \
  }                                                                                                                    \
  INLINE TYPE directed_sub_##KIND(TYPE a, TYPE b, enum direction direction) {                                          \
    return directed_add_##KIND(a, -b, direction);                                                                      \
  }                                                                                                                    \
  INLINE TYPE directed_mul_##KIND(TYPE a, TYPE b, enum direction direction) {                                          \
    double product = (double)a * b;                                                                                    \
    return direction == NEAREST ? (TYPE)product : nearby_##KIND(product, __builtin_fma(a, b, -product), direction);    \
  }                                                                                                                    \
  INLINE TYPE directed_div_##KIND(TYPE a, TYPE b, enum direction direction) {                                          \
    double ratio = (double)a / b, rest = __builtin_fma(-ratio, b, a);                                                  \
    return direction == NEAREST ? a / b : nearby_##KIND(ratio, b < 0 ? -rest : rest, direction);                       \
  }                                                                                                                    \
  INLINE TYPE directed_rcp_##KIND(TYPE a, enum direction direction) { return directed_div_##KIND(1, a, direction); }   \
  INLINE TYPE directed_sqrt_##KIND(TYPE a, enum direction direction) {                                                 \
    double root = __builtin_sqrt(a);                                                                                   \
    return nearby_##KIND(root, __builtin_fma(-root, root, a), direction);                                              \
  }
DEFINE_DIRECTED(f32, float)
DEFINE_DIRECTED(f64, double)
INLINE float directed_ma_f32(float a, float b, float c, enum direction direction) {
  double product = (double)a * b, sum = product + c;  // the product is exact
  return direction == NEAREST ? __builtin_fmaf(a, b, c) : nearby_f32(sum, rest_of_sum(product, c, sum), direction);
}
