// Storage formats of a weight matrix with one number a weight. Weights are widened to fp32 in registers.
#pragma once
#include "vector.hpp"

enum Kind : int64_t { FLOAT32, BFLOAT16, INT8, INT4, FLOAT16, Q4_0, Q4_1, Q8_0, Q4_K, Q5_K, Q6_K };
enum { GROUP = 32 };  // int4 weights that share a scale

struct Matrix {       // one weight matrix; few_rows.py and stored.py build these
  const void* w;      // [n, k] row-major, packed as its format says
  const void* scale;  // int8: fp32 [n]; int4: fp32 [n, groups]; block formats: see blocks.hpp; else null
  const float* bias;  // [n] or null
  int64_t n, kind;
};

// A row of weights. `at` reads LANES weights as floats, `one` a single one; `finish` scales a sum. BLOCKED: see
// blocks.hpp. PANELS: many rows are multiplied with weights that were widened into a panel first, which pays if
// widening takes more than one instruction. STREAMS: weights come from memory and are prefetched.
struct Float32 {
  const float* w;
  Float32(const Matrix& m, int64_t k, int64_t o) : w((const float*)m.w + o * k) {}
  enum { BLOCKED = false, STREAMS = true, PANELS = false, R = ROWS, C = COLS, WIDE = ROWS * COLS / 2 };
  static int64_t bytes(int64_t k) { return k * 4; }
  Vec at(int64_t i) const { return load(w + i); }
  float one(int64_t i) const { return w[i]; }
  float finish(float sum) const { return sum; }
};
struct BFloat16 {  // the upper half of a float
  const uint16_t* w;
  BFloat16(const Matrix& m, int64_t k, int64_t o) : w((const uint16_t*)m.w + o * k) {}
  enum { BLOCKED = false, STREAMS = true, PANELS = false, R = ROWS, C = COLS, WIDE = ROWS * COLS / 2 };
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
struct Float16 {
  const uint16_t* w;
  Float16(const Matrix& m, int64_t k, int64_t o) : w((const uint16_t*)m.w + o * k) {}
  enum { BLOCKED = false, STREAMS = true, PANELS = false, R = ROWS, C = COLS, WIDE = ROWS * COLS / 2 };
  static int64_t bytes(int64_t k) { return k * 2; }
  Vec at(int64_t i) const { return halves(w + i); }
  float one(int64_t i) const { return half(w[i]); }
  float finish(float sum) const { return sum; }
};
struct Int8 {
  const int8_t* w;
  float scale;
  Int8(const Matrix& m, int64_t k, int64_t o) : w((const int8_t*)m.w + o * k), scale(((const float*)m.scale)[o]) {}
  enum { BLOCKED = false, STREAMS = true, PANELS = false, R = ROWS, C = COLS, WIDE = ROWS * COLS / 2 };
  static int64_t bytes(int64_t k) { return k; }
  Vec at(int64_t i) const { return __builtin_convertvector(widen(w + i), Vec); }
  float one(int64_t i) const { return float(w[i]); }
  float finish(float sum) const { return sum * scale; }
};
struct Int4 {  // GROUP / 2 bytes a group: weight i in the low half of byte i, weight i + GROUP / 2 in its high half,
               // both offset by 8, the last group padded
  const uint8_t* w;
  const float* scale;
  Int4(const Matrix& m, int64_t k, int64_t o)
      : w((const uint8_t*)m.w + o * bytes(k)), scale((const float*)m.scale + o * (bytes(k) / HALF)) {}
  enum { BLOCKED = false, STREAMS = true, PANELS = true, R = ROWS, C = COLS, WIDE = ROWS * COLS / 2 };
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
