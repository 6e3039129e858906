// Element types of the CPU kernels as the dispatcher sees them: dtype codes, with no torch header.
#pragma once

namespace vdiff {

enum class DType : int { f32 = 0, bf16 = 1, f16 = 2, f64 = 3 };

}  // namespace vdiff
