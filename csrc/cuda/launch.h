// The device and stream of a launch and its check, for every CUDA op.
#pragma once

#include <utility>

#include <cuda_runtime.h>

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include "common/integers.h"
#include "common/stable.h"

namespace vdiff {

// nativeHandle() needs a newer target and Stream::id() is no cudaStream_t, so the C shim is asked.
inline cudaStream_t current_stream(const Tensor& t) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

inline void check_launch() {
  const cudaError_t status = cudaGetLastError();
  STD_TORCH_CHECK(status == cudaSuccess, cudaGetErrorString(status));
}

// An op as it is registered, its first tensor's device made current: a launch goes to the current device, whatever its
// stream and pointers belong to.
template <auto kOp>
struct OnDevice;

template <class Out, class... In, Out (*kOp)(In...)>
struct OnDevice<kOp> {
  static Out call(In... in) {
    const torch::stable::accelerator::DeviceGuard guard(first(in...).get_device_index());
    return kOp(std::forward<In>(in)...);
  }

 private:
  template <class... Rest>
  static const Tensor& first(const Tensor& x, const Rest&...) {
    return x;
  }
};

}  // namespace vdiff
