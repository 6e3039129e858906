// Software prefetch that is spread over the steps of a product. Included by cpu_kernel.cpp only.
#pragma once

#include "cpu/simd.h"

namespace vdiff::VDIFF_ISA {

// What is asked for while products are computed, so that memory and arithmetic overlap: no hardware prefetcher follows
// rows from frame to frame, and asked for at once they would wait for each other in the core's few miss buffers.
class Ahead {
 public:
  struct Run {
    const char *at, *end;
  };

  explicit Ahead(Run* runs) : run_(runs), last_(runs) { *last_ = {(const char*)runs, nullptr}; }

  // `count` rows of `bytes`, `stride` bytes apart.
  void add(const void* row, int64_t count, int64_t stride, int64_t bytes) {
    const char* at = (const char*)row;
    if (stride == bytes) bytes *= count, count = 1;
    for (; count > 0; --count, at += stride) *last_++ = {at, at + bytes};
    *last_ = {(const char*)run_, nullptr};
    at_ = run_->at;
  }

  // One cache line; after the last one an address that does no harm.
  void ask() {
    __builtin_prefetch(at_);
    at_ += 64;
    if (at_ >= run_->end) {
      run_ += run_ != last_;
      at_ = run_->at;
    }
  }
  // For what is done between the products, which wide vectors make too short for all lines.
  void ask_aside() {
    if constexpr (kVectorBytes == 64) ask();
  }

 private:
  Run *run_, *last_;
  const char* at_ = (const char*)run_;
};

// Steps of a product for each line asked for, in the forward and in the backward. With narrow vectors there are more
// steps than lines, and asking at each of them cost a fifth of the whole (AVX2).
constexpr int kForwardEvery = kVectorBytes == 64 ? 1 : 2, kBackwardEvery = kVectorBytes == 64 ? 1 : 4;

}  // namespace vdiff::VDIFF_ISA
