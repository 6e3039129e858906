// The columns of a sampler's coefficient table, in the order of vdiff_fast/ops/sampler_step/columns.py.
#pragma once

namespace vdiff::sampler {

enum Column : int { kX0FromX, kX0FromY, kX, kX0, kY, kPrevious, kNoise, kGuidance, kPrevious2, kColumns };
enum Clip : int { kNoClip, kFixed, kDynamic };

}  // namespace vdiff::sampler
