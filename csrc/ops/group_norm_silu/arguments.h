// The operators' tensors as geometry, and their output, for the host code of both libraries.
#pragma once

#include <algorithm>

#include "common/norm_tensor.h"
#include "ops/group_norm_silu/math.h"

namespace vdiff::group_norm {

// `frames` are those of scale and shift: T where one of them is per frame, else 1.
inline Geometry geometry_of(const Tensor& x, const MaybeTensor& x2, int64_t num_groups, int64_t frames, bool per_frame,
                            bool silu) {
  const bool channels_last = !(x.is_contiguous() && (!x2.has_value() || x2->is_contiguous()));
  const int64_t c1 = x.size(1), c2 = x2.has_value() ? x2->size(1) : 0;
  const int64_t segments = per_frame || frames > 1 ? x.size(2) : 1;
  return {norm_geometry(x, c1 + c2, segments, channels_last, silu),
          {c1, c2},
          num_groups,
          (c1 + c2) / num_groups,
          per_frame ? 1 : segments,
          per_frame ? x.size(0) * segments : x.size(0)};
}

// An output for [x | x2] in their layout; like(x) and make(shape) allocate it.
template <class Like, class Make>
Tensor empty_joint(const Geometry& g, const Tensor& x, const MaybeTensor& x2, Like like, Make make) {
  if (!x2.has_value()) return like(x);
  std::vector<int64_t> shape(x.sizes().begin(), x.sizes().end());
  shape[1] = g.channels;
  if (!g.channels_last) return make(x, shape);
  std::rotate(shape.begin() + 1, shape.begin() + 2, shape.end());
  Tensor y = make(x, shape);
  for (int64_t d = x.dim() - 1; d > 1; --d) y = torch::stable::transpose(y, d, d - 1);
  return y;
}

}  // namespace vdiff::group_norm
