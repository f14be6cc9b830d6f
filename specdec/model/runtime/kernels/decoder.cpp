// The layers of a Llama-like decoder for a few tokens, in one parallel region.
//
//     x += o(attention(rotate(norm(q(n)), norm(k(n))), v(n)))    n = norm(x)
//     x += down(silu(gate(n)) * up(n))                           n = norm(x)
//
// Weights, cache and activations stay in PyTorch's memory; decoder.py fills in the structs. No sum depends on the
// number of rows or threads, so results are the same bit for bit.
#ifdef _OPENMP
#include <omp.h>
#endif
#include <type_traits>

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
  int64_t first, last;       // layers [first, last)
  float* x;                  // [rows, dim] the residual stream, updated in place
  const float *cos, *sin;    // [rows, rotary]
  float* const* cache;       // keys and values of each layer, [batch, kv_heads, capacity, dim] each
  float* hidden;             // [rows, dim] after the final norm; null: stop before it
  int64_t kept;              // number of rows to compute logits for
  const int64_t* keep;       // [kept] these rows
  float* logits;             // [kept, vocabulary]
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

extern "C" int64_t lanes() { return LANES; }

extern "C" void few_rows(const float* x, int64_t rows, int64_t k, float* y, const Matrix* matrix) {
#pragma omp parallel if (matrix->n * k >= 1 << 15)
  {
    int64_t id = 0, threads = 1;
#ifdef _OPENMP
    id = omp_get_thread_num(), threads = omp_get_num_threads();
#endif
    products(x, rows, k, &y, matrix, 1, id, threads);
  }
}

extern "C" void decode(const Decoder* model, const Forward* forward) {
  const Decoder& m = *model;
  const Forward& f = *forward;
  const Texts& t = f.texts;
  const Heads& h = m.heads;
  const int64_t rows = t.rows, wide = h.heads * h.dim, narrow = h.kv_heads * h.dim;
  const int64_t pieces = t.most_pieces();
  // This thread's workspace. It only grows, so that nothing is allocated in steady state.
  thread_local std::vector<float> workspace;
  const int64_t sizes[] = {rows * wide, rows * narrow, rows * narrow, rows * wide, rows * m.dim, rows * m.inner,
                           rows * m.inner, rows * h.heads * pieces * state_size(h), f.kept * m.dim};
  int64_t needed = 0;
  for (int64_t size : sizes) needed += size;
  if (int64_t(workspace.size()) < needed) workspace.resize(needed);
  float* parts[sizeof sizes / sizeof *sizes];
  for (size_t i = 0, at = 0; i < sizeof sizes / sizeof *sizes; at += sizes[i++]) parts[i] = workspace.data() + at;
  float *q = parts[0], *k = parts[1], *v = parts[2], *attended = parts[3], *added = parts[4], *gate = parts[5],
        *up = parts[6], *states = parts[7], *chosen = parts[8];

  // Blocks of rows that one thread processes at a time: rows of one text, so that its keys and values are read once.
  thread_local std::vector<Share> cut;
  cut.clear();
  for (int64_t r = 0; r < rows; r++)
    if (r && t.text(r) == t.text(r - 1) && r - cut.back().begin < NODES) cut.back().end++;
    else cut.push_back({r, r + 1});
  const Share* blocks = cut.data();
  const int64_t count = cut.size();

#pragma omp parallel
  {
    int64_t id = 0, threads = 1;
#ifdef _OPENMP
    id = omp_get_thread_num(), threads = omp_get_num_threads();
#endif
    auto wait = [] {
#ifdef _OPENMP
#pragma omp barrier
#endif
    };
    thread_local std::vector<float> normed;  // every thread normalises all rows, which is cheaper than waiting
    if (int64_t(normed.size()) < rows * m.dim) normed.resize(rows * m.dim);
    auto norm = [&](const Norm& n) {
      for (int64_t r = 0; r < rows; r++) normalise(n, f.x + r * m.dim, m.dim, &normed[r * m.dim]);
    };
    auto add_product = [&](const float* in, int64_t k, const Matrix& w) {  // x += w(in), this thread's outputs
      products(in, rows, k, &added, &w, 1, id, threads);
      const Share mine = share(m.dim, id, threads);
      for (int64_t r = 0; r < rows; r++)
        for (int64_t i = mine.begin; i < mine.end; i++) f.x[r * m.dim + i] += added[r * m.dim + i];
    };

    for (int64_t l = f.first; l < f.last; l++) {
      const Layer& layer = m.layers[l];
      float *keys = f.cache[2 * l], *values = f.cache[2 * l + 1];
      norm(layer.before);
      float* qkv[3] = {q, k, v};
      products(normed.data(), rows, m.dim, qkv, layer.qkv, 3, id, threads);
      wait();

      const Share heads = share(rows * (h.heads + h.kv_heads), id, threads);
      for (int64_t u = heads.begin; u < heads.end; u++) {
        const int64_t r = u / (h.heads + h.kv_heads), n = u % (h.heads + h.kv_heads), g = n - h.heads;
        float* head = g < 0 ? q + r * wide + n * h.dim : k + r * narrow + g * h.dim;
        const Norm& own = g < 0 ? layer.q_norm : layer.k_norm;
        if (own.weight) normalise(own, head, h.dim, head);
        if (layer.rotates) rotate(head, m.rotary, f.cos + r * m.rotary, f.sin + r * m.rotary);
        if (g < 0) continue;
        const int64_t b = t.text(r), slot = t.lengths[b] + t.place(r);
        const int64_t at = ((b * h.kv_heads + g) * t.capacity + slot) * h.dim;
        memcpy(keys + at, head, h.dim * sizeof(float));
        memcpy(values + at, v + r * narrow + g * h.dim, h.dim * sizeof(float));
      }
      wait();

      // Distributed to the threads in turn, because late pieces of a causal block are seen by few nodes.
      for (int64_t u = id; u < h.kv_heads * pieces * count; u += threads) {
        const Share block = blocks[u % count];
        attend(h, t, q, keys, values, u / (count * pieces), u / count % pieces, pieces, block.begin,
               block.end - block.begin, states);
      }
      wait();

      const Share outs = share(rows * h.heads, id, threads);
      for (int64_t u = outs.begin; u < outs.end; u++)
        combine(h, states + u * pieces * state_size(h), pieces, attended + u * h.dim);
      wait();

      add_product(attended, wide, layer.o);
      wait();

      norm(layer.between);
      // A thread computes the same outputs of gate and up, so it can multiply them without waiting.
      const Share inner = share(m.inner, id, threads);
      outputs(normed.data(), rows, m.dim, layer.gate_up[0], gate, m.inner, inner.begin, inner.end);
      outputs(normed.data(), rows, m.dim, layer.gate_up[1], up, m.inner, inner.begin, inner.end);
      for (int64_t r = 0; r < rows; r++)
        for (int64_t i = inner.begin; i < inner.end; i += LANES) {
          float *a = gate + r * m.inner + i, *b = up + r * m.inner + i;
          const int64_t left = inner.end - i;
          if (left >= LANES) store(a, silu(load(a)) * load(b));
          else
            for (int64_t j = 0; j < left; j++) a[j] = first(silu(all(a[j])) * all(b[j]));
        }
      wait();

      add_product(gate, m.inner, layer.down);
      wait();
    }
    if (f.hidden) {
      if (id == 0) {
        for (int64_t r = 0; r < rows; r++) normalise(m.final, f.x + r * m.dim, m.dim, f.hidden + r * m.dim);
        for (int64_t i = 0; i < f.kept; i++) memcpy(chosen + i * m.dim, f.hidden + f.keep[i] * m.dim, m.dim * sizeof(float));
      }
      wait();
      products(chosen, f.kept, m.dim, &f.logits, &m.output, 1, id, threads);
    }
  }
}
