// Host-side glue that both CPU files of this room share.
#pragma once

#include <cstdlib>
#include <memory>

#include "cpu/tensor.h"

namespace vdiff {

// Outputs this large leave the caches before anybody reads them, so they need not be read into them to be written.
constexpr int64_t kStreamBytes = 4 << 20;

inline int64_t arithmetic_bytes(DType dtype) { return dtype == DType::f64 ? 8 : 4; }
inline ScalarType arithmetic(DType dtype) { return dtype == DType::f64 ? ScalarType::Double : ScalarType::Float; }

// Kept by each thread from call to call: fresh memory would cost its page faults every time.
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
