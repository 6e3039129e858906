// What the host code of the attentions shares: scratch memory and when outputs are streamed.
#pragma once

#include <cstdlib>
#include <memory>

#include "cpu/tensor.h"

namespace vdiff {

// Outputs of this size are evicted from the caches before they are read again, so stores may bypass the caches.
constexpr int64_t kStreamBytes = 4 << 20;

inline int64_t arithmetic_bytes(DType dtype) { return dtype == DType::f64 ? 8 : 4; }
inline ScalarType arithmetic(DType dtype) { return dtype == DType::f64 ? ScalarType::Double : ScalarType::Float; }

// Scratch of this thread, kept from call to call: fresh memory would take its page faults each time.
inline void* thread_scratch(int64_t bytes) {
  thread_local std::unique_ptr<void, decltype(&std::free)> memory(nullptr, &std::free);
  thread_local int64_t capacity = 0;
  if (bytes > capacity) {
    capacity = (bytes + 4095) / 4096 * 4096;
    memory.reset(std::aligned_alloc(64, capacity));
  }
  return memory.get();
}

inline bool can_stream(const Tensor& out) {
  return out.scalar_type() == ScalarType::Float && out.size(-1) % 16 == 0 && out.numel() * 4 >= kStreamBytes &&
         reinterpret_cast<uintptr_t>(out.data_ptr()) % 64 == 0;
}

}  // namespace vdiff
