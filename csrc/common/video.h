// Host-side glue of the ops that draw noise: how a sample lies in memory, and what the schema's tensors hold.
#pragma once

#include "common/frame_correlation.h"
#include "common/schedule.h"
#include "common/stable.h"

namespace vdiff {

// A sample is (channels, positions) with element e = position * channels + channel; channels = 1 where memory is in
// the order of e already: channels-last, or a rank without a channel axis.
struct SampleLayout {
  int64_t batch, channels, positions;
};

inline SampleLayout sample_layout(const Tensor& x) {
  const int64_t batch = x.size(0), elements = batch == 0 ? 0 : x.numel() / batch;
  if ((x.dim() != 4 && x.dim() != 5) || elements == 0 || !x.is_contiguous()) return {batch, 1, elements};
  const int64_t channels = x.size(1);
  if (channels == 1 || channels == elements) return {batch, 1, elements};
  return {batch, channels, elements / channels};
}

inline FrameCorrelation frame_correlation(int64_t frames, double shared, double own, bool progressive) {
  return {frames, static_cast<float>(shared), static_cast<float>(own), progressive};
}

inline ScheduleTables schedule_tables(const Tensor& t, const Tensor& signal, const Tensor& noise_scale) {
  const bool steps = t.scalar_type() == ScalarType::Long;
  return {steps ? data<int64_t>(t) : nullptr, steps ? nullptr : data<float>(t), data<float>(signal),
          data<float>(noise_scale), signal.numel()};
}

}  // namespace vdiff
