// Attention of the nodes of a token tree to the committed prefix and to their ancestors, on the KV cache.
//
// A node sees a text: the prefix, then its ancestors in order. The sum over that text is cut into pieces at fixed
// positions. Within a piece it runs from left to right, whether a position is committed or still a node of the tree.
// So a node's result is bit for bit the same as if its text were committed: verifying a tree and decoding token by
// token agree exactly.
#pragma once
#include <cmath>
#include <vector>

#include "product.hpp"

enum { PIECE = 128, NODES = 32 };  // positions of a text, and nodes, that one thread processes at a time

struct Heads {
  int64_t heads, kv_heads, dim;  // dim is a multiple of LANES
  float scale;
};

struct Texts {               // the texts that the nodes of this forward see
  int64_t batch, block, nodes;  // texts; nodes of the whole block; new nodes, the last ones of the block
  const int64_t* lengths;    // [batch] committed positions
  const uint8_t* mask;       // [batch, nodes, block] the block nodes that a node sees; null: all up to itself
  int64_t capacity;          // slots of a row of the cache
  int64_t rows;              // computed nodes, of the batch * nodes new ones; the others are padding
  const int64_t* at;         // [rows] the computed nodes in order, each as text * nodes + node

  int64_t text(int64_t row) const { return at[row] / nodes; }
  int64_t place(int64_t row) const { return block - nodes + at[row] % nodes; }  // index in the block

  int64_t pieces(int64_t text) const { return (lengths[text] + block + PIECE - 1) / PIECE; }
  int64_t most_pieces() const {
    int64_t most = 0;
    for (int64_t b = 0; b < batch; b++) most = pieces(b) > most ? pieces(b) : most;
    return most;
  }
  bool sees(int64_t row, int64_t other) const { return mask[at[row] * block + other]; }
};

// Size of a head's state after one piece of its text: out [dim], the largest score, the sum of weights.
INLINE int64_t state_size(const Heads& h) { return h.dim + 2; }

// acc[r] += sum over `count` positions of weights[r][s] * values[s], from left to right, for R rows.
template <int R>
INLINE void weigh(const float* weights, int64_t stride, const float* values, int64_t count, int64_t dim, float** acc) {
  enum { MOST = ROWS * COLS / R < 4 ? ROWS * COLS / R : 4 };  // vectors of dim at a time
  auto part = [&](auto width, int64_t d) __attribute__((always_inline)) {
    enum { W = decltype(width)::value };
    Vec a[R][W];
    UNROLL for (int r = 0; r < R; r++) UNROLL for (int i = 0; i < W; i++) a[r][i] = load(acc[r] + d + i * LANES);
    for (int64_t s = 0; s < count; s++) {
      Vec v[W];
      UNROLL for (int i = 0; i < W; i++) v[i] = load(values + s * dim + d + i * LANES);
      UNROLL for (int r = 0; r < R; r++) {
        const Vec w = all(weights[r * stride + s]);
        UNROLL for (int i = 0; i < W; i++) fma(a[r][i], w, v[i]);
      }
    }
    UNROLL for (int r = 0; r < R; r++) UNROLL for (int i = 0; i < W; i++) store(acc[r] + d + i * LANES, a[r][i]);
  };
  int64_t d = 0;
  for (; d + MOST * LANES <= dim; d += MOST * LANES) part(std::integral_constant<int, MOST>{}, d);
  for (; d < dim; d += LANES) part(std::integral_constant<int, 1>{}, d);
}

// Attend to one piece of a text, for `size` of its nodes (rows from `first` on) and the query heads of KV head `g`.
// q [rows, heads, dim]; keys, values [batch, kv_heads, capacity, dim]; states [rows, heads, pieces, size].
static void attend(const Heads& h, const Texts& t, const float* q, const float* keys, const float* values, int64_t g,
                   int64_t piece, int64_t pieces, int64_t first, int64_t size, float* states) {
  const int64_t group = h.heads / h.kv_heads, rows = size * group, begin = piece * PIECE;
  const int64_t text = t.text(first), prefix = t.lengths[text];
  const float* k = keys + (text * h.kv_heads + g) * t.capacity * h.dim;
  const float* v = values + (text * h.kv_heads + g) * t.capacity * h.dim;
  auto clip = [](int64_t n) { return n < 0 ? 0 : n < PIECE ? n : int64_t(PIECE); };

  // For each node, its text in this piece, as [contiguous, single, nodes...]:
  //   contiguous   number of positions that are contiguous in the cache: the prefix, and all of a causal block
  //   single       number of block nodes that it sees one by one, followed by these nodes
  thread_local std::vector<int64_t> places;
  const int64_t width = t.block + 2;
  if (int64_t(places.size()) < size * width) places.resize(size * width);
  int64_t longest = 0;
  for (int64_t i = 0; i < size; i++) {
    int64_t *place = &places[i * width], position = prefix, single = 0;
    if (t.mask) {
      for (int64_t j = 0; j < t.block; j++)
        if (t.sees(first + i, j)) {
          if (position >= begin && position < begin + PIECE) place[2 + single++] = j;
          position++;
        }
    }
    place[0] = clip((t.mask ? prefix : prefix + t.place(first + i) + 1) - begin);
    place[1] = single;
    longest = place[0] > longest ? place[0] : longest;
  }

  thread_local std::vector<float> scratch;
  if (int64_t(scratch.size()) < rows * (h.dim + PIECE)) scratch.resize(rows * (h.dim + PIECE));
  float *queries = scratch.data(), *scores = queries + rows * h.dim;
  for (int64_t i = 0; i < size; i++)  // a group's heads are neighbours
    memcpy(queries + i * group * h.dim, q + ((first + i) * h.heads + g * group) * h.dim, group * h.dim * sizeof(float));
  const Matrix slots{k, nullptr, nullptr, t.capacity, FLOAT32};
  outputs(queries, rows, h.dim, slots, scores - begin, PIECE, begin, begin + longest);
  auto state = [&](int64_t r) {
    return states + (((first + r / group) * h.heads + g * group + r % group) * pieces + piece) * state_size(h);
  };
  for (int64_t r = 0; r < rows; r++) {
    const int64_t *place = &places[r / group * width], count = place[0] + place[1];
    float *s = scores + r * PIECE, *to = state(r);
    for (int64_t j = 0; j < place[1]; j++)
      tile<Float32, 1, 1>(queries + r * h.dim, h.dim, slots, prefix + place[2 + j], 0,
                          s + place[0] + j - (prefix + place[2 + j]), 1, nullptr, 0);
    for (int64_t j = count; j < PIECE; j++) s[j] = -INFINITY;
    Vec most = all(-INFINITY), total{};
    for (int64_t j = 0; j < count; j += LANES) {
      const Vec scaled = load(s + j) * all(h.scale);
      store(s + j, scaled);
      most = max(scaled, most);
    }
    const float m = largest(most);
    for (int64_t j = 0; j < count; j += LANES) {
      const Vec e = exp(load(s + j) - all(m));
      store(s + j, e);
      total += e;
    }
    memset(to, 0, h.dim * sizeof(float));
    to[h.dim] = m;
    to[h.dim + 1] = sum(total);
  }
  enum { TOGETHER = 3 };  // heads that are computed in one pass over the values
  for (int64_t r = 0; r < rows;) {
    const int64_t* place = &places[r / group * width];
    float* to[TOGETHER] = {state(r)};
    const float* s = scores + r * PIECE;
    const bool together = r + TOGETHER <= rows && r / group == (r + TOGETHER - 1) / group;
    for (int i = 1; together && i < TOGETHER; i++) to[i] = state(r + i);
    auto add = [&](const float* weights, int64_t at, int64_t count) {
      if (together) weigh<TOGETHER>(weights, PIECE, v + at * h.dim, count, h.dim, to);
      else weigh<1>(weights, PIECE, v + at * h.dim, count, h.dim, to);
    };
    if (place[0]) add(s, begin, place[0]);
    for (int64_t j = 0; j < place[1]; j++) add(s + place[0] + j, prefix + place[2 + j], 1);
    r += together ? TOGETHER : 1;
  }
}

// Combine the pieces of one head's text: out [dim] from states [pieces, size].
static void combine(const Heads& h, const float* states, int64_t pieces, float* out) {
  const int64_t size = state_size(h);
  float most = -INFINITY, total = 0;
  for (int64_t p = 0; p < pieces; p++) most = states[p * size + h.dim] > most ? states[p * size + h.dim] : most;
  for (int64_t d = 0; d < h.dim; d += LANES) store(out + d, Vec{});
  for (int64_t p = 0; p < pieces; p++) {
    const float* s = states + p * size;
    if (s[h.dim + 1] == 0) continue;  // an empty piece: this node's text ends before it
    float t[LANES];
    store(t, exp(all(s[h.dim] - most)));
    total += s[h.dim + 1] * t[0];
    for (int64_t d = 0; d < h.dim; d += LANES) {
      Vec o = load(out + d);
      fma(o, load(s + d), all(t[0]));
      store(out + d, o);
    }
  }
  for (int64_t d = 0; d < h.dim; d += LANES) store(out + d, load(out + d) / all(total));
}
