// Rows of a modulated op, as host and kernels see them: no torch header here.
#pragma once

#include <stdint.h>

namespace vdiff {

// `rows` rows of `width` elements in runs of `length` rows that share one modulating vector. Work goes in parts, fixed
// by the shape alone so that every sum has one order for any number of threads: a part is a piece of one run (`cuts`
// pieces a run), or, where a run is short, `group` whole runs.
struct Runs {
  int64_t rows, width, length, per_sample, cuts, group;

  static Runs of(int64_t batch, int64_t tokens, int64_t width, int64_t per_sample) {
    // A few hundred KB a part; 64 rows at most, so that sums in float32 stay short.
    const int64_t wanted = 65536 / (width > 0 ? width : 1);
    const int64_t part = wanted < 32 ? 32 : wanted > 64 ? 64 : wanted;
    const int64_t length = per_sample > 0 ? tokens / per_sample : 0;
    const int64_t cuts = length > part ? (length + part - 1) / part : 1;
    const int64_t group = cuts > 1 || length == 0 ? 1 : part / length;
    return {batch * tokens, width, length, per_sample, cuts, group};
  }

  int64_t count() const { return length > 0 ? rows / length : 0; }
  int64_t parts() const { return cuts > 1 ? count() * cuts : (count() + group - 1) / group; }
  // First row of a part; that of `parts()` is the number of rows.
  int64_t first_row(int64_t part) const {
    if (cuts > 1) return part / cuts * length + part % cuts * length / cuts;
    return part * group * length < rows ? part * group * length : rows;
  }
};

// One vector per run, elements `sample_stride` and `run_stride` apart, unit stride inside.
struct RunVectors {
  const void* data;
  int64_t sample_stride, run_stride;

  template <class T>
  const T* at(const Runs& runs, int64_t run) const {
    return static_cast<const T*>(data) + run / runs.per_sample * sample_stride + run % runs.per_sample * run_stride;
  }
};

}  // namespace vdiff
