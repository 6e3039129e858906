// Noise of a video whose frames share a part of it (Ge et al. 2023), for host and device.
#pragma once

#include <stdint.h>

namespace vdiff {

// Frames z[f] = shared * s + own * n[f], s common to all; progressive: z[0] = n[0], z[f] = shared * z[f - 1] + own *
// n[f]. No frames: every element stands for itself.
struct FrameCorrelation {
  int64_t frames = 0;
  float shared = 0, own = 1;
  bool progressive = false;
};

// The shared noise's stream: the same word with its top bit turned.
constexpr uint32_t kSharedStream = 1u << 31;

}  // namespace vdiff
