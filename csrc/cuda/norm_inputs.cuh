// Host side of the norms' inputs per channel: conversion to float32, launches, and the kernels of their gradients.
#pragma once

#include <algorithm>
#include <initializer_list>

#include "common/norm_tensor.h"
#include "cuda/cta.cuh"
#include "cuda/launch.h"
#include "cuda/norm.h"

namespace vdiff::norm {

inline MaybeTensor as_float(const MaybeTensor& t) {
  if (!t.has_value() || t->scalar_type() == ScalarType::Float) return t;
  return torch::stable::to(*t, ScalarType::Float);
}

// Owns the float32 copies that `view` points at.
struct FloatChannelInputs {
  MaybeTensor weight, bias, scale, shift, add;

  FloatChannelInputs(const MaybeTensor& weight, const MaybeTensor& bias, const MaybeTensor& scale,
                     const MaybeTensor& shift, const MaybeTensor& add)
      : weight(as_float(weight)),
        bias(as_float(bias)),
        scale(as_float(scale)),
        shift(as_float(shift)),
        add(as_float(add)) {}
  ChannelInputs view() const {
    return {data<float>(weight), data<float>(bias), data<float>(scale), data<float>(shift),
            data<float>(add),    frames_of(scale),  frames_of(shift)};
  }
};

inline Tensor scratch(const Tensor& x, int64_t n, ScalarType dtype = ScalarType::Float) {
  return torch::stable::new_empty(x, std::vector<int64_t>{n}, dtype);
}

// Whether all pointers are aligned to a vector.
inline bool on_vectors(std::initializer_list<const void*> pointers) {
  return std::all_of(pointers.begin(), pointers.end(),
                     [](const void* p) { return reinterpret_cast<uintptr_t>(p) % kVectorBytes == 0; });
}

inline int device_attribute(const Tensor& x, cudaDeviceAttr which) {
  int value = 0;
  cudaDeviceGetAttribute(&value, which, x.get_device_index());
  return value;
}

// Launch attributes: blocks in clusters, or a grid whose blocks all run at once.
inline cudaLaunchAttribute in_clusters(int64_t blocks) {
  cudaLaunchAttribute attribute{};
  if (blocks == 1) return attribute;
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {static_cast<unsigned>(blocks), 1, 1};
  return attribute;
}
inline cudaLaunchAttribute at_once() {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeCooperative, attribute.val.cooperative = 1;
  return attribute;
}

// Raises the kernel's limit of shared memory to all that a block can have. A limit of each launch's own bytes could be
// lowered by another host thread before the launch.
template <class Problem>
void allow_shared_memory(void (*kernel)(Problem)) {
  int device = 0, bytes = 0;
  cudaFuncAttributes compiled{};
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  cudaFuncGetAttributes(&compiled, kernel);
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                       bytes - static_cast<int>(compiled.sharedSizeBytes));
}

template <class Problem>
void start(void (*kernel)(Problem), const Problem& p, int64_t blocks, int64_t bytes, cudaStream_t stream,
           cudaLaunchAttribute attribute = {}) {
  allow_shared_memory(kernel);
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks)), config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = bytes, config.stream = stream;
  config.attrs = &attribute, config.numAttrs = attribute.id == cudaLaunchAttributeIgnore ? 0 : 1;
  cudaLaunchKernelEx(&config, kernel, p);
  check_launch();
}

static __global__ void __launch_bounds__(kThreads, 4)
    fold_kernel(NormGeometry s, int64_t cuts, const float* parts, double* sums) {
  DeviceCta cta;
  fold_cuts(cta, s, cuts, blockIdx.x, parts, sums);
}

// Gradients of weight and bias, one thread per channel.
static __global__ void __launch_bounds__(kThreads, 4)
    channel_gradient_kernel(NormGeometry s, ChannelInputs v, const double* sums, float* dweight, float* dbias) {
  const int64_t c = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (c >= s.channels) return;
  if (dweight != nullptr) dweight[c] = channel_gradient<true>(s, v, sums, c);
  if (dbias != nullptr) dbias[c] = channel_gradient<false>(s, v, sums, c);
}

// Gradients of scale, shift or add, one thread per element of the (batch, frames, channels) output.
static __global__ void __launch_bounds__(kThreads, 4)
    frame_gradient_kernel(NormGeometry s, ChannelInputs v, const double* sums, Framed which, int64_t frames,
                          float* out) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < s.batch * frames * s.channels) out[i] = frame_gradient(s, v, sums, which, frames, i);
}

// Gradients of the inputs that are given: computed in float32, returned in the input's dtype.
class ChannelGradients {
 public:
  ChannelGradients(const Tensor& x, const MaybeTensor& weight, const MaybeTensor& bias, const MaybeTensor& scale,
                   const MaybeTensor& shift, const MaybeTensor& add)
      : x_(x), like_{weight, bias, scale, shift, add} {
    for (const MaybeTensor& like : like_) {
      if (!like.has_value()) {
        gradients_.push_back(scratch(x, 0));
        continue;
      }
      const std::vector<int64_t> shape(like->sizes().begin(), like->sizes().end());
      gradients_.push_back(torch::stable::new_zeros(x, shape, ScalarType::Float));
    }
  }

  // `parts` holds the three sums of every (segment, cut, channel).
  void launch(const NormGeometry& s, int64_t cuts, const ChannelInputs& v, const float* parts,
              cudaStream_t stream) const {
    bool wanted = false;
    for (int i = 0; i < 5; ++i) wanted = wanted || target(i) != nullptr;
    if (!wanted) return;
    const auto blocks = [](int64_t threads) { return ceil_div(threads, kThreads); };
    const Tensor folded = scratch(x_, 3 * s.segment_channels(), ScalarType::Double);
    double* sums = mutable_data<double>(folded);
    fold_kernel<<<blocks(s.segment_channels() * kWarp), kThreads, 0, stream>>>(s, cuts, parts, sums);
    if (target(0) != nullptr || target(1) != nullptr) {
      channel_gradient_kernel<<<blocks(s.channels), kThreads, 0, stream>>>(s, v, sums, target(0), target(1));
    }
    const int64_t frames[] = {v.scale_frames, v.shift_frames, 1};
    for (int which = 0; which < 3; ++which) {
      if (target(2 + which) == nullptr) continue;
      frame_gradient_kernel<<<blocks(gradients_[2 + which].numel()), kThreads, 0, stream>>>(
          s, v, sums, static_cast<Framed>(which), frames[which], target(2 + which));
    }
    check_launch();
  }

  Tensor weight() const { return finished(0); }
  Tensor bias() const { return finished(1); }
  Tensor scale() const { return finished(2); }
  Tensor shift() const { return finished(3); }
  Tensor add() const { return finished(4); }

 private:
  float* target(int i) const { return gradients_[i].numel() > 0 ? mutable_data<float>(gradients_[i]) : nullptr; }
  Tensor finished(int i) const {
    const auto dtype = like_[i].has_value() ? like_[i]->scalar_type() : x_.scalar_type();
    return dtype == ScalarType::Float ? gradients_[i] : torch::stable::to(gradients_[i], dtype);
  }

  const Tensor& x_;
  const MaybeTensor like_[5];
  std::vector<Tensor> gradients_;
};

}  // namespace vdiff::norm
