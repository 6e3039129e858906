// Small per-channel tensors of any floating dtype, as doubles on the host.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "common/stable.h"

namespace vdiff {

namespace detail {

template <class Visitor>
void visit_floating(const Tensor& t, Visitor visitor) {
  switch (t.scalar_type()) {
    case ScalarType::Float: return visitor(static_cast<float*>(t.data_ptr()));
    case ScalarType::BFloat16: return visitor(static_cast<torch::headeronly::BFloat16*>(t.data_ptr()));
    case ScalarType::Half: return visitor(static_cast<torch::headeronly::Half*>(t.data_ptr()));
    case ScalarType::Double: return visitor(static_cast<double*>(t.data_ptr()));
    default: STD_TORCH_CHECK(false, "expected float32, bfloat16, float16 or float64");
  }
}

template <class T>
T narrowed(double value) {
  if constexpr (std::is_same_v<T, double>) return value;
  return static_cast<T>(static_cast<float>(value));
}

}  // namespace detail

// A contiguous tensor's values; empty where it is absent.
inline std::vector<double> read_vector(const MaybeTensor& t) {
  std::vector<double> values;
  if (!t.has_value()) return values;
  values.resize(t->numel());
  detail::visit_floating(*t, [&](auto* data) {
    for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<double>(data[i]);
  });
  return values;
}

inline void write_vector(const Tensor& t, const std::vector<double>& values) {
  detail::visit_floating(t, [&](auto* data) {
    using T = std::remove_pointer_t<decltype(data)>;
    for (size_t i = 0; i < values.size(); ++i) data[i] = detail::narrowed<T>(values[i]);
  });
}

// A gradient for `like` with these values, or a tensor without elements where `like` is absent.
inline Tensor vector_gradient(const MaybeTensor& like, const Tensor& x, const std::vector<double>& values) {
  if (!like.has_value()) return torch::stable::new_empty(x, std::vector<int64_t>{0});
  Tensor gradient = torch::stable::empty_like(*like);
  write_vector(gradient, values);
  return gradient;
}

}  // namespace vdiff
