// What x is to a norm over channels or groups, whatever its memory layout, for host and device.
#pragma once

#include <stdint.h>

#include "common/integers.h"

namespace vdiff {

// x is batch x segments x length x channels: a segment is a frame where anything is per frame, else the whole sample.
struct NormGeometry {
  int64_t batch, segments, length, channels;
  bool channels_last, silu;
  int element;  // bytes

  VDIFF_HOST_DEVICE int64_t segment_channels() const { return batch * segments * channels; }
  VDIFF_HOST_DEVICE bool empty() const { return segment_channels() * length == 0; }
};

}  // namespace vdiff
