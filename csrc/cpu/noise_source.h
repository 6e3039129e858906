// Where a CPU kernel's noise comes from: given, drawn, or none. Plain data, no torch header.
#pragma once

#include "common/frame_correlation.h"

namespace vdiff {

struct NoiseSource {
  const void* given = nullptr;
  bool given_is_float = false;
  bool drawn = false;
  int64_t seed = 0, sample_offset = 0, stream = 0;
  FrameCorrelation correlation;  // of drawn noise

  // Frames that a task walks; 1 where frames do not matter.
  int64_t frames() const { return drawn && correlation.frames > 0 ? correlation.frames : 1; }
};

// Elements a task covers in one frame, all channels of its positions: fixed by the shape alone, so sums do not depend
// on threads.
constexpr int64_t kTaskElements = 4096;
constexpr int64_t kWidestTile = 64;

// Positions of a task, a multiple of the widest tile.
inline int64_t task_positions(int64_t channels) {
  const int64_t positions = kTaskElements / channels / kWidestTile * kWidestTile;
  return positions > 0 ? positions : kWidestTile;
}

}  // namespace vdiff
