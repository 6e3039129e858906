#pragma once

#include <stdint.h>

namespace vdiff {

// The widest head that the attentions' kernels take.
constexpr int64_t kMaxHeadDim = 128;

// Tokens (B, T, S, heads, d) with unit stride in d; strides in elements.
struct Tokens {
  void* data = nullptr;
  int64_t b = 0, t = 0, s = 0, h = 0;
};

}  // namespace vdiff
