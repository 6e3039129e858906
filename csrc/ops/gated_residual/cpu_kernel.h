#pragma once

#include "cpu/dtype.h"
#include "cpu/isa.h"
#include "cpu/spans.h"

namespace vdiff {

struct GatedResidual {
  Runs runs;
  // y is residual + gate * branch; backward reads dy in the residual's place and writes dbranch in y's.
  const void *residual, *branch;
  RunVectors gate;
  void *y, *dgate;
  // Sums of dy * branch per part where runs are cut.
  void* partial;
  // Whether y leaves the cache before anybody reads it.
  bool streamed;
};

struct GatedResidualKernels {
  void (*forward)(const GatedResidual& a, int64_t begin, int64_t end);
  void (*backward)(const GatedResidual& a, int64_t part, void* scratch);
  void (*reduce)(const GatedResidual& a, int64_t run, double* scratch);
  // Bytes.
  int64_t (*scratch)(int64_t width);
};

}  // namespace vdiff

VDIFF_DECLARE_KERNEL(gated_residual_kernels, (DType dtype, GatedResidualKernels* table))
