// Arguments of the activations with a bias: no torch header here.
#pragma once

#include "cpu/dtype.h"
#include "cpu/spans.h"

namespace vdiff {

// Rows of x, all in one run. bias, and the sums of dx per part in `partial`, are float, or double for doubles; both may
// be absent.
struct BiasedRows {
  Runs runs;
  const void *dy, *x, *bias;
  // y, or dx in the backward.
  void *out, *partial;
};

struct BiasedRowsKernels {
  void (*forward)(const BiasedRows& a, int64_t begin, int64_t end);
  void (*backward)(const BiasedRows& a, int64_t part);
};

}  // namespace vdiff
