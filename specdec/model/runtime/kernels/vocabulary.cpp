// Single passes over rows as long as the vocabulary, without temporaries.
#include <cmath>
#include <limits>
#include <vector>

#include "vector.hpp"

enum { BLOCK = 1024 };  // values that are added up in fp32; the blocks' sums are added up in double

// Load the first `count` of LANES values; the others are 0.
INLINE Vec load(const float* p, int64_t count) {
  if (count >= LANES) return load(p);
  float t[LANES] = {};
  memcpy(t, p, count * sizeof(float));
  return load(t);
}

// Add up term(i, n), a vector of the values from i on, of which only the first n are not 0 (n < LANES at the end).
template <class Term>
static double add_up(int64_t begin, int64_t end, Term term) {
  enum { WAYS = 4 };  // partial sums, to hide the latency of additions
  double total = 0;
  while (begin < end) {
    const int64_t stop = end - begin < BLOCK ? end : begin + BLOCK;
    Vec acc[WAYS] = {};
    for (; begin + WAYS * LANES <= stop; begin += WAYS * LANES)
      UNROLL for (int w = 0; w < WAYS; w++) acc[w] += term(begin + w * LANES, int64_t(LANES));
    for (; begin < stop; begin += LANES) acc[0] += term(begin, stop - begin);
    begin = stop;
    total += sum((acc[0] + acc[1]) + (acc[2] + acc[3]));
  }
  return total;
}

// Natural logarithm of normal positive numbers, to about 2 units in the last place.
INLINE Vec log(Vec x) {
  // x = 2^e m with m in [sqrt(1/2), sqrt(2))
  const Ints bits = (Ints)x - 0x3F3504F3;
  const Ints e = bits >> 23;
  const Vec m = (Vec)((bits & 0x7FFFFF) + 0x3F3504F3) - all(1.f), z = m * m;
  const Vec p = horner(m, 7.0376836292e-2f, -1.1514610310e-1f, 1.1676998740e-1f, -1.2420140846e-1f, 1.4249322787e-1f,
                       -1.6668057665e-1f, 2.0000714765e-1f, -2.4999993993e-1f, 3.3333331174e-1f);
  const Vec n = __builtin_convertvector(e, Vec);
  Vec y = p * m * z;
  fma(y, n, all(-2.12194440e-4f));  // ln 2 in two parts
  fma(y, z, all(-0.5f));
  y += m;
  fma(y, n, all(0.693359375f));
  return y;
}

// The sum over x of relu(p[x] - times * q[x]), leaving out the `count` tokens of `without`. A null q: the sum of p.
extern "C" double mass(int64_t vocab, const float* p, const float* q, double times, const int64_t* without,
                       int64_t count) {
  const Vec c = all(float(-times));
  double total = 0;
  for (int64_t begin = 0, end; begin < vocab; begin = end + 1) {
    end = vocab;
    for (int64_t k = 0; k < count; k++)
      if (without[k] >= begin && without[k] < end) end = without[k];
    if (!q) total += add_up(begin, end, [&](int64_t i, int64_t n) { return load(p + i, n); });
    else
      total += add_up(begin, end, [&](int64_t i, int64_t n) {
        Vec left = load(p + i, n);
        fma(left, c, load(q + i, n));
        return max(left, Vec{});
      });
  }
  return total;
}

// -sum p log p, in nats
extern "C" double entropy(int64_t vocab, const float* p) {
  const Vec tiny = all(std::numeric_limits<float>::min());
  return -add_up(0, vocab, [&](int64_t i, int64_t n) {
    const Vec v = load(p + i, n);
    return v * log(max(v, tiny));
  });
}

// The first index whose cumulative sum exceeds u times the whole, for u in [0, 1): never one where p is 0.
extern "C" int64_t pick(int64_t vocab, const float* p, double u) {
  thread_local std::vector<double> blocks;
  blocks.clear();
  double total = 0, below = 0;
  for (int64_t begin = 0; begin < vocab; begin += BLOCK) {
    const int64_t end = begin + BLOCK < vocab ? begin + BLOCK : vocab;
    blocks.push_back(add_up(begin, end, [&](int64_t i, int64_t n) { return load(p + i, n); }));
    total += blocks.back();
  }
  const double goal = u * total;
  size_t b = 0;
  while (b + 1 < blocks.size() && below + blocks[b] <= goal) below += blocks[b++];
  const int64_t begin = b * BLOCK, end = begin + BLOCK < vocab ? begin + BLOCK : vocab;
  int64_t last = end - 1;  // the result if rounding leaves the block's end below the goal
  for (int64_t i = begin; i < end; i++) {
    below += p[i];
    if (below > goal) return i;
    if (p[i] > 0) last = i;
  }
  return last;
}

static int64_t argmax(int64_t vocab, const float* x) {
  float highest = -INFINITY;
  int64_t at = 0;
  bool number = true;
  for (int64_t begin = 0; begin < vocab; begin += BLOCK) {
    const int64_t end = begin + BLOCK < vocab ? begin + BLOCK : vocab;
    Vec most = all(-INFINITY);
    Ints wrong{};
    int64_t i = begin;
    for (; i + LANES <= end; i += LANES) {
      const Vec v = load(x + i);
      most = max(most, v);
      wrong |= v != v;
    }
    float m = largest(most);
    for (; i < end; i++) {
      m = x[i] > m ? x[i] : m;
      number &= x[i] == x[i];
    }
    for (int lane = 0; lane < LANES; lane++) number &= !wrong[lane];
    if (m > highest) highest = m, at = begin;
  }
  if (!number || !std::isfinite(highest)) return -1;
  while (x[at] != highest) at++;
  return at;
}

// The first index of the largest value of each row; -1 if that value is infinite or the row holds a NaN.
extern "C" void argmaxes(int64_t rows, int64_t vocab, const float* x, int64_t stride, int64_t* best) {
#pragma omp parallel for if (rows > 1)
  for (int64_t r = 0; r < rows; r++) best[r] = argmax(vocab, x + r * stride);
}
