// Integer arithmetic for host and device.
#pragma once

#include <stdint.h>

#include "common/host_device.h"

namespace vdiff {

VDIFF_HOST_DEVICE constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
VDIFF_HOST_DEVICE constexpr int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }
VDIFF_HOST_DEVICE constexpr int64_t max_of(int64_t a, int64_t b) { return a > b ? a : b; }

}  // namespace vdiff
