// The noise of a task in the memory order of a sample, with or without correlation between its frames. Included by
// cpu_kernel.cpp files only.
#pragma once

#include "cpu/noise_source.h"
#include "cpu/philox.h"

namespace vdiff::VDIFF_ISA::philox {

// The noise of a chunk of a task, frame by frame, as vectors whose order is the same in every frame, so that the noise
// that frames share stays in an array of vectors. A sample is (channels, positions). A chunk is a range of a frame's
// positions if every frame begins with a new counter and the task holds all channels, else a range of the frame's
// elements e.
class FrameNoise {
 public:
  static constexpr int64_t kMaxVectors = kTaskElements / kLanes;

  FrameNoise(const NoiseSource& source, int64_t sample, int64_t channels, int64_t positions)
      : source_(source),
        sample_(source.sample_offset + sample),
        channels_(channels),
        positions_(positions),
        frame_positions_(positions / source.correlation.frames),
        by_position_(frame_positions_ % 4 == 0 && channels * kWidestTile <= kTaskElements) {}

  // body(begin, end) for the chunks of the positions [begin, end) of a frame.
  template <class Body>
  void each_chunk(int64_t begin, int64_t end, const Body& body) const {
    if (by_position_) return body(begin, end);
    const int64_t most = channels_ == 1 ? kTaskElements : kMaxVectors;
    for (int64_t first = begin * channels_; first < end * channels_; first += most) {
      body(first, first + most < end * channels_ ? first + most : end * channels_);
    }
  }

  // Draws the noise that all frames share; called before the first frame of a chunk.
  void draw_shared(int64_t begin, int64_t end) {
    if (source_.correlation.progressive) return;
    size_ = 0;
    const auto keep = [this](int64_t, vfloat n, int) { carried_[size_++] = n; };
    draw(source_.stream ^ (int64_t)kSharedStream, frame_positions_, 0, begin, end, keep);
  }

  // Draws the noise of the chunk in one frame; frames come in order.
  void draw_frame(int64_t frame, int64_t begin, int64_t end) {
    size_ = 0;
    const FrameCorrelation& c = source_.correlation;
    const bool first = c.progressive && frame == 0;
    draw(source_.stream, positions_, frame * frame_positions_, begin, end, [&, this](int64_t at, vfloat n, int count) {
      const vfloat z = first ? n : splat(c.shared) * carried_[size_] + splat(c.own) * n;
      if (c.progressive) carried_[size_] = z;
      noise_[size_] = z, at_[size_] = at, count_[size_++] = count;
    });
  }

  // body(offset, noise, count) for the vectors of the chunk in the frame that was drawn last.
  template <class Body>
  void each_vector(Body& body) const {
    for (int64_t i = 0; i < size_; ++i) body(at_[i], noise_[i], count_[i]);
  }

 private:
  // emit(offset, normals, count) for a chunk of the frame that begins at position `frame` of a sample of `positions`.
  template <class Emit>
  inline void draw(int64_t stream, int64_t positions, int64_t frame, int64_t begin, int64_t end, Emit emit) const {
    if (by_position_) {
      return for_each(source_.seed, sample_, stream, channels_, positions, frame + begin, frame + end, emit);
    }
    // The counter that the chunk begins in is drawn from its first element on.
    alignas(64) float drawn[kTaskElements + 2 * kTile];
    const int64_t skip = frame * channels_, first = (skip + begin) / 4 * 4;
    for_each(source_.seed, sample_, stream, 1, skip + end, first, skip + end,
             [&](int64_t at, vfloat n, int) { store(drawn + (at - first), n); });
    const float* n = drawn + (skip + begin - first);
    const int most = channels_ == 1 ? kLanes : 1;
    for (int64_t i = 0; i < end - begin; i += most) {
      const int64_t e = skip + begin + i, left = end - begin - i;
      emit(e % channels_ * positions + e / channels_, load(n + i), left < most ? (int)left : most);
    }
  }

  const NoiseSource& source_;
  const int64_t sample_, channels_, positions_, frame_positions_;
  const bool by_position_;
  int64_t size_ = 0;
  vfloat carried_[kMaxVectors], noise_[kMaxVectors];
  int64_t at_[kMaxVectors];
  int count_[kMaxVectors];
};

// body(offset, noise, count) for the positions [begin, end) of a sample, or of each of its frames if they are
// correlated. See for_each() of cpu/philox.h.
template <class Body>
inline void for_each(const NoiseSource& s, int64_t sample, int64_t channels, int64_t positions, int64_t begin,
                     int64_t end, Body body) {
  if (s.correlation.frames == 0) {
    return for_each(s.seed, s.sample_offset + sample, s.stream, channels, positions, begin, end, body);
  }
  FrameNoise noise(s, sample, channels, positions);
  noise.each_chunk(begin, end, [&](int64_t first, int64_t last) {
    noise.draw_shared(first, last);
    for (int64_t frame = 0; frame < s.correlation.frames; ++frame) {
      noise.draw_frame(frame, first, last);
      noise.each_vector(body);
    }
  });
}

}  // namespace vdiff::VDIFF_ISA::philox
