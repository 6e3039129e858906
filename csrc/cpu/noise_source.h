// The noise of a CPU kernel: a given tensor, drawn, or none. Kernels include this file, so it includes no torch header.
#pragma once

#include "common/frame_correlation.h"

namespace vdiff {

struct NoiseSource {
  const void* given = nullptr;
  bool given_is_float = false;
  bool drawn = false;
  int64_t seed = 0, sample_offset = 0, stream = 0;
  FrameCorrelation correlation;  // of drawn noise

  // Frames that a task covers: all if they are correlated, else 1, the whole sample.
  int64_t frames() const { return drawn && correlation.frames > 0 ? correlation.frames : 1; }
};

// Elements of a task in one frame, with all channels of its positions. It depends on the shape alone, so that sums do
// not depend on the number of threads.
constexpr int64_t kTaskElements = 4096;
constexpr int64_t kWidestTile = 64;

// Positions of a task, a multiple of the widest tile of any instruction set.
inline int64_t task_positions(int64_t channels) {
  const int64_t positions = kTaskElements / channels / kWidestTile * kWidestTile;
  return positions > 0 ? positions : kWidestTile;
}

}  // namespace vdiff
