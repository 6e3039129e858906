// Software prefetch that is spread over the steps of a product. Included by cpu_kernel.cpp only.
#pragma once

#include "cpu/vec.h"

namespace vdiff::VDIFF_ISA {

// A list of cache lines to prefetch, issued a few at a time between the steps of a product so that memory and
// arithmetic overlap. The hardware prefetcher does not follow rows from frame to frame, and issued all at once the
// prefetches would fill the core's few miss buffers.
class Prefetcher {
 public:
  // Bytes [at, end).
  struct Range {
    const char *at, *end;
  };

  // `ranges` has room for every range that add() appends, and for one more.
  explicit Prefetcher(Range* ranges) : range_(ranges), last_(ranges) { *last_ = {(const char*)ranges, nullptr}; }

  // `count` rows of `bytes`, `stride` bytes apart.
  void add(const void* row, int64_t count, int64_t stride, int64_t bytes) {
    const char* at = (const char*)row;
    if (stride == bytes) bytes *= count, count = 1;
    for (; count > 0; --count, at += stride) *last_++ = {at, at + bytes};
    *last_ = {(const char*)range_, nullptr};
    at_ = range_->at;
  }

  // Prefetches the next cache line; after the last one the list itself, which is in cache anyway.
  void issue() {
    __builtin_prefetch(at_);
    at_ += 64;
    if (at_ >= range_->end) {
      range_ += range_ != last_;
      at_ = range_->at;
    }
  }
  // Called between the products: with 64-byte vectors their steps are too few to issue all lines.
  void issue_if_wide() {
    if constexpr (kVectorBytes == 64) issue();
  }

 private:
  Range *range_, *last_;
  const char* at_ = (const char*)range_;
};

// Steps of a product per prefetched line, in the forward and in the backward. Narrow vectors take more steps than there
// are lines; with AVX2 a prefetch in each of them took a fifth of the kernel's time.
constexpr int kForwardPrefetchStep = kVectorBytes == 64 ? 1 : 2;
constexpr int kBackwardPrefetchStep = kVectorBytes == 64 ? 1 : 4;

}  // namespace vdiff::VDIFF_ISA
