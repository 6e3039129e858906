// The schema's seed, sample_offset and stream as a CPU kernel's NoiseSource, and the loop over (sample, task).
#pragma once

#include "cpu/noise_source.h"
#include "cpu/tensor.h"

namespace vdiff {

inline int64_t word(const std::optional<Tensor>& t) { return t.has_value() ? *data<int64_t>(*t) : 0; }

inline NoiseSource noise_source(const std::optional<Tensor>& given, const std::optional<Tensor>& seed,
                                const std::optional<Tensor>& sample_offset, const std::optional<Tensor>& stream) {
  NoiseSource source;
  if (given.has_value()) {
    source.given = given->data_ptr();
    source.given_is_float = given->scalar_type() == ScalarType::Float;
  }
  source.drawn = seed.has_value();
  source.seed = word(seed), source.sample_offset = word(sample_offset), source.stream = word(stream);
  return source;
}

// body(sample, task, begin, end) over the positions of every sample, in tasks of `step` positions.
template <class Body>
void for_each_task(int64_t batch, int64_t positions, int64_t step, int64_t elements_per_task, const Body& body) {
  const int64_t tasks = (positions + step - 1) / step;
  const int64_t grain = 1 + kGrain / elements_per_task;
  torch::stable::parallel_for(0, batch * tasks, grain, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t sample = i / tasks, task = i % tasks, begin = task * step;
      body(sample, task, begin, begin + step < positions ? begin + step : positions);
    }
  });
}

}  // namespace vdiff
