// The layers of a Llama-like decoder for a few tokens, in one parallel region.
//
//     x += o(attention(rotate(norm(q(n)), norm(k(n))), v(n)))    n = norm(x)
//     x += down(silu(gate(n)) * up(n))                           n = norm(x)
//
// Weights, cache and activations stay in PyTorch's memory; decoder.py fills in the structs. No sum depends on the
// number of rows or threads, so results are the same bit for bit.
#include <utility>

#include "attention.hpp"

struct Norm {
  const float* weight;  // null: no norm
  float eps;
};

struct Layer {
  Norm before, q_norm, k_norm, between;
  Matrix qkv[3], o, gate_up[2], down;
  int64_t rotates;  // some layers have no rotary embedding
};

struct Decoder {
  int64_t dim, inner, rotary;  // widths of the residual stream and the feed-forward part; dims of a head that rotate
  Heads heads;
  Norm final;
  Matrix output;
  const Layer* layers;
};

struct Forward {
  Texts texts;
  int64_t first, last;     // layers [first, last)
  float* x;                // [rows, dim] the residual stream, updated in place
  const float *cos, *sin;  // [rows, rotary]
  float* const* cache;     // keys and values of each layer, [batch, kv_heads, capacity, dim] each
  float* hidden;           // [rows, dim] after the final norm; null: stop before it
  int64_t kept;            // number of rows to compute logits for
  const int64_t* keep;     // [kept] these rows
  float* logits;           // [kept, vocabulary]
};

static void normalise(const Norm& norm, const float* x, int64_t n, float* y) {
  Vec squares{};
  const int64_t whole = n / LANES * LANES;
  for (int64_t i = 0; i < whole; i += LANES) fma(squares, load(x + i), load(x + i));
  float total = sum(squares);
  for (int64_t i = whole; i < n; i++) total += x[i] * x[i];
  const float scale = 1 / std::sqrt(total / float(n) + norm.eps);
  for (int64_t i = 0; i < n; i++) y[i] = norm.weight[i] * (x[i] * scale);
}

// Apply the rotary position embedding (arXiv 2104.09864) to one head; dims i and i + half are a pair.
static void rotate(float* head, int64_t rotary, const float* cos, const float* sin) {
  const int64_t half = rotary / 2;
  for (int64_t i = 0; i < half; i++) {
    const float a = head[i], b = head[i + half];
    head[i] = a * cos[i] - b * sin[i];
    head[i + half] = b * cos[i + half] + a * sin[i + half];
  }
}

INLINE Vec silu(Vec x) { return x / (all(1.f) + exp(Vec{} - x)); }

// The memory of one forward. It only grows, so that nothing is allocated in steady state.
struct Workspace {
  std::vector<float> floats;  // all of the following
  float *q, *attended;        // [rows, heads, dim]
  float *k, *v;               // [rows, kv_heads, dim]
  float* added;               // [rows, dim] what a product adds to the residual stream
  float *gate, *up;           // [rows, inner]
  float* states;              // [rows, heads, pieces, state_size]
  float* chosen;              // [kept, dim] the hidden states that logits are computed for
  int64_t pieces;             // of the longest text
  std::vector<Share> blocks;  // rows that one thread processes at a time

  void prepare(const Decoder& model, const Forward& forward) {
    const Heads& h = model.heads;
    const int64_t rows = forward.texts.rows;
    pieces = forward.texts.most_pieces();
    const std::pair<float**, int64_t> parts[] = {
        {&q, rows * h.heads * h.dim},       {&attended, rows * h.heads * h.dim},
        {&k, rows * h.kv_heads * h.dim},    {&v, rows * h.kv_heads * h.dim},
        {&added, rows * model.dim},         {&gate, rows * model.inner},
        {&up, rows * model.inner},          {&states, rows * h.heads * pieces * state_size(h)},
        {&chosen, forward.kept * model.dim}};
    int64_t needed = 0;
    for (const auto& [part, size] : parts) needed += size;
    if (int64_t(floats.size()) < needed) floats.resize(needed);
    float* next = floats.data();
    for (const auto& [part, size] : parts) *part = next, next += size;
    cut(forward.texts);
  }

  // A block holds rows of one text, so that its keys and values are read once.
  void cut(const Texts& t) {
    blocks.clear();
    for (int64_t r = 0; r < t.rows; r++)
      if (r && t.text(r) == t.text(r - 1) && r - blocks.back().begin < NODES) blocks.back().end++;
      else blocks.push_back({r, r + 1});
  }
};

// The work of one thread in a forward. A phase reads what other threads wrote in the phase before, so all wait between.
struct Worker {
  const Decoder& m;
  const Forward& f;
  const Workspace& w;
  const Thread thread;

  void run(int64_t l) const {
    const Layer& layer = m.layers[l];
    const int64_t rows = f.texts.rows;
    float* qkv[3] = {w.q, w.k, w.v};
    products(normalised(layer.before), rows, m.dim, qkv, layer.qkv, 3, thread);
    thread.wait();
    rotate_and_store(layer, f.cache[2 * l], f.cache[2 * l + 1]);
    thread.wait();
    attend_to_pieces({m.heads, f.texts, w.q, f.cache[2 * l], f.cache[2 * l + 1], w.pieces, w.states});
    thread.wait();
    combine_pieces();
    thread.wait();
    add_product(w.attended, m.heads.heads * m.heads.dim, layer.o);
    thread.wait();
    gate_and_up(layer);
    thread.wait();
    add_product(w.gate, m.inner, layer.down);
    thread.wait();
  }

  // Return norm(x) of all rows. Every thread computes it for itself, which is cheaper than waiting.
  const float* normalised(const Norm& norm) const {
    thread_local std::vector<float> normed;
    const int64_t rows = f.texts.rows;
    if (int64_t(normed.size()) < rows * m.dim) normed.resize(rows * m.dim);
    for (int64_t r = 0; r < rows; r++) normalise(norm, f.x + r * m.dim, m.dim, &normed[r * m.dim]);
    return normed.data();
  }

  // Norm and rotate the heads of q and k, and write k and v to the cache.
  void rotate_and_store(const Layer& layer, float* keys, float* values) const {
    const Texts& t = f.texts;
    const Heads& h = m.heads;
    const int64_t all_heads = h.heads + h.kv_heads;
    const Share mine = thread.share(t.rows * all_heads);
    for (int64_t u = mine.begin; u < mine.end; u++) {
      const int64_t r = u / all_heads, n = u % all_heads, g = n - h.heads;  // a query head, or KV head g >= 0
      float* head = g < 0 ? w.q + (r * h.heads + n) * h.dim : w.k + (r * h.kv_heads + g) * h.dim;
      const Norm& own = g < 0 ? layer.q_norm : layer.k_norm;
      if (own.weight) normalise(own, head, h.dim, head);
      if (layer.rotates) rotate(head, m.rotary, f.cos + r * m.rotary, f.sin + r * m.rotary);
      if (g < 0) continue;
      const int64_t b = t.text(r), slot = t.lengths[b] + t.in_block(r);
      const int64_t at = ((b * h.kv_heads + g) * t.capacity + slot) * h.dim;
      memcpy(keys + at, head, h.dim * sizeof(float));
      memcpy(values + at, w.v + (r * h.kv_heads + g) * h.dim, h.dim * sizeof(float));
    }
  }

  // Threads take units in turn, because late pieces of a causal block are seen by few nodes.
  void attend_to_pieces(const Attention& attention) const {
    const int64_t blocks = w.blocks.size();
    for (int64_t u = thread.id; u < m.heads.kv_heads * w.pieces * blocks; u += thread.count)
      attend(attention, {w.blocks[u % blocks], u / (blocks * w.pieces), u / blocks % w.pieces});
  }

  void combine_pieces() const {
    const Heads& h = m.heads;
    const Share mine = thread.share(f.texts.rows * h.heads);
    for (int64_t u = mine.begin; u < mine.end; u++)
      combine(h, w.states + u * w.pieces * state_size(h), w.pieces, w.attended + u * h.dim);
  }

  // x += matrix(in), for this thread's outputs
  void add_product(const float* in, int64_t k, const Matrix& matrix) const {
    const int64_t rows = f.texts.rows;
    products(in, rows, k, &w.added, &matrix, 1, thread);
    const Share mine = thread.share(m.dim);
    for (int64_t r = 0; r < rows; r++)
      for (int64_t i = mine.begin; i < mine.end; i++) f.x[r * m.dim + i] += w.added[r * m.dim + i];
  }

  // gate = silu(gate(n)) * up(n). A thread computes the same outputs of both, so it multiplies them without waiting.
  void gate_and_up(const Layer& layer) const {
    const int64_t rows = f.texts.rows;
    const Share mine = thread.share(m.inner);
    const float* n = normalised(layer.between);
    outputs(n, rows, m.dim, layer.gate_up[0], w.gate, m.inner, mine.begin, mine.end);
    outputs(n, rows, m.dim, layer.gate_up[1], w.up, m.inner, mine.begin, mine.end);
    for (int64_t r = 0; r < rows; r++)
      for (int64_t i = mine.begin; i < mine.end; i += LANES) {
        float *a = w.gate + r * m.inner + i, *b = w.up + r * m.inner + i;
        const int64_t left = mine.end - i;
        if (left >= LANES) store(a, silu(load(a)) * load(b));
        else
          for (int64_t j = 0; j < left; j++) a[j] = first(silu(all(a[j])) * all(b[j]));
      }
  }

  // Apply the final norm to all rows and the output layer to the kept ones.
  void read_out() const {
    if (thread.id == 0) {
      for (int64_t r = 0; r < f.texts.rows; r++) normalise(m.final, f.x + r * m.dim, m.dim, f.hidden + r * m.dim);
      for (int64_t i = 0; i < f.kept; i++)
        memcpy(w.chosen + i * m.dim, f.hidden + f.keep[i] * m.dim, m.dim * sizeof(float));
    }
    thread.wait();
    products(w.chosen, f.kept, m.dim, &f.logits, &m.output, 1, thread);
  }
};

extern "C" int64_t lanes() { return LANES; }

// Widen the rows `which` [count] of a matrix to fp32: to [count, k].
extern "C" void widen_rows(const Matrix* matrix, int64_t k, int64_t count, const int64_t* which, float* to) {
  in_format(*matrix, [&](auto format) {
    using W = typename decltype(format)::type;
#pragma omp parallel for if (count * k >= 1 << 15)
    for (int64_t i = 0; i < count; i++) widen_row<W>(*matrix, k, which[i], to + i * k);
  });
}

extern "C" void few_rows(const float* x, int64_t rows, int64_t k, float* y, const Matrix* matrix) {
#pragma omp parallel if (matrix->n * k >= 1 << 15)
  products(x, rows, k, &y, matrix, 1, Thread());
}

extern "C" void decode(const Decoder* model, const Forward* forward) {
  thread_local Workspace own;
  Workspace& workspace = own;  // the calling thread's, for all threads
  workspace.prepare(*model, *forward);
#pragma omp parallel
  {
    const Worker worker{*model, *forward, workspace, Thread()};
    for (int64_t l = forward->first; l < forward->last; l++) worker.run(l);
    if (forward->hidden) worker.read_out();
  }
}
