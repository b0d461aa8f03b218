// Blocks of 16 neighbors of bf16 or fp16, from memory to fp32 and back: one vector of AVX-512.
//
// In assembly, because gcc 12 makes such conversions of many small shuffles; without operands in memory, because it
// holds no array in registers along a loop that has any.
#pragma once
enum { BLOCK = 16 };

#if defined __AVX512BW__ && defined __AVX512DQ__
typedef float floats_of_block __attribute__((vector_size(64), may_alias));
typedef uint32_t words_of_block __attribute__((vector_size(64), may_alias));
typedef uint16_t halves_of_block __attribute__((vector_size(32), aligned(2), may_alias));

INLINE void load_block_bf16(float *to, const uint16_t *from) {
  // Short rows that lie apart, as of an image's channels: what comes next in each, which the processor does not foresee.
  __builtin_prefetch(from + 64);
  words_of_block words;
  __asm__("vpmovzxwd %1, %0" : "=v"(words) : "v"(*(const halves_of_block *)from));
  *(words_of_block *)to = words << 16;
}
INLINE halves_of_block lower_halves(words_of_block words) {
  halves_of_block halves;
  __asm__("vpmovdw %1, %0" : "=v"(halves) : "v"(words));
  return halves;
}
INLINE void store_block_bf16(uint16_t *to, const float *from) {
  *(halves_of_block *)to = lower_halves(*(const words_of_block *)from >> 16);
}
#else
INLINE void load_block_bf16(float *to, const uint16_t *from) {
  for (int i = 0; i < BLOCK; i++) to[i] = load_bf16(from[i]);
}
INLINE void store_block_bf16(uint16_t *to, const float *from) {
  for (int i = 0; i < BLOCK; i++) to[i] = store_bf16(from[i]);
}
#endif

#if defined __F16C__
#if defined __AVX512F__
enum { CONVERTED = 16 };
#else
enum { CONVERTED = 8 };
#endif
typedef float converted_floats __attribute__((vector_size(4 * CONVERTED), may_alias));
typedef uint16_t converted_halves __attribute__((vector_size(2 * CONVERTED), aligned(2), may_alias));

INLINE void load_block_f16(float *to, const uint16_t *from) {
  __builtin_prefetch(from + 64);
  for (int i = 0; i < BLOCK; i += CONVERTED) {
    converted_floats values;
    __asm__("vcvtph2ps %1, %0" : "=v"(values) : "v"(*(const converted_halves *)(from + i)));
    *(converted_floats *)(to + i) = values;
  }
}
INLINE void round_block_f16(uint16_t *to, const float *from) {
  for (int i = 0; i < BLOCK; i += CONVERTED) {
    converted_halves halves;
    __asm__("vcvtps2ph $0, %1, %0" : "=v"(halves) : "v"(*(const converted_floats *)(from + i)));
    *(converted_halves *)(to + i) = halves;
  }
}
#else
INLINE void load_block_f16(float *to, const uint16_t *from) {
  for (int i = 0; i < BLOCK; i++) to[i] = load_f16(from[i]);
}
INLINE void round_block_f16(uint16_t *to, const float *from) {
  for (int i = 0; i < BLOCK; i++) to[i] = store_f16(from[i]);
}
#endif
INLINE void store_block_f16(uint16_t *to, const float *from) { round_block_f16(to, from); }

#if defined __AVX512BF16__
INLINE void round_block_bf16(uint16_t *to, const float *from) {
  floats_of_block values = *(const floats_of_block *)from;
  halves_of_block halves;
  uint16_t denormals;
  __asm__("vcvtneps2bf16 %1, %0" : "=v"(halves) : "v"(values));
  __asm__("vfpclassps $0x20, %1, %0" : "=k"(denormals) : "v"(values));
  if (__builtin_expect(denormals, 0)) {  // which the first instruction takes for 0
    words_of_block words = (words_of_block)values;
    halves_of_block exact = lower_halves((words + 0x7fffu + (words >> 16 & 1u)) >> 16);
    for (int i = 0; i < BLOCK; i++) halves[i] = denormals >> i & 1 ? exact[i] : halves[i];
  }
  *(halves_of_block *)to = halves;
}
#else
INLINE void round_block_bf16(uint16_t *to, const float *from) {
  for (int i = 0; i < BLOCK; i++) to[i] = store_bf16(round_bf16(from[i]));
}
#endif
