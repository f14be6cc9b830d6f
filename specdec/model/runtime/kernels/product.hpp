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
#include <vector>

#include "blocks.hpp"

enum { MANY = 10 };  // rows from which on weights are widened into a panel first

struct Widened : Float32 {  // weights in the cache
  using Float32::Float32;
  enum { STREAMS = false };
};

template <class W, int... c>
INLINE std::array<W, sizeof...(c)> rows_of(const Matrix& m, int64_t k, int64_t o, int64_t apart,
                                           std::integer_sequence<int, c...>) {
  return {W(m, k, o + c * apart)...};
}

// acc[r][c] += x[r] * w[c], lane by lane, over rows of k numbers. Each step also prefetches a line for each of the C
// weight rows: for the first at `ahead`, which advances by `pace` bytes per step; `between` is from row to row.
template <class W, int R, int C>
INLINE void add_up(Vec (&acc)[R][C], const float* x, int64_t k, std::array<W, C>& w, const char* ahead, size_t pace,
                   int64_t between) {
  const int64_t whole = k / LANES * LANES, part = k - whole;
  for (int64_t i = 0; i < whole; i += LANES, ahead += pace) {  // not unrolled, which would spill registers
    if (R > 1 && W::STREAMS) UNROLL for (int c = 0; c < C; c++) __builtin_prefetch(ahead + c * between);
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
}

// The same for weights in blocks. Their bytes are few and arithmetic takes longer, so nothing is prefetched.
template <class W, int R, int C>
INLINE void add_up_blocks(Vec (&acc)[R][C], const float* x, int64_t k, std::array<W, C>& w) {
  for (int64_t i = 0; i < k; i += CHUNK) {
    const int64_t n = k - i < CHUNK ? k - i : int64_t(CHUNK);
    UNROLL for (int c = 0; c < C; c++) w[c].enter(i, n);
    for (int64_t b = 0; b < n / BLOCK; b++) {
      const float* from = x + i + b * BLOCK;
      UNROLL for (int v = 0; v < PARTS; v++) {
        Vec wv[C];
        UNROLL for (int c = 0; c < C; c++) {
          wv[c] = w[c].template at<(R > 2)>(i, b, v);
          ORDER(wv[c]);
        }
        UNROLL for (int r = 0; r < R; r++) {
          Vec xv = load(from + r * k + v * LANES);
          if (C > 1) ORDER(xv);
          UNROLL for (int c = 0; c < C; c++) fma(acc[r][c], xv, wv[c]);
        }
      }
    }
  }
}

// Compute y[r, o + c * apart] for R rows and C outputs that are `apart` from each other, with all accumulators in
// registers; `ahead` and `pace` as in `add_up`. A function of its own, or the compiler runs out of registers.
template <class W, int R, int C>
__attribute__((noinline)) static void tile(const float* x, int64_t k, const Matrix& m, int64_t o, int64_t apart,
                                           float* y, int64_t stride, const char* ahead, size_t pace) {
  Vec acc[R][C];
  UNROLL for (int r = 0; r < R; r++) UNROLL for (int c = 0; c < C; c++) acc[r][c] = Vec{};
  auto w = rows_of<W>(m, k, o, apart, std::make_integer_sequence<int, C>{});
  if constexpr (W::BLOCKED) add_up_blocks<W, R, C>(acc, x, k, w);
  else add_up<W, R, C>(acc, x, k, w, ahead, pace, apart * W::bytes(k));
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
// are cut into W::C runs (more for a single row) that are read side by side, because memory delivers several streams
// faster than one. A panel of a few weight rows per run stays in the first-level cache, while one group of at most
// W::R rows after the other is multiplied with it.
template <class W>
static void outputs(const float* x, int64_t rows, int64_t k, const Matrix& m, float* y, int64_t stride, int64_t begin,
                    int64_t end) {
  // PANEL: weight rows of a run in the cache. DISTANCE: bytes that are prefetched ahead.
  enum { PANEL = 4, DISTANCE = 16 << 10 };
  const int64_t groups = (rows + W::R - 1) / W::R;
  const size_t pace = k < LANES ? 0 : W::bytes(k) / (k / LANES) / groups;  // all passes over a panel prefetch one panel
  auto run = [&](auto columns, int64_t first, int64_t length) {
    enum { C = decltype(columns)::value, R = C > W::C ? 1 : int(W::R) };
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
  const int columns = rows == 1 ? int(W::WIDE) : int(W::C);
  const int64_t length = (end - begin) / columns, rest = begin + length * columns;
  if (columns == W::C) run(std::integral_constant<int, W::C>{}, begin, length);
  else run(std::integral_constant<int, W::WIDE>{}, begin, length);
  run(std::integral_constant<int, 1>{}, rest, end - rest);
}

// Widen weight row `o` to k floats.
template <class W>
static void widen_row(const Matrix& m, int64_t k, int64_t o, float* to) {
  W w(m, k, o);
  if constexpr (W::BLOCKED) {
    for (int64_t i = 0; i < k; i += CHUNK) {
      const int64_t n = k - i < CHUNK ? k - i : int64_t(CHUNK);
      w.enter(i, n);
      for (int64_t b = 0; b < n / BLOCK; b++)
        UNROLL for (int v = 0; v < PARTS; v++) store(to + i + b * BLOCK + v * LANES, w.template at<false>(i, b, v));
    }
  } else {
    int64_t i = 0;
    for (; i + LANES <= k; i += LANES) store(to + i, w.at(i) * all(w.finish(1)));
    for (; i < k; i++) to[i] = w.finish(w.one(i));
  }
}

// Many rows: a panel of weight rows is widened once, then multiplied with all rows. The sums are the same.
template <class W>
static void outputs_by_panels(const float* x, int64_t rows, int64_t k, const Matrix& m, float* y, int64_t stride,
                              int64_t begin, int64_t end) {
  enum { PANEL = 4 * COLS };
  thread_local std::vector<float> panel;
  if (int64_t(panel.size()) < PANEL * k) panel.resize(PANEL * k);
  for (int64_t o = begin; o < end; o += PANEL) {
    const int64_t n = end - o < PANEL ? end - o : int64_t(PANEL);
    for (int64_t i = 0; i < n; i++) widen_row<W>(m, k, o + i, panel.data() + i * k);
    const Matrix widened{panel.data(), nullptr, m.bias ? m.bias + o : nullptr, n, FLOAT32};
    outputs<Widened>(x, rows, k, widened, y + o, stride, 0, n);
  }
}

// Call `use` with the format of a matrix, as std::common_type<W>.
template <class Use>
INLINE void in_format(const Matrix& m, Use use) {
  switch (m.kind) {
    case FLOAT32:
      return use(std::common_type<Float32>{});
    case BFLOAT16:
      return use(std::common_type<BFloat16>{});
    case FLOAT16:
      return use(std::common_type<Float16>{});
    case INT8:
      return use(std::common_type<Int8>{});
    case INT4:
      return use(std::common_type<Int4>{});
    case Q4_0:
      return use(std::common_type<BlocksQ4_0>{});
    case Q4_1:
      return use(std::common_type<BlocksQ4_1>{});
    case Q8_0:
      return use(std::common_type<BlocksQ8_0>{});
    case Q4_K:
      return use(std::common_type<BlocksQ4_K>{});
    case Q5_K:
      return use(std::common_type<BlocksQ5_K>{});
    default:
      return use(std::common_type<BlocksQ6_K>{});
  }
}

static void outputs(const float* x, int64_t rows, int64_t k, const Matrix& m, float* y, int64_t stride, int64_t begin,
                    int64_t end) {
  if (begin >= end || !rows) return;
  in_format(m, [&](auto format) {
    using W = typename decltype(format)::type;
    if (W::PANELS && rows >= MANY) outputs_by_panels<W>(x, rows, k, m, y, stride, begin, end);
    else outputs<W>(x, rows, k, m, y, stride, begin, end);
  });
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
