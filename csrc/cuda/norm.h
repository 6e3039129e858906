// What the blocks of the norms share, for device and host (`Cta` is csrc/cuda/cta.cuh, or its counterpart in the
// tests): vectors of 16 bytes on their way through shared memory, the activation, the inputs per channel and their
// gradients.
#pragma once

#include <math.h>
#include <stdint.h>

#include "common/norm_geometry.h"

namespace vdiff::norm {

constexpr int kThreads = 256, kWarp = 32, kVectorBytes = 16;
// Groups of copies (cp.async) in which a thread's vectors arrive: the first are summed while the last are under way.
constexpr int kStages = 4;

template <class T>
struct alignas(kVectorBytes) Vector {
  T v[kVectorBytes / sizeof(T)];
};

// One thread's copies into shared memory, in kStages groups of `vectors_per_stage`.
struct CopyStages {
  int vectors_per_stage, done = 0;

  VDIFF_DEVICE explicit CopyStages(int vectors) : vectors_per_stage((vectors + kStages - 1) / kStages) {}
  // Called before the copy into `slot`.
  template <class Cta>
  VDIFF_DEVICE void commit_before(Cta& cta, int slot) {
    for (; done < slot / vectors_per_stage; ++done) cta.commit();
  }
  // Called after the last copy.
  template <class Cta>
  VDIFF_DEVICE void commit_rest(Cta& cta) {
    for (; done < kStages; ++done) cta.commit();
  }
  // Waits until the copy into `slot` has arrived.
  template <class Cta>
  VDIFF_DEVICE void await(Cta& cta, int slot) {
    while (done * vectors_per_stage <= slot) cta.wait(kStages - ++done);
  }
};

template <class Cta>
VDIFF_DEVICE float sigmoid(const Cta& cta, float z) {
  return cta.quotient(1.0f, 1.0f + cta.exp(-z));
}
template <class Cta>
VDIFF_DEVICE float activated(const Cta& cta, float z, bool silu) {
  return silu ? z * sigmoid(cta, z) : z;
}
// dy times the derivative of the activation at z: the gradient of z.
template <class Cta>
VDIFF_DEVICE float through_activation(const Cta& cta, float dy, float z, bool silu) {
  if (!silu) return dy;
  const float s = sigmoid(cta, z);
  return dy * s * (1.0f + z * (1.0f - s));
}

// Inputs per channel as float32, nullptr where absent. add is (batch, channels), scale and shift are (batch, frames,
// channels).
struct ChannelInputs {
  const float *weight, *bias, *scale, *shift, *add;
  int64_t scale_frames, shift_frames;
};

VDIFF_HOST_DEVICE double framed(const NormGeometry& s, const float* values, int64_t frames, int64_t segment,
                                int64_t c) {
  if (values == nullptr) return 0.0;
  const int64_t sample = segment / s.segments, frame = frames > 1 ? segment - sample * s.segments : 0;
  return values[(sample * frames + frame) * s.channels + c];
}
VDIFF_HOST_DEVICE double weight_of(const ChannelInputs& v, int64_t c) {
  return v.weight == nullptr ? 1.0 : v.weight[c];
}
VDIFF_HOST_DEVICE double bias_of(const ChannelInputs& v, int64_t c) { return v.bias == nullptr ? 0.0 : v.bias[c]; }
VDIFF_HOST_DEVICE double factor_of(const NormGeometry& s, const ChannelInputs& v, int64_t segment, int64_t c) {
  return 1.0 + framed(s, v.scale, v.scale_frames, segment, c);
}
VDIFF_HOST_DEVICE float add_of(const NormGeometry& s, const ChannelInputs& v, int64_t segment, int64_t c) {
  return v.add == nullptr ? 0.0f : v.add[segment / s.segments * s.channels + c];
}

// Adds up the three sums of each (segment, cut, channel) over the cuts; each (segment, channel) by one warp. They are
// the sums of g, of g * n and, for the gradient of `add`, of dx, with g = dy * act'(z) and n the normalised x.
template <class Cta>
VDIFF_DEVICE void fold_cuts(Cta& cta, const NormGeometry& s, int64_t cuts, int64_t block, const float* parts,
                            double* sums) {
  struct Triple {
    double v[3];
  };
  const auto index = [&](int t) { return block * (kThreads / kWarp) + t / kWarp; };
  cta.template reduce_lanes<Triple>(
      kWarp,
      [&](int t) {
        Triple total{};
        const int64_t i = index(t), segment = i / s.channels, c = i - segment * s.channels;
        for (int64_t cut = t % kWarp; cut < cuts && i < s.segment_channels(); cut += kWarp) {
          for (int k = 0; k < 3; ++k) total.v[k] += parts[3 * ((segment * cuts + cut) * s.channels + c) + k];
        }
        return total;
      },
      [](Triple& a, const Triple& b) {
        for (int k = 0; k < 3; ++k) a.v[k] += b.v[k];
      },
      [&](int t, const Triple& total) {
        if (index(t) >= s.segment_channels()) return;
        for (int k = 0; k < 3; ++k) sums[3 * index(t) + k] = total.v[k];
      });
}

// Gradient of weight (kWeight) or bias in one channel, from the sums of every (segment, channel).
template <bool kWeight>
VDIFF_HOST_DEVICE float channel_gradient(const NormGeometry& s, const ChannelInputs& v, const double* sums, int64_t c) {
  double total = 0;
  for (int64_t segment = 0; segment < s.batch * s.segments; ++segment) {
    total += factor_of(s, v, segment, c) * sums[3 * (segment * s.channels + c) + (kWeight ? 1 : 0)];
  }
  return static_cast<float>(total);
}

enum Framed { kScale, kShift, kAdd };
// Element i of the gradient of scale, shift or add, which is (batch, frames, channels).
VDIFF_HOST_DEVICE float frame_gradient(const NormGeometry& s, const ChannelInputs& v, const double* sums, Framed which,
                                       int64_t frames, int64_t i) {
  const int64_t row = i / s.channels, c = i - row * s.channels, folded = frames > 1 ? 1 : s.segments;
  double total = 0;
  for (int64_t segment = row * folded; segment < (row + 1) * folded; ++segment) {
    const double* from = sums + 3 * (segment * s.channels + c);
    total += which == kScale   ? weight_of(v, c) * from[1] + bias_of(v, c) * from[0]
             : which == kShift ? from[0]
                               : from[2];
  }
  return static_cast<float>(total);
}

}  // namespace vdiff::norm
