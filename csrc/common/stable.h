// The stable ABI in one include, and the few helpers every op's host code shares.
#pragma once

#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

namespace vdiff {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using MaybeTensor = std::optional<Tensor>;

// How many elements a task should hold before a second thread is worth its start.
constexpr int64_t kGrain = 16384;

template <class T>
const T* data(const Tensor& t) {
  return static_cast<const T*>(t.data_ptr());
}
template <class T>
T* mutable_data(const Tensor& t) {
  return static_cast<T*>(t.data_ptr());
}
// nullptr for an absent or empty tensor.
template <class T>
const T* data(const MaybeTensor& t) {
  return t.has_value() && t->numel() > 0 ? data<T>(*t) : nullptr;
}

}  // namespace vdiff
