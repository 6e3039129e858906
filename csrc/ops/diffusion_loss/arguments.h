// LossOptions from the operator's arguments, for the host code of both libraries.
#pragma once

#include <algorithm>
#include <iterator>
#include <string>

#include "common/stable.h"
#include "ops/diffusion_loss/math.h"

namespace vdiff {

inline LossOptions loss_options(const std::string& target, const std::string& weighting, double gamma,
                                const std::string& kind, double delta) {
  constexpr const char* names[] = {"noise", "v", "x0", "flow"};  // in the order of LossTarget
  const auto* found = std::find(std::begin(names), std::end(names), target);
  STD_TORCH_CHECK(found != std::end(names), "diffusion_loss: unknown target ", target);
  return {static_cast<LossTarget>(found - names),
          LossInput::prediction,
          weighting == "min_snr",
          kind == "huber",
          gamma,
          delta};
}

inline LossInput loss_input(const std::string& of) {
  return of == "x0" ? LossInput::x0 : of == "noise" ? LossInput::noise : LossInput::prediction;
}

// The weight of one element: 1 / elements of a sample, or 1 / elements of the batch if the loss is a mean over it.
inline double loss_share(int64_t batch, int64_t per_sample, bool mean) {
  return 1.0 / (static_cast<double>(per_sample) * (mean ? static_cast<double>(batch) : 1.0));
}

}  // namespace vdiff
