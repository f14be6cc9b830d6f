// y[r, o] = sum_k x[r, k] * w[o, k] (+ bias[o])   for a FEW rows r and a LARGE row-major w.
//
// With few rows the product is a single pass over w from main memory. Every byte of w is read from memory
// once. With more than one row, software prefetches of the next bytes are spread evenly over the
// arithmetic, so that neither waits for the other. Weights of lower precision are widened in registers.
//
// For each (r, o) the order of the sum is fixed: LANES partial sums, lane j over k = j, j+LANES, ...
// (the last, short step padded with zeros), then one fixed tree over the lanes. Tile sizes, row grouping
// and thread count only choose WHICH pairs are computed together. So a row's result is bit for bit the
// same, however many rows are computed together.
#pragma once
#ifdef _OPENMP
#include <omp.h>
#endif
#include <array>
#include <type_traits>
#include <utility>

#include "vector.hpp"

enum Kind : int64_t { FLOAT32, BFLOAT16, INT8, INT4 };
enum { GROUP = 32 };  // int4 weights that share a scale

struct Matrix {        // one weight matrix; few_rows.py builds these
  const void* w;       // [n, k] row-major; int4: GROUP / 2 bytes a group, weight i in the low half of byte i,
                       // weight i + GROUP / 2 in its high half, both offset by 8, the last group padded
  const float* scale;  // int8: [n], int4: [n, groups], else null
  const float* bias;   // [n] or null
  int64_t n, kind;
};

// Storage formats of a row of weights. `at` reads LANES weights as floats, `one` a single one; `finish` scales a sum.
struct Float32 {
  const float* w;
  Float32(const Matrix& m, int64_t k, int64_t o) : w((const float*)m.w + o * k) {}
  static int64_t bytes(int64_t k) { return k * 4; }
  Vec at(int64_t i) const { return load(w + i); }
  float one(int64_t i) const { return w[i]; }
  float finish(float sum) const { return sum; }
};
struct BFloat16 {  // the upper half of a float
  const uint16_t* w;
  BFloat16(const Matrix& m, int64_t k, int64_t o) : w((const uint16_t*)m.w + o * k) {}
  static int64_t bytes(int64_t k) { return k * 2; }
  Vec at(int64_t i) const { return (Vec)(widen(w + i) << 16); }
  float one(int64_t i) const {
    const uint32_t bits = uint32_t(w[i]) << 16;
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
  }
  float finish(float sum) const { return sum; }
};
struct Int8 {
  const int8_t* w;
  float scale;
  Int8(const Matrix& m, int64_t k, int64_t o) : w((const int8_t*)m.w + o * k), scale(m.scale[o]) {}
  static int64_t bytes(int64_t k) { return k; }
  Vec at(int64_t i) const { return __builtin_convertvector(widen(w + i), Vec); }
  float one(int64_t i) const { return float(w[i]); }
  float finish(float sum) const { return sum * scale; }
};
struct Int4 {
  const uint8_t* w;
  const float* scale;
  Int4(const Matrix& m, int64_t k, int64_t o)
      : w((const uint8_t*)m.w + o * bytes(k)), scale(m.scale + o * (bytes(k) / HALF)) {}
  static int64_t bytes(int64_t k) { return (k + GROUP - 1) / GROUP * HALF; }
  Vec at(int64_t i) const {
    const Ints codes = widen(w + i / GROUP * HALF + i % HALF) >> (i & HALF ? 4 : 0) & 15;
    return __builtin_convertvector(codes - 8, Vec) * all(scale[i / GROUP]);
  }
  float one(int64_t i) const {
    const uint8_t code = w[i / GROUP * HALF + i % HALF];
    return float((i & HALF ? code >> 4 : code & 15) - 8) * scale[i / GROUP];
  }
  float finish(float sum) const { return sum; }
  enum { HALF = GROUP / 2 };
};

template <class W, int... c>
INLINE std::array<W, sizeof...(c)> rows_of(const Matrix& m, int64_t k, int64_t o, int64_t apart,
                                           std::integer_sequence<int, c...>) {
  return {W(m, k, o + c * apart)...};
}

// Compute y[r, o + c * apart] for R rows and C outputs that are `apart` from each other, with all accumulators in
// registers. Each step along k also prefetches a line for each of the C weight rows: for the first at `ahead`, which
// advances by `pace` bytes per step. A function of its own, or the compiler runs out of registers.
template <class W, int R, int C>
__attribute__((noinline)) static void tile(const float* x, int64_t k, const Matrix& m, int64_t o, int64_t apart,
                                           float* y, int64_t stride, const char* ahead, size_t pace) {
  Vec acc[R][C];
  UNROLL for (int r = 0; r < R; r++) UNROLL for (int c = 0; c < C; c++) acc[r][c] = Vec{};
  auto w = rows_of<W>(m, k, o, apart, std::make_integer_sequence<int, C>{});
  const int64_t whole = k / LANES * LANES, part = k - whole, between = apart * W::bytes(k);
  for (int64_t i = 0; i < whole; i += LANES, ahead += pace) {  // not unrolled, which would spill registers
    if (R > 1) UNROLL for (int c = 0; c < C; c++) __builtin_prefetch(ahead + c * between);
    Vec wv[C];
    UNROLL for (int c = 0; c < C; c++) {
      wv[c] = w[c].at(i);
      KEEP(wv[c]);
    }
    UNROLL for (int r = 0; r < R; r++) {
      Vec xv = load(x + r * k + i);
      KEEP(xv);
      UNROLL for (int c = 0; c < C; c++) fma(acc[r][c], xv, wv[c]);
    }
  }
  if (part) {  // the last values of each row, padded with zeros
    float xp[R][LANES] = {}, wp[C][LANES] = {};
    for (int r = 0; r < R; r++) memcpy(xp[r], x + r * k + whole, part * sizeof(float));
    for (int c = 0; c < C; c++)
      for (int64_t i = 0; i < part; i++) wp[c][i] = w[c].one(whole + i);
    UNROLL for (int r = 0; r < R; r++) UNROLL for (int c = 0; c < C; c++) fma(acc[r][c], load(xp[r]), load(wp[c]));
  }
  enum { TOGETHER = R % 4 ? 1 : 4 };  // rows whose lanes are summed at the same time
  UNROLL for (int r = 0; r < R; r += TOGETHER) UNROLL for (int c = 0; c < C; c++) {
    float total[TOGETHER];
    if constexpr (TOGETHER == 4) {
      const Vec four[] = {acc[r][c], acc[r + 1][c], acc[r + 2][c], acc[r + 3][c]};
      sums(four, total);
    } else total[0] = sum(acc[r][c]);
    UNROLL for (int i = 0; i < TOGETHER; i++) {
      const float v = w[c].finish(total[i]);
      y[(r + i) * stride + o + c * apart] = m.bias ? v + m.bias[o + c * apart] : v;
    }
  }
}

template <class W, int R, int C>
INLINE void tiles(int r, const float* x, int64_t k, const Matrix& m, int64_t o, int64_t apart, float* y, int64_t stride,
                  const char* ahead, size_t pace) {
  if constexpr (R > 1)
    if (r < R) return tiles<W, R - 1, C>(r, x, k, m, o, apart, y, stride, ahead, pace);
  tile<W, R, C>(x, k, m, o, apart, y, stride, ahead, pace);
}

// Compute outputs [begin, end) of one matrix for all rows, in one thread; y has `stride` floats per row. The outputs
// are cut into COLS runs (more for a single row) that are read side by side, because memory delivers several streams
// faster than one. A panel of a few weight rows per run stays in the first-level cache, while one group of at most
// ROWS rows after the other is multiplied with it.
template <class W>
static void outputs(const float* x, int64_t rows, int64_t k, const Matrix& m, float* y, int64_t stride, int64_t begin,
                    int64_t end) {
  // WIDE: runs for a single row. PANEL: weight rows of a run in the cache. DISTANCE: bytes that are prefetched ahead.
  enum { WIDE = ROWS * COLS / 2, PANEL = 4, DISTANCE = 16 << 10 };
  const int64_t groups = (rows + ROWS - 1) / ROWS;
  const size_t pace = k < LANES ? 0 : W::bytes(k) / (k / LANES) / groups;  // all passes over a panel prefetch one panel
  auto run = [&](auto columns, int64_t first, int64_t length) {
    enum { C = decltype(columns)::value, R = C > COLS ? 1 : ROWS };
    for (int64_t p = first; p < first + length; p += PANEL) {
      const int64_t past = first + length - p < PANEL ? first + length : p + PANEL;
      const char* ahead = (const char*)m.w + p * W::bytes(k) + DISTANCE;
      for (int64_t g = 0; g < groups; g++) {
        const int64_t row = rows * g / groups, r = rows * (g + 1) / groups - row;
        for (int64_t o = p; o < past; o++, ahead += pace * (k / LANES))
          tiles<W, R, C>(r, x + row * k, k, m, o, length, y + row * stride, stride, ahead, pace);
      }
    }
  };
  const int columns = rows == 1 ? int(WIDE) : int(COLS);
  const int64_t length = (end - begin) / columns, rest = begin + length * columns;
  if (columns == COLS) run(std::integral_constant<int, COLS>{}, begin, length);
  else run(std::integral_constant<int, WIDE>{}, begin, length);
  run(std::integral_constant<int, 1>{}, rest, end - rest);
}

static void outputs(const float* x, int64_t rows, int64_t k, const Matrix& m, float* y, int64_t stride, int64_t begin,
                    int64_t end) {
  if (begin >= end || !rows) return;
  if (m.kind == FLOAT32) outputs<Float32>(x, rows, k, m, y, stride, begin, end);
  else if (m.kind == BFLOAT16) outputs<BFloat16>(x, rows, k, m, y, stride, begin, end);
  else if (m.kind == INT8) outputs<Int8>(x, rows, k, m, y, stride, begin, end);
  else outputs<Int4>(x, rows, k, m, y, stride, begin, end);
}

struct Share {  // a part of a range
  int64_t begin, end;
};

struct Thread {  // this thread of a parallel region, or the only one
  int64_t id = 0, count = 1;

  Thread() {
#ifdef _OPENMP
    id = omp_get_thread_num(), count = omp_get_num_threads();
#endif
  }
  Share share(int64_t total) const { return {total * id / count, total * (id + 1) / count}; }
  void wait() const {  // until all threads are here
#ifdef _OPENMP
#pragma omp barrier
#endif
  }
};

// Compute one thread's share of several products of the same x [rows, k]. The outputs of all products together are
// divided among the threads; ys[i] receives the product [rows, n] of matrix i.
INLINE void products(const float* x, int64_t rows, int64_t k, float* const* ys, const Matrix* ms, int count,
                     const Thread& thread) {
  int64_t total = 0;
  for (int i = 0; i < count; i++) total += ms[i].n;
  Share mine = thread.share(total);
  for (int i = 0; i < count; mine.begin -= ms[i].n, mine.end -= ms[i].n, i++) {
    const int64_t b = mine.begin > 0 ? mine.begin : 0, e = mine.end < ms[i].n ? mine.end : ms[i].n;
    outputs(x, rows, k, ms[i], ys[i], ms[i].n, b, e);
  }
}
