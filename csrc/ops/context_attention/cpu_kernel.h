#pragma once

#include <stdint.h>

#include "common/tokens.h"
#include "cpu/dtype.h"
#include "cpu/isa.h"

namespace vdiff {

// Attention of every token (B, N, heads, d) of a sample to a short context (B, L, heads, d); of the strides b, t and h
// are used. A is the type of the arithmetic: double for float64 tensors, else float.
struct ContextAttention {
  Tokens q, k, v, out;   // forward
  Tokens dout, dq;       // backward
  const uint8_t* mask;   // [B][L], 0 masks the key; or nullptr
  const void* q_weight;  // A: [d] of the RMS norm of the queries, or nullptr
  void* partial;  // A, backward: the sums of one range of tokens: [heads][dk, dv][L][width], then d of the weight
  bool streamed;  // stores bypass the caches; float32 rows of whole cache lines
  double scale, eps;
  int64_t tokens, keys, heads, head_dim;
  int64_t block;  // queries per block, a multiple of 16
};

constexpr int64_t context_width(int64_t head_dim) { return (head_dim + 15) / 16 * 16; }
inline int64_t context_sums(const ContextAttention& a) {
  return a.heads * 2 * a.keys * context_width(a.head_dim) + a.head_dim;
}

// Bytes of scratch for one thread.
inline int64_t context_scratch_bytes(const ContextAttention& a, int64_t element) {
  const int64_t width = context_width(a.head_dim), context = a.heads * 2 * a.keys * width;
  const int64_t rows = 6 * a.block * width + 2 * a.keys * a.block + a.keys * width + a.block;
  return (context + rows + 256) * element + (3 * (a.block + a.heads) + 1) * 16;
}

}  // namespace vdiff

// Tokens [first, last) of sample b. Both are multiples of `block`, except that the last range ends with the last token.
VDIFF_DECLARE_KERNEL(context_attention_forward,
                     (DType dtype, const ContextAttention& args, void* scratch, int64_t b, int64_t first, int64_t last))
VDIFF_DECLARE_KERNEL(context_attention_backward,
                     (DType dtype, const ContextAttention& args, void* scratch, int64_t b, int64_t first, int64_t last))
