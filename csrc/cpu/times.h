// Times and frequencies of the sinusoids as double, on the host: t * frequency then keeps its phase at any step.
#pragma once

#include <cmath>
#include <vector>

#include "common/stable.h"

namespace vdiff {

inline std::vector<double> times(const Tensor& t, double scale) {
  std::vector<double> out(t.numel());
  for (size_t i = 0; i < out.size(); ++i) {
    switch (t.scalar_type()) {
      case ScalarType::Float: out[i] = data<float>(t)[i]; break;
      case ScalarType::Double: out[i] = data<double>(t)[i]; break;
      case ScalarType::Long: out[i] = static_cast<double>(data<int64_t>(t)[i]); break;
      default: STD_TORCH_CHECK(false, "t must be float32, float64 or int64");
    }
    out[i] *= scale;
  }
  return out;
}

// max_period^(-i / (half - shift)). The last answer is kept: a model asks for one set of frequencies again and again.
inline const std::vector<double>& frequencies(int64_t half, double max_period, double shift) {
  thread_local std::vector<double> kept;
  thread_local double period = 0, offset = 0;
  if (static_cast<int64_t>(kept.size()) == half && period == max_period && offset == shift) return kept;
  kept.resize(half);
  const double rate = -std::log(max_period) / (static_cast<double>(half) - shift);
  for (int64_t i = 0; i < half; ++i) kept[i] = std::exp(rate * static_cast<double>(i));
  period = max_period, offset = shift;
  return kept;
}

}  // namespace vdiff
