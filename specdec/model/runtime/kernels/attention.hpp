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

struct Texts {                  // the texts that the nodes of this forward see
  int64_t batch, block, nodes;  // texts; nodes of the whole block; new nodes, the last ones of the block
  const int64_t* lengths;       // [batch] committed positions
  const uint8_t* mask;          // [batch, nodes, block] the block nodes that a node sees; null: all up to itself
  int64_t capacity;             // slots of a row of the cache
  int64_t rows;                 // computed nodes, of the batch * nodes new ones; the others are padding
  const int64_t* at;            // [rows] the computed nodes in order, each as text * nodes + node

  int64_t text(int64_t row) const { return at[row] / nodes; }
  int64_t in_block(int64_t row) const { return block - nodes + at[row] % nodes; }

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

struct Attention {  // the inputs and outputs of one layer's attention
  const Heads& heads;
  const Texts& texts;
  const float* q;              // [rows, heads, dim]
  const float *keys, *values;  // [batch, kv_heads, capacity, dim]
  int64_t pieces;              // of the longest text
  float* states;               // [rows, heads, pieces, state_size]
};

struct Unit {              // the work of one thread at a time
  Share nodes;             // rows of one text
  int64_t kv_head, piece;  // their query heads of this KV head attend to this piece of the text

  int64_t size() const { return nodes.end - nodes.begin; }
  int64_t begin() const { return piece * PIECE; }  // first position
};

struct Visible {         // what one node sees of a piece
  int64_t contiguous;    // positions that are contiguous in the cache: the prefix, and all of a causal block
  int64_t single;        // nodes of the block that it sees one by one, after these
  const int64_t* nodes;  // [single]

  int64_t count() const { return contiguous + single; }
};

struct Scratch {  // memory of one thread; it only grows
  std::vector<Visible> visible;
  std::vector<int64_t> nodes;
  std::vector<float> queries, scores;  // [query heads of all nodes, dim], [query heads of all nodes, PIECE]

  void grow(int64_t size, int64_t group, int64_t block, int64_t dim) {
    if (int64_t(visible.size()) < size) visible.resize(size);
    if (int64_t(nodes.size()) < size * block) nodes.resize(size * block);
    if (int64_t(queries.size()) < size * group * dim) queries.resize(size * group * dim);
    if (int64_t(scores.size()) < size * group * PIECE) scores.resize(size * group * PIECE);
  }
};

// Find what each node of the unit sees.
static void look(const Texts& t, const Unit& u, Scratch& scratch) {
  const int64_t prefix = t.lengths[t.text(u.nodes.begin)], begin = u.begin();
  auto clip = [](int64_t n) { return n < 0 ? 0 : n < PIECE ? n : int64_t(PIECE); };
  for (int64_t i = 0; i < u.size(); i++) {
    const int64_t row = u.nodes.begin + i;
    int64_t *nodes = &scratch.nodes[i * t.block], position = prefix, single = 0;
    for (int64_t j = 0; t.mask && j < t.block; j++)
      if (t.sees(row, j)) {
        if (position >= begin && position < begin + PIECE) nodes[single++] = j;
        position++;
      }
    scratch.visible[i] = {clip((t.mask ? prefix : prefix + t.in_block(row) + 1) - begin), single, nodes};
  }
}

// Turn scores [count] into the weights of a softmax that is not yet divided by their sum; see `state_size`.
INLINE void weights_of(float* scores, int64_t count, const Heads& h, float* state) {
  for (int64_t j = count; j < PIECE; j++) scores[j] = -INFINITY;
  Vec most = all(-INFINITY), total{};
  for (int64_t j = 0; j < count; j += LANES) {
    const Vec scaled = load(scores + j) * all(h.scale);
    store(scores + j, scaled);
    most = max(scaled, most);
  }
  const float m = largest(most);
  for (int64_t j = 0; j < count; j += LANES) {
    const Vec e = exp(load(scores + j) - all(m));
    store(scores + j, e);
    total += e;
  }
  memset(state, 0, h.dim * sizeof(float));
  state[h.dim] = m;
  state[h.dim + 1] = sum(total);
}

// Compute the scores of all the unit's query heads with the positions that their nodes see.
static void score(const Attention& a, const Unit& u, const Matrix& slots, Scratch& scratch) {
  const Heads& h = a.heads;
  const int64_t group = h.heads / h.kv_heads, rows = u.size() * group, begin = u.begin();
  const int64_t prefix = a.texts.lengths[a.texts.text(u.nodes.begin)];
  float *queries = scratch.queries.data(), *scores = scratch.scores.data();
  int64_t longest = 0;
  for (int64_t i = 0; i < u.size(); i++) {  // a group's heads are neighbours
    const float* q = a.q + ((u.nodes.begin + i) * h.heads + u.kv_head * group) * h.dim;
    memcpy(queries + i * group * h.dim, q, group * h.dim * sizeof(float));
    longest = scratch.visible[i].contiguous > longest ? scratch.visible[i].contiguous : longest;
  }
  outputs(queries, rows, h.dim, slots, scores - begin, PIECE, begin, begin + longest);
  for (int64_t r = 0; r < rows; r++) {
    const Visible& seen = scratch.visible[r / group];
    float* to = scores + r * PIECE + seen.contiguous;
    for (int64_t j = 0; j < seen.single; j++) {
      const int64_t slot = prefix + seen.nodes[j];
      tile<Float32, 1, 1>(queries + r * h.dim, h.dim, slots, slot, 0, to + j - slot, 1, nullptr, 0);
    }
  }
}

// Attend with the unit's nodes and heads to its piece, and write their states.
static void attend(const Attention& a, const Unit& u) {
  enum { TOGETHER = 3 };  // heads that are computed in one pass over the values
  thread_local Scratch own;
  Scratch& scratch = own;
  const Heads& h = a.heads;
  const Texts& t = a.texts;
  const int64_t group = h.heads / h.kv_heads, rows = u.size() * group, text = t.text(u.nodes.begin);
  const int64_t before = (text * h.kv_heads + u.kv_head) * t.capacity * h.dim;  // the text's keys of this head
  scratch.grow(u.size(), group, t.block, h.dim);
  look(t, u, scratch);
  score(a, u, {a.keys + before, nullptr, nullptr, t.capacity, FLOAT32}, scratch);
  auto state = [&](int64_t r) {
    const int64_t head = (u.nodes.begin + r / group) * h.heads + u.kv_head * group + r % group;
    return a.states + (head * a.pieces + u.piece) * state_size(h);
  };
  float* scores = scratch.scores.data();
  for (int64_t r = 0; r < rows; r++) weights_of(scores + r * PIECE, scratch.visible[r / group].count(), h, state(r));
  for (int64_t r = 0, step; r < rows; r += step) {
    const Visible& seen = scratch.visible[r / group];
    step = r + TOGETHER <= rows && r / group == (r + TOGETHER - 1) / group ? int(TOGETHER) : 1;
    float *weights = scores + r * PIECE, *to[TOGETHER];
    for (int64_t i = 0; i < step; i++) to[i] = state(r + i);
    auto add = [&](const float* of, int64_t slot, int64_t count) {
      const float* values = a.values + before + slot * h.dim;
      if (step == TOGETHER) weigh<TOGETHER>(of, PIECE, values, count, h.dim, to);
      else weigh<1>(of, PIECE, values, count, h.dim, to);
    };
    if (seen.contiguous) add(weights, u.begin(), seen.contiguous);
    for (int64_t j = 0; j < seen.single; j++) add(weights + seen.contiguous + j, t.lengths[text] + seen.nodes[j], 1);
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
