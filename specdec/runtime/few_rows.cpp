// y[r, o] = sum_k x[r, k] * w[o, k] (+ bias[o])   for a FEW rows r and a LARGE row-major w.
//
// With few rows the product is a single pass over w from main memory, so the kernel is built
// around that stream: every byte of w is read from memory once, and the software prefetch of
// the bytes to come is spread evenly over the arithmetic, so neither waits for the other.
//
// For each (r, o) the sum is always the same: LANES partial sums, lane j taking k = j, j+LANES,
// ... in order (the last, short step padded with zeros), then one fixed tree over the lanes.
// Tile sizes, row grouping and thread count only choose WHICH pairs are computed together, so
// a row's result does not depend, bit for bit, on how many rows travel with it.
#include <cstddef>
#include <cstdint>
#include <cstring>
#ifdef _OPENMP
#include <omp.h>
#endif

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

// ---- One vector of floats. LANES floats; ROWS x COLS is the register tile (ROWS * COLS
// accumulators, COLS weights and one x must fit in the machine's vector registers).
#if defined(__AVX512F__)
#include <immintrin.h>
using Vec = __m512;
enum { LANES = 16, ROWS = 8, COLS = 3 };
INLINE Vec zero() { return _mm512_setzero_ps(); }
INLINE Vec load(const float* p) { return _mm512_loadu_ps(p); }
INLINE void fma(Vec& a, Vec b, Vec c) { a = _mm512_fmadd_ps(b, c, a); }
INLINE Vec load(const uint16_t* p) {  // bfloat16
  return _mm512_castsi512_ps(
      _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16));
}
INLINE Vec load(const int8_t* p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)));
}
#define KEEP(v) asm("" : "+v"(v))
#elif defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>
using Vec = __m256;
enum { LANES = 8, ROWS = 4, COLS = 3 };
INLINE Vec zero() { return _mm256_setzero_ps(); }
INLINE Vec load(const float* p) { return _mm256_loadu_ps(p); }
INLINE void fma(Vec& a, Vec b, Vec c) { a = _mm256_fmadd_ps(b, c, a); }
INLINE Vec load(const uint16_t* p) {  // bfloat16
  return _mm256_castsi256_ps(
      _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16));
}
INLINE Vec load(const int8_t* p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)));
}
#define KEEP(v) asm("" : "+x"(v))
#else  // NEON, or anything else the compiler has 16-byte vectors for (or emulates them)
typedef float Vec __attribute__((vector_size(16)));
#if defined(__aarch64__)
#include <arm_neon.h>
enum { LANES = 4, ROWS = 8, COLS = 3 };
INLINE void fma(Vec& a, Vec b, Vec c) { a = (Vec)vfmaq_f32((float32x4_t)a, (float32x4_t)b, (float32x4_t)c); }
#define KEEP(v) asm("" : "+w"(v))
#else
enum { LANES = 4, ROWS = 4, COLS = 2 };
INLINE void fma(Vec& a, Vec b, Vec c) { a += b * c; }
#define KEEP(v)
#endif
INLINE Vec zero() { return Vec{0, 0, 0, 0}; }
INLINE Vec load(const float* p) { Vec v; memcpy(&v, p, sizeof v); return v; }
INLINE Vec load(const uint16_t* p) {  // bfloat16
  uint32_t t[LANES];
  for (int i = 0; i < LANES; i++) t[i] = (uint32_t)p[i] << 16;
  Vec v; memcpy(&v, t, sizeof v); return v;
}
INLINE Vec load(const int8_t* p) { return Vec{(float)p[0], (float)p[1], (float)p[2], (float)p[3]}; }
#endif

// The fixed tree: halves are added until one number is left.
INLINE float sum(Vec v) {
  float t[LANES];
  memcpy(t, &v, sizeof t);
  UNROLL for (int n = LANES / 2; n; n /= 2)
    UNROLL for (int i = 0; i < n; i++) t[i] += t[i + n];
  return t[0];
}
#if defined(__AVX2__) && defined(__FMA__) && !defined(__AVX512F__)
#define sum sum_avx  // the same tree in registers
INLINE float sum_avx(Vec v) {
  __m128 a = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  a = _mm_add_ps(a, _mm_movehl_ps(a, a));
  return _mm_cvtss_f32(_mm_add_ss(a, _mm_movehdup_ps(a)));
}
#endif

struct Matrix {        // one weight matrix; few_rows.py builds these
  const void* w;       // [n, k] row-major
  const float* scale;  // [n] or null
  const float* bias;   // [n] or null
  int64_t n;
};

// R rows by C outputs, all accumulators in registers. Each step along k also prefetches the
// `ahead` stream: LINES cache lines at most, moving on by `step` bytes.
template <int R, int C, class W>
INLINE void tile(const float* x, const W* w, int64_t k, const Matrix& m, float* y, int64_t row,
                 int64_t out, const char* ahead, size_t step) {
  enum { LINES = (LANES * COLS * sizeof(W) + 63) / 64 };
  Vec acc[R][C];
  UNROLL for (int r = 0; r < R; r++) UNROLL for (int c = 0; c < C; c++) acc[r][c] = zero();
  auto steps = [&](const float* x, const W* w, int64_t stride, int64_t n) __attribute__((always_inline)) {
    for (int64_t i = 0; i < n; i += LANES, ahead += step) {  // not unrolled: that costs spills
      UNROLL for (int l = 0; l < LINES; l++) __builtin_prefetch(ahead + l * (step / LINES));
      Vec wv[C];  // KEEP stops the compiler from loading the same weights again for each row
      UNROLL for (int c = 0; c < C; c++) { wv[c] = load(w + c * stride + i); KEEP(wv[c]); }
      UNROLL for (int r = 0; r < R; r++) {
        Vec xv = load(x + r * stride + i);
        KEEP(xv);
        UNROLL for (int c = 0; c < C; c++) fma(acc[r][c], xv, wv[c]);
      }
    }
  };
  const int64_t whole = k / LANES * LANES, part = k - whole;
  steps(x, w, k, whole);
  if (part) {  // the last values of each row, padded with zeros
    float xp[R][LANES] = {};
    W wp[C][LANES] = {};
    for (int r = 0; r < R; r++) memcpy(xp[r], x + r * k + whole, part * sizeof(float));
    for (int c = 0; c < C; c++) memcpy(wp[c], w + c * k + whole, part * sizeof(W));
    steps(xp[0], wp[0], LANES, LANES);
  }
  UNROLL for (int r = 0; r < R; r++) UNROLL for (int c = 0; c < C; c++) {
    float v = sum(acc[r][c]);
    if (m.scale) v *= m.scale[out + c];
    if (m.bias) v += m.bias[out + c];
    y[(row + r) * m.n + out + c] = v;
  }
}

template <int R, class W>
static void tiles(int r, int c, const float* x, const W* w, int64_t k, const Matrix& m, float* y,
                  int64_t row, int64_t out, const char* ahead, size_t step) {
  if constexpr (R > 1) if (r < R) return tiles<R - 1, W>(r, c, x, w, k, m, y, row, out, ahead, step);
  if (c == COLS) tile<R, COLS, W>(x, w, k, m, y, row, out, ahead, step);
  else for (int i = 0; i < c; i++) tile<R, 1, W>(x, w + i * k, k, m, y, row, out + i, ahead, 0);
}

// Outputs [begin, end) of one matrix, all rows, by one thread. A panel of weight rows stays in
// the first-level cache while the groups of at most ROWS rows go over it one after another.
template <class W>
static void outputs(const float* x, int64_t rows, int64_t k, const Matrix& m, float* y,
                    int64_t begin, int64_t end) {
  enum { PANEL = 2 * COLS, DISTANCE = 32 << 10 };  // in weight rows; in bytes
  const W* w = (const W*)m.w;
  const int64_t groups = (rows + ROWS - 1) / ROWS;
  const size_t step = LANES * COLS * sizeof(W) / groups;  // a panel's passes prefetch a panel
  for (int64_t p = begin; p < end; p += PANEL) {
    const int64_t panel_end = p + PANEL < end ? p + PANEL : end;
    const char* ahead = (const char*)(w + p * k) + DISTANCE;
    for (int64_t g = 0; g < groups; g++) {
      const int64_t row = rows * g / groups, r = rows * (g + 1) / groups - row;
      for (int64_t o = p; o < panel_end; o += COLS) {
        const int c = panel_end - o < COLS ? int(panel_end - o) : int(COLS);
        const bool past = ahead >= (const char*)(w + end * k);  // nothing left to prefetch
        tiles<ROWS, W>(r, c, x + row * k, w + o * k, k, m, y, row, o, past ? (const char*)x : ahead, past ? 0 : step);
        ahead += step * (k / LANES);
      }
    }
  }
}

// `count` matrices with the same x [rows, k], their outputs dealt to the threads in one go;
// ys[i] takes the product [rows, n] of matrix i. kind: 0 float32, 1 bfloat16, 2 int8 weights.
extern "C" void few_rows(const float* x, int64_t rows, int64_t k, float* const* ys, const Matrix* ms,
                         int64_t count, int64_t kind) {
  int64_t total = 0;
  for (int64_t i = 0; i < count; i++) total += ms[i].n;
#pragma omp parallel if (total * k >= 1 << 15)
  {
    int64_t id = 0, threads = 1;
#ifdef _OPENMP
    id = omp_get_thread_num(), threads = omp_get_num_threads();
#endif
    int64_t first = total * id / threads, last = total * (id + 1) / threads;
    for (int64_t i = 0; i < count; first -= ms[i].n, last -= ms[i].n, i++) {
      const int64_t b = first > 0 ? first : 0, e = last < ms[i].n ? last : ms[i].n;  // none if b >= e
      if (kind == 0) outputs<float>(x, rows, k, ms[i], ys[i], b, e);
      else if (kind == 1) outputs<uint16_t>(x, rows, k, ms[i], ys[i], b, e);
      else outputs<int8_t>(x, rows, k, ms[i], ys[i], b, e);
    }
  }
}
