// Storage formats of GGUF files: w = scale * code (+ minimum), with one scale for a block of 32 weights (Q6_K: 16).
//
//          code            scale and minimum                                      bits a weight (in the file)
//   Q4_0   nibble - 8      fp16                                                   4.5
//   Q4_1   nibble          fp16, fp16                                             5
//   Q8_0   byte            fp16                                                   8.5
//   Q4_K   nibble          fp16 * byte, fp16 * byte; one pair of fp16 per 256     4.62 (4.5)
//   Q5_K   byte            likewise                                               8.62 (5.5)
//   Q6_K   byte            fp16 * byte; one fp16 per 256                          8.56 (6.56)
//
// scale * code is exact in fp32 and adding the minimum rounds once, as in gguf's own dequantisation: these are the same
// numbers bit for bit. runtime/blocks.py lays codes and scales out for the vectors here, without changing them:
//
//   nibbles   a block is 8 words of 16 bits; nibble v of word j is weight 8 v + j
//   scales    of a row together: all scales, then all minima; Q*_K: records of 256 weights, fp16 first, then the bytes
#pragma once
#include "formats.hpp"

enum {
  BLOCK = 32,
  CHUNK = 256,
  PARTS = BLOCK / LANES
};  // weights of a block; weights whose scales are widened at once

template <int OFFSET>
struct Nibbles {
  const uint16_t* w;
  Nibbles(const void* w, int64_t k, int64_t o) : w((const uint16_t*)w + o * k / 4) {}
  static int64_t bytes(int64_t k) { return k / 2; }
  INLINE_MEMBER Ints at(size_t i, int v) const {
#if defined(__AVX512F__)
    const __m256i words = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)(w + i / 4)));
    const Ints first = {0, 0, 0, 0, 0, 0, 0, 0, 4, 4, 4, 4, 4, 4, 4, 4};
    const Ints code = (Ints)_mm512_cvtepu16_epi32(words) >> (first + 8 * v) & 15;
#else
    Ints code = widen(w + i / 4 + v * LANES % 8);
    const int nibble = v * LANES / 8;
    if (nibble) code >>= 4 * nibble;
    if (nibble < 3) code &= 15;
#endif
    return OFFSET ? code - OFFSET : code;
  }
};

struct Bytes {
  const int8_t* w;
  Bytes(const void* w, int64_t k, int64_t o) : w((const int8_t*)w + o * k) {}
  static int64_t bytes(int64_t k) { return k; }
  INLINE_MEMBER Ints at(size_t i, int v) const { return widen(w + i + v * LANES); }
};

// Widen the scales of weights [i, i + n) of a row, n <= CHUNK. SHARING: weights that share a scale.
template <bool MINIMUM>
struct Halves {
  enum { SHARING = BLOCK, HAS_MINIMUM = MINIMUM, AT_ONCE = CHUNK / BLOCK };
  const uint16_t *d, *m;
  float space[2][2 * AT_ONCE];  // the first half is scratch
  Halves(const void* scale, int64_t k, int64_t o)
      : d((const uint16_t*)scale + o * (k / BLOCK) * (1 + MINIMUM)), m(d + k / BLOCK) {}
  INLINE_MEMBER float scale(int b) const { return space[0][AT_ONCE + b]; }
  INLINE_MEMBER float minimum(int b) const { return space[1][AT_ONCE + b]; }
  INLINE_MEMBER void enter(size_t i, int64_t n) {
    widen_up_to(d + i / BLOCK, n / BLOCK, i > 0, space[0] + AT_ONCE);
    if (MINIMUM) widen_up_to(m + i / BLOCK, n / BLOCK, i > 0, space[1] + AT_ONCE);
  }
  // The last scales of a row are widened together with those before them, if there are any.
  INLINE_MEMBER static void widen_up_to(const uint16_t* p, int64_t count, bool more, float* to) {
    if (count == AT_ONCE) eight(p, to);
    else if (more) eight(p + count - AT_ONCE, to + count - AT_ONCE);
    else
      for (int64_t b = 0; b < count; b++) to[b] = half(p[b]);
  }
  INLINE_MEMBER static void eight(const uint16_t* p, float* to) {
#if defined(__AVX512F__)
    _mm256_storeu_ps(to, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)));
#else
    for (int i = 0; i < AT_ONCE; i += LANES) store(to + i, halves(p + i));
#endif
  }
};

template <bool MINIMUM, int COUNT>
struct Supers {
  enum { SHARING = CHUNK / COUNT, HAS_MINIMUM = MINIMUM, BYTES = (2 + COUNT) * (1 + MINIMUM) };
  const uint8_t* records;
  float d[COUNT], m[COUNT];
  Supers(const void* scale, int64_t k, int64_t o) : records((const uint8_t*)scale + o * (k / CHUNK) * BYTES) {}
  INLINE_MEMBER float scale(int b) const { return d[b]; }
  INLINE_MEMBER float minimum(int b) const { return m[b]; }
  INLINE_MEMBER void enter(size_t i, int64_t) {
    const uint8_t* p = records + i / CHUNK * BYTES;
    uint16_t first[2];
    memcpy(first, p, 2 * (1 + MINIMUM));
    times(half(first[0]), (const int8_t*)p + 2 * (1 + MINIMUM), d);
    if (MINIMUM) times(-half(first[1]), (const int8_t*)p + 4 + COUNT, m);
  }
  INLINE_MEMBER static void times(float f, const int8_t* p, float* to) {
    for (int b = 0; b < COUNT; b++) to[b] = f * float(p[b]);
  }
};

// A row of weights. `enter` widens the scales of a chunk; `at` then reads LANES weights: part v of block b of the chunk
// that begins at weight i. AGAIN: scales are read again for each part, which leaves more registers to a large tile.
template <class Codes, class Scales>
struct Blocks {
  Codes codes;
  Scales scales;
  Blocks(const Matrix& m, int64_t k, int64_t o) : codes(m.w, k, o), scales(m.scale, k, o) {}
  enum { BLOCKED = true, PANELS = true, R = BLOCK_ROWS, C = BLOCK_COLS, WIDE = BLOCK_WIDE };
  static int64_t bytes(int64_t k) { return Codes::bytes(k); }
  float finish(float sum) const { return sum; }
  INLINE_MEMBER void enter(size_t i, int64_t n) { scales.enter(i, n); }
  template <bool AGAIN>
  INLINE_MEMBER Vec at(size_t i, int b, int v) const {
    const Scales* from = &scales;
    if (AGAIN) HIDE(from);
    const int group = b * (BLOCK / Scales::SHARING) + v * LANES / Scales::SHARING;
    const Vec code = __builtin_convertvector(codes.at(i + b * BLOCK, v), Vec);
    if (!Scales::HAS_MINIMUM) return code * all(from->scale(group));
    Vec w = all(from->minimum(group));
    fma(w, code, all(from->scale(group)));
    return w;
  }
};

using BlocksQ4_0 = Blocks<Nibbles<8>, Halves<false>>;
using BlocksQ4_1 = Blocks<Nibbles<0>, Halves<true>>;
using BlocksQ8_0 = Blocks<Bytes, Halves<false>>;
using BlocksQ4_K = Blocks<Nibbles<0>, Supers<true, 8>>;
using BlocksQ5_K = Blocks<Bytes, Supers<true, 8>>;
using BlocksQ6_K = Blocks<Bytes, Supers<false, 16>>;
