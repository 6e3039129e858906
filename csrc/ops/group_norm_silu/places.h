// Where the CPU op finds the runs and rows of its tensors.
#pragma once

#include "cpu/output_memory.h"
#include "ops/group_norm_silu/plan.h"

namespace vdiff::group_norm {

// x and x2, or their gradients, as byte addresses.
struct Sources {
  const Plan& plan;
  char* data[2];

  Sources(const Plan& plan, const Tensor& x, const std::optional<Tensor>& x2)
      : plan(plan), data{static_cast<char*>(x.data_ptr()), nullptr} {
    if (x2.has_value()) data[1] = static_cast<char*>(x2->data_ptr());
  }
  int count() const { return data[1] != nullptr ? 2 : 1; }
  int64_t first(int s) const { return s == 0 ? 0 : plan.source_channels[0]; }
  char* run(const Chunk& k) const {
    const int s = plan.source_of(k.c);
    const int64_t row = k.sample * plan.source_channels[s] + k.c - first(s);
    return data[s] + ((row * plan.segments + k.frame) * plan.length + k.begin) * plan.element;
  }
  char* row(int s, int64_t segment, int64_t position, int64_t c) const {
    return data[s] + ((segment * plan.length + position) * plan.source_channels[s] + c - first(s)) * plan.element;
  }

  // body(s, channels [begin, end)) of each source in a channels-last block.
  template <class Body>
  void each(int64_t block, Body body) const {
    const Plan::Range all = plan.channels_of(block);
    for (int s = 0; s < count(); ++s) {
      const int64_t begin = std::max(all.begin, first(s)), end = std::min(all.end, first(s) + plan.source_channels[s]);
      if (begin < end) body(s, begin, end);
    }
  }
};

// y or dy: all channels in one tensor.
struct Joint {
  const Plan& plan;
  char* data;

  char* run(const Chunk& k) const {
    const int64_t row = k.sample * plan.channels + k.c;
    return data + ((row * plan.segments + k.frame) * plan.length + k.begin) * plan.element;
  }
  char* row(int64_t segment, int64_t position, int64_t c) const {
    return data + ((segment * plan.length + position) * plan.channels + c) * plan.element;
  }
};

// An output for [x | x2] in their layout.
inline Tensor empty_joint(const Plan& plan, const Tensor& x, const std::optional<Tensor>& x2) {
  if (!x2.has_value()) return output_like(x);
  std::vector<int64_t> shape(x.sizes().begin(), x.sizes().end());
  shape[1] = plan.channels;
  if (!plan.channels_last) return new_output(x, shape);
  std::rotate(shape.begin() + 1, shape.begin() + 2, shape.end());
  Tensor y = new_output(x, shape);
  for (int64_t d = x.dim() - 1; d > 1; --d) y = torch::stable::transpose(y, d, d - 1);
  return y;
}

}  // namespace vdiff::group_norm
