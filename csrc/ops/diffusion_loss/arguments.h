// The schema's options, for the host code of both libraries.
#pragma once

#include <string>

#include "common/stable.h"
#include "ops/diffusion_loss/math.h"

namespace vdiff {

inline LossOptions loss_options(const std::string& target, const std::string& weighting, double gamma,
                                const std::string& kind, double delta) {
  const LossTarget code = target == "noise" ? LossTarget::noise
                          : target == "v"   ? LossTarget::v
                          : target == "x0"  ? LossTarget::x0
                                            : LossTarget::flow;
  return {code, LossInput::prediction, weighting == "min_snr", kind == "huber", gamma, delta};
}

inline LossInput loss_input(const std::string& of) {
  return of == "x0" ? LossInput::x0 : of == "noise" ? LossInput::noise : LossInput::prediction;
}

// 1 / elements of a sample, and of the batch where the loss is its mean.
inline double loss_share(int64_t batch, int64_t per_sample, bool mean) {
  return 1.0 / (static_cast<double>(per_sample) * (mean ? static_cast<double>(batch) : 1.0));
}

}  // namespace vdiff
