// A vector of floats for this CPU, and the few functions that the kernels need. Arithmetic uses the compiler's
// vector operators; only operations that differ between instruction sets are written out.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>

#define INLINE static inline __attribute__((always_inline))
#define INLINE_MEMBER inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

// Vec holds LANES floats. ROWS x COLS is the register tile of a product: ROWS * COLS accumulators, COLS weights and
// one x must fit in the machine's vector registers; BLOCK_ROWS x BLOCK_COLS is that of weights in blocks, which need
// more registers, and BLOCK_WIDE outputs are computed together for a single row. KEEP stops the compiler from loading a
// value again; ORDER keeps instructions in the order they are written in.
#if defined(__AVX512F__)
#include <immintrin.h>
using Vec = __m512;
enum { LANES = 16, ROWS = 8, COLS = 3, BLOCK_ROWS = 8, BLOCK_COLS = 2, BLOCK_WIDE = 4 };
INLINE void fma(Vec& a, Vec b, Vec c) { a = _mm512_fmadd_ps(b, c, a); }
#define KEEP(v) asm("" : "+v"(v))
#define ORDER(v) asm volatile("" : "+v"(v))
#elif defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>
using Vec = __m256;
enum { LANES = 8, ROWS = 4, COLS = 3, BLOCK_ROWS = 5, BLOCK_COLS = 2, BLOCK_WIDE = 4 };
INLINE void fma(Vec& a, Vec b, Vec c) { a = _mm256_fmadd_ps(b, c, a); }
#define KEEP(v) asm("" : "+x"(v))
#define ORDER(v) asm volatile("" : "+x"(v))
#elif defined(__aarch64__)
#include <arm_neon.h>
typedef float Vec __attribute__((vector_size(16)));
enum { LANES = 4, ROWS = 8, COLS = 3, BLOCK_ROWS = 8, BLOCK_COLS = 2, BLOCK_WIDE = 4 };
INLINE void fma(Vec& a, Vec b, Vec c) { a = (Vec)vfmaq_f32((float32x4_t)a, (float32x4_t)b, (float32x4_t)c); }
#define KEEP(v) asm("" : "+w"(v))
#define ORDER(v) asm volatile("" : "+w"(v))
#else  // other machines: the compiler has 16-byte vectors, or emulates them
typedef float Vec __attribute__((vector_size(16)));
enum { LANES = 4, ROWS = 4, COLS = 2, BLOCK_ROWS = 4, BLOCK_COLS = 1, BLOCK_WIDE = 2 };
INLINE void fma(Vec& a, Vec b, Vec c) { a += b * c; }
#define KEEP(v)
#define ORDER(v)
#endif
#define HIDE(pointer) asm volatile("" : "+r"(pointer))  // what it points to is read again
typedef int32_t Ints __attribute__((vector_size(LANES * 4)));

INLINE Vec all(float x) { return x - Vec{}; }  // x - 0 is x, which compilers know
INLINE Vec load(const float* p) {
  Vec v;
  memcpy(&v, p, sizeof v);
  return v;
}
INLINE void store(float* p, Vec v) { memcpy(p, &v, sizeof v); }

// Widen LANES small integers to 32 bits.
#if defined(__AVX512F__)
INLINE Ints widen(const uint16_t* p) { return (Ints)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)); }
INLINE Ints widen(const int8_t* p) { return (Ints)_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)); }
INLINE Ints widen(const uint8_t* p) { return (Ints)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p)); }
#elif defined(__AVX2__) && defined(__FMA__)
INLINE Ints widen(const uint16_t* p) { return (Ints)_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)); }
INLINE Ints widen(const int8_t* p) { return (Ints)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)); }
INLINE Ints widen(const uint8_t* p) { return (Ints)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p)); }
#else
template <class T>
INLINE Ints widen(const T* p) {
  return Ints{p[0], p[1], p[2], p[3]};
}
#endif

// Widen one fp16 number.
INLINE float half(uint16_t h) {
  const uint32_t sign = uint32_t(h & 0x8000) << 16, exponent = h >> 10 & 31, fraction = h & 1023;
  uint32_t bits = sign | (exponent + 112) << 23 | fraction << 13;
  if (exponent == 31) bits = sign | 0x7F800000 | fraction << 13;
  float f;
  memcpy(&f, &bits, sizeof f);
  return exponent ? f : (sign ? -1 : 1) * 0x1p-24f * float(fraction);
}

// Widen LANES fp16 numbers.
INLINE Vec halves(const uint16_t* p) {
#if defined(__AVX512F__)
  return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
  return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
#elif defined(__aarch64__)
  return (Vec)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));
#else
  float t[LANES];
  for (int i = 0; i < LANES; i++) t[i] = half(p[i]);
  return load(t);
#endif
}

INLINE float first(Vec v) {
  float f;
  memcpy(&f, &v, sizeof f);
  return f;
}
INLINE Vec max(Vec a, Vec b) { return a > b ? a : b; }

// Add up the lanes by a fixed tree: add the two halves until one number is left.
INLINE float sum(Vec v) {
#if defined(__AVX2__) && defined(__FMA__) && !defined(__AVX512F__)  // the same tree in registers
  __m128 a = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  a = _mm_add_ps(a, _mm_movehl_ps(a, a));
  return _mm_cvtss_f32(_mm_add_ss(a, _mm_movehdup_ps(a)));
#else
  float t[LANES];
  store(t, v);
  UNROLL for (int n = LANES / 2; n; n /= 2) UNROLL for (int i = 0; i < n; i++) t[i] += t[i + n];
  return t[0];
#endif
}

// Add up each of four vectors by the same tree.
INLINE void sums(const Vec* v, float* to) {
#if defined(__AVX2__) && defined(__FMA__) && !defined(__AVX512F__)
  const auto halves = [](Vec a, Vec b) {
    return _mm256_permute2f128_ps(a, b, 0x20) + _mm256_permute2f128_ps(a, b, 0x31);
  };
  const __m256d ab = (__m256d)halves(v[0], v[1]), cd = (__m256d)halves(v[2], v[3]);
  const Vec pairs = (Vec)_mm256_unpacklo_pd(ab, cd) + (Vec)_mm256_unpackhi_pd(ab, cd);  // a a c c, b b d d
  const __m128 ac = _mm256_castps256_ps128(pairs), bd = _mm256_extractf128_ps(pairs, 1);
  const __m128 acbd = _mm_shuffle_ps(ac, bd, 0x88) + _mm_shuffle_ps(ac, bd, 0xDD);
  _mm_storeu_ps(to, _mm_shuffle_ps(acbd, acbd, 0xD8));
#else
  UNROLL for (int i = 0; i < 4; i++) to[i] = sum(v[i]);
#endif
}

INLINE float largest(Vec v) {
  float t[LANES], m;
  store(t, v);
  m = t[0];
  for (int i = 1; i < LANES; i++) m = t[i] > m ? t[i] : m;
  return m;
}

// The polynomial with these coefficients, the highest power first.
template <class... Floats>
INLINE Vec horner(Vec x, float highest, Floats... rest) {
  Vec p = all(highest), q;
  ((q = all(rest), fma(q, p, x), p = q), ...);
  return p;
}

// e^x to about 2 units in the last place; 0 below -87, the end of normal floats, and capped above 88. e^0 is exactly 1.
INLINE Vec exp(Vec x) {
  const Vec low = all(-87.f), high = all(88.f), in = x < low ? low : x > high ? high : x;
  Vec t = all(12582912.f);  // 1.5 * 2^23: adding it rounds to an integer, which is then in the low bits
  fma(t, in, all(1.44269504f));
  const Vec n = t - all(12582912.f);
  Vec r = in;
  fma(r, n, all(-0.693359375f));  // ln 2 in two parts
  fma(r, n, all(2.12194440e-4f));
  const Vec q = horner(r, 1.9875691500e-4f, 1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f,
                       5.0000001201e-1f);
  Vec p = all(1.f) + r;
  fma(p, q, r * r);
  const Vec y = p * (Vec)(((Ints)t - (0x4B400000 - 127)) << 23);
  return x < low ? Vec{} : y;
}
