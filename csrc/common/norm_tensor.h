// The geometry of a norm's input, for the host code of both libraries.
#pragma once

#include <algorithm>

#include "common/norm_geometry.h"
#include "common/stable.h"

namespace vdiff {

// Frames of scale or shift (B, F, C): 1 where it is absent or the same for all frames.
inline int64_t frames_of(const MaybeTensor& t) { return t.has_value() ? t->size(1) : 1; }

// x is (B, C, ...) and is read as `segments` segments of `channels` channels.
inline NormGeometry norm_geometry(const Tensor& x, int64_t channels, int64_t segments, bool channels_last, bool silu) {
  int64_t positions = 1;
  for (int64_t d = 2; d < x.dim(); ++d) positions *= x.size(d);
  return {x.size(0),     segments, positions / std::max<int64_t>(segments, 1), channels,
          channels_last, silu,     static_cast<int>(x.element_size())};
}

}  // namespace vdiff
