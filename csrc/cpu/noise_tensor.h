// For host code: the NoiseSource of an operator's arguments, and the parallel loop over samples and tasks.
#pragma once

#include "common/video.h"
#include "cpu/noise_source.h"
#include "cpu/tensor.h"

namespace vdiff {

// The number in a one-element tensor; 0 if it is absent.
inline int64_t number(const MaybeTensor& t) { return t.has_value() ? *data<int64_t>(*t) : 0; }

inline NoiseSource noise_source(const MaybeTensor& given, const MaybeTensor& seed, const MaybeTensor& sample_offset,
                                const MaybeTensor& stream, const FrameCorrelation& correlation) {
  NoiseSource source;
  if (given.has_value()) {
    source.given = given->data_ptr();
    source.given_is_float = given->scalar_type() == ScalarType::Float;
  }
  source.drawn = seed.has_value();
  source.seed = number(seed), source.sample_offset = number(sample_offset), source.stream = number(stream);
  source.correlation = correlation;
  return source;
}

// Splits the positions of every sample, or of a frame if frames are correlated, into tasks of `step` positions.
struct NoiseTasks {
  int64_t batch, positions, step, elements;

  NoiseTasks(const SampleLayout& layout, const NoiseSource& source)
      : batch(layout.batch),
        positions(layout.positions / source.frames()),
        step(task_positions(layout.channels)),
        elements(step * layout.channels * source.frames()) {}

  int64_t per_sample() const { return (positions + step - 1) / step; }

  // body(sample, task, begin, end) for every task, in parallel.
  template <class Body>
  void run(const Body& body) const {
    const int64_t tasks = per_sample();
    torch::stable::parallel_for(0, batch * tasks, 1 + kGrain / elements, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        const int64_t sample = i / tasks, task = i % tasks, begin = task * step;
        body(sample, task, begin, begin + step < positions ? begin + step : positions);
      }
    });
  }
};

}  // namespace vdiff
