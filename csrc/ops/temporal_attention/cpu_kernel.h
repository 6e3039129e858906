#pragma once

#include <stdint.h>

#include "common/tokens.h"
#include "cpu/dtype.h"
#include "cpu/isa.h"

namespace vdiff {

// Arguments of a call. A is the type of the arithmetic: double for float64 tensors, else float.
struct TemporalAttention {
  Tokens q, k, v, out;      // forward
  Tokens dout, dq, dk, dv;  // backward
  const void* table;        // A: added to the logits, [heads][key u][query t], rows padded_frames(T) long
  int64_t table_head;       // elements between the tables of two heads, 0 where all heads share one
  const uint8_t* mask;      // [B][T], 0 masks the key; or nullptr
  const void* q_weight;     // A: [d] of the RMS norm, or nullptr
  const void* k_weight;     // A
  const void *cos, *sin;    // A: [T][d/2], or nullptr
  void* partial;            // A, backward: the sums of one range of items: of the table's shape, then 2 x d
  bool wants_bias_gradient;
  bool streamed;  // stores bypass the caches; float32 rows of whole cache lines
  double scale, eps;
  int64_t batch, frames, positions, heads, head_dim;
  int64_t block_positions, block_heads;  // an item is a block of positions and heads
};

constexpr int64_t kFrameAlign = 16;
constexpr int64_t padded_frames(int64_t frames) { return (frames + kFrameAlign - 1) / kFrameAlign * kFrameAlign; }

inline int64_t items(const TemporalAttention& a) {
  const int64_t blocks = (a.positions + a.block_positions - 1) / a.block_positions;
  const int64_t groups = (a.heads + a.block_heads - 1) / a.block_heads;
  return a.batch * blocks * groups;
}

// Bytes of scratch for one thread.
inline int64_t scratch_bytes(const TemporalAttention& a, bool backward, int64_t element) {
  const int64_t width = (a.head_dim + 15) / 16 * 16, matrix = a.frames * width;
  const int64_t pairs = a.block_positions * a.block_heads, square = a.frames * padded_frames(a.frames);
  const int64_t transposed = width * padded_frames(a.frames);
  const int64_t total = backward ? pairs * 8 * matrix + 2 * transposed + 2 * square + 2 * matrix + 2 * a.frames
                                 : pairs * 6 * matrix + transposed + square;
  // Prefetched ranges between two pairs: at most one per row of a block and tensor.
  const int64_t ranges = pairs * a.frames * (backward ? 7 : 4) + 1;
  return (total + 256) * element + ranges * 16;
}

}  // namespace vdiff

// Items [begin, end) of the call.
VDIFF_DECLARE_KERNEL(temporal_attention_forward,
                     (DType dtype, const TemporalAttention& args, void* scratch, int64_t begin, int64_t end))
VDIFF_DECLARE_KERNEL(temporal_attention_backward,
                     (DType dtype, const TemporalAttention& args, void* scratch, int64_t begin, int64_t end))
