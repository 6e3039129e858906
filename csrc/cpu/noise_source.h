// Where a CPU kernel's noise comes from: given, drawn, or none. Plain data, no torch header.
#pragma once

#include <stdint.h>

namespace vdiff {

struct NoiseSource {
  const void* given = nullptr;
  bool given_is_float = false;
  bool drawn = false;
  int64_t seed = 0, sample_offset = 0, stream = 0;
};

// Elements a task covers, all channels of its positions: fixed by the shape alone, so sums do not depend on threads.
constexpr int64_t kTaskElements = 4096;

// Positions of a task, a multiple of the widest tile.
inline int64_t task_positions(int64_t channels) {
  constexpr int64_t kWidestTile = 64;
  const int64_t positions = kTaskElements / channels / kWidestTile * kWidestTile;
  return positions > 0 ? positions : kWidestTile;
}

}  // namespace vdiff
