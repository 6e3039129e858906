// Host-side glue of the modulated ops: tensors (B, N, D) and (B, F, D) to runs of rows and their vectors.
#pragma once

#include <algorithm>

#include "cpu/output_memory.h"
#include "cpu/spans.h"
#include "cpu/tensor.h"

namespace vdiff {

inline Runs runs_of(const Tensor& x, const Tensor& vectors) {
  return Runs::of(x.size(0), x.size(1), x.size(2), vectors.size(1));
}

inline RunVectors run_vectors(const Tensor& v) { return {v.data_ptr(), v.stride(0), v.stride(1)}; }

inline ScalarType wide_type(const Tensor& x) {
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// The gradient of a modulating vector: contiguous, whatever its strides.
inline Tensor vector_like(const Tensor& v) {
  return torch::stable::new_empty(v, std::vector<int64_t>{v.size(0), v.size(1), v.size(2)});
}

// Memory for `count` sums of the width of x per part, in the dtype that sums are taken in.
inline Tensor partial_sums(const Tensor& x, int64_t parts, int64_t count) {
  return torch::stable::new_empty(x, std::vector<int64_t>{parts, count, x.size(x.dim() - 1)}, wide_type(x));
}

// Rows of the last axis, all in one run.
inline Runs rows_of(const Tensor& x) {
  const int64_t width = x.size(x.dim() - 1);
  return Runs::of(1, width > 0 ? x.numel() / width : 0, width, 1);
}

// body(part) on every part, on as many threads as the work is worth.
template <class Body>
void each_part(const Runs& runs, Body body) {
  const int64_t parts = runs.parts();
  if (parts == 0) return;
  const int64_t elements = std::max<int64_t>(runs.rows * runs.width / parts, 1);
  torch::stable::parallel_for(0, parts, 1 + kGrain / elements, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) body(part);
  });
}

// body(run) on every run, after its parts.
template <class Body>
void each_run(const Runs& runs, Body body) {
  const int64_t grain = 1 + kGrain / std::max<int64_t>(runs.cuts * runs.width, 1);
  torch::stable::parallel_for(0, runs.count(), grain, [&](int64_t begin, int64_t end) {
    for (int64_t run = begin; run < end; ++run) body(run);
  });
}

template <class Kernels, class Arguments>
void run_forward(const Kernels& kernels, const Arguments& a) {
  const Runs& runs = a.runs;
  if (runs.rows * runs.width == 0) return;
  torch::stable::parallel_for(0, runs.rows, 1 + kGrain / runs.width,
                              [&](int64_t begin, int64_t end) { kernels.forward(a, begin, end); });
}

// Every part, then every cut run; the gradients of vectors without a row are zero already.
template <class Kernels, class Arguments>
void run_backward(const Kernels& kernels, const Arguments& a) {
  const int64_t bytes = kernels.scratch(a.runs.width);
  each_part(a.runs, [&](int64_t part) {
    thread_local std::vector<char> scratch;
    scratch.resize(std::max<size_t>(scratch.size(), bytes));
    kernels.backward(a, part, scratch.data());
  });
  if (a.runs.cuts == 1) return;
  each_run(a.runs, [&](int64_t run) {
    std::vector<double> scratch(3 * a.runs.width);
    kernels.reduce(a, run, scratch.data());
  });
}

// dshift, dscale or dgate: zero where there is no row to sum.
inline Tensor vector_gradient_of(const Tensor& v, const Runs& runs) {
  Tensor gradient = vector_like(v);
  return runs.rows == 0 ? torch::stable::zero_(gradient) : gradient;
}

template <class Real>
void add_parts(const Tensor& partial, int64_t which, const Tensor& sum) {
  const int64_t parts = partial.size(0), width = partial.size(2), step = partial.size(1) * width;
  const Real* first = data<Real>(partial) + which * width;
  torch::stable::parallel_for(0, width, 1 + kGrain / (parts + 1), [&](int64_t begin, int64_t end) {
    std::vector<double> total(end - begin);
    for (int64_t part = 0; part < parts; ++part) {
      for (int64_t i = begin; i < end; ++i) total[i - begin] += static_cast<double>(first[part * step + i]);
    }
    for (int64_t i = begin; i < end; ++i) mutable_data<Real>(sum)[i] = static_cast<Real>(total[i - begin]);
  });
}

// The gradient of a weight or bias: sum number `which` of every part, in the parts' order; no elements where `like` is
// absent.
inline Tensor sum_of_parts(const MaybeTensor& like, const Tensor& x, const Tensor& partial, int64_t which) {
  if (!like.has_value()) return torch::stable::new_empty(x, std::vector<int64_t>{0});
  Tensor sum = torch::stable::empty_like(*like);
  (x.scalar_type() == ScalarType::Double ? &add_parts<double> : &add_parts<float>)(partial, which, sum);
  return sum;
}

}  // namespace vdiff
