// Memory of large outputs, kept for later ones: the first touch of a fresh page costs more than the kernel's own write.
#pragma once

#include "common/stable.h"

namespace vdiff {

// Uninitialised tensors on the CPU. From 1 MB on their memory comes from blocks that earlier outputs left; those idle
// hold VDIFF_FAST_KEEP_MB (1024) at most. Blocks of 4 MB and more are in pages of 2 MB, and the system may take idle
// ones back whenever it needs memory.
Tensor output_like(const Tensor& x);  // x is dense; its strides are kept
Tensor new_output(const Tensor& x, const std::vector<int64_t>& sizes);

// Whether a call that reads and writes this many bytes leaves nothing of its output in the last cache for the next to
// find: its stores can go past the cache then.
bool beyond_cache(int64_t bytes);

}  // namespace vdiff
