// Noise of a video whose frames share a part of it (Ge et al. 2023), for host and device.
#pragma once

#include <stdint.h>

namespace vdiff {

// Mixed: z[f] = shared * s + own * n[f], with one noise s for all frames f. Progressive: z[0] = n[0] and z[f] = shared
// * z[f - 1] + own * n[f]. frames = 0: all elements are independent.
struct FrameCorrelation {
  int64_t frames = 0;
  float shared = 0, own = 1;
  bool progressive = false;
};

// The stream of s is the stream of n with this bit flipped.
constexpr uint32_t kSharedStream = 1u << 31;

}  // namespace vdiff
