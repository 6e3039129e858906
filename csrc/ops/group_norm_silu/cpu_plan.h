// How the CPU op cuts its work: geometry, blocks that are normalised as one, and parts that threads take.
#pragma once

#include <algorithm>

#include "cpu/tensor.h"

namespace vdiff::group_norm {

// Bytes of x between a block's statistics and its second read: what the last-level cache holds beside the output.
constexpr int64_t kWaveBytes = 8 << 20;
// Bytes of x in a block up to which the backward keeps a SiLU's g in dx between its passes; beyond, three tensors
// instead of two leave the caches meanwhile, and the slope is no dearer the second time.
constexpr int64_t kKeepBytes = 1 << 20;
// Elements of one contiguous chunk, the unit in which a group is cut between threads.
constexpr int64_t kChunk = 16384;
// Elements of a part where threads have blocks enough: the apply pass goes through the parts in reverse.
constexpr int64_t kPart = 1 << 18;

struct Options {
  int64_t num_groups;
  bool per_frame, silu;
  int64_t frames;  // T where scale or shift is per frame, else 1
};

// x is batch x segments x length x channels: a segment is a frame where anything is per frame, else the sample.
struct Plan {
  bool channels_last, per_frame, silu;
  int64_t batch, groups, per_group, segments, length;
  int64_t channels, source_channels[2];
  int64_t unit_segments, units, blocks, block_elements, parts, element;

  Plan(const Tensor& x, const std::optional<Tensor>& x2, const Options& options) {
    channels_last = !(x.is_contiguous() && (!x2.has_value() || x2->is_contiguous()));
    per_frame = options.per_frame, silu = options.silu;
    batch = x.size(0), groups = options.num_groups;
    source_channels[0] = x.size(1), source_channels[1] = x2.has_value() ? x2->size(1) : 0;
    channels = source_channels[0] + source_channels[1], per_group = channels / groups;
    int64_t positions = 1;
    for (int64_t d = 2; d < x.dim(); ++d) positions *= x.size(d);
    segments = per_frame || options.frames > 1 ? x.size(2) : 1;
    length = positions / std::max<int64_t>(segments, 1);
    unit_segments = per_frame ? 1 : segments;
    units = batch * segments / std::max<int64_t>(unit_segments, 1);
    blocks = channels_last ? units : units * groups;
    block_elements = unit_segments * length * (channels_last ? channels : per_group);
    element = x.element_size();
    choose_parts();
  }

  int64_t count() const { return unit_segments * length * per_group; }
  int64_t vectors() const { return batch * segments * channels; }
  bool empty() const { return batch * segments * length * channels == 0; }

  // Groups whose per-channel work is worth a thread: some nanoseconds a channel and part.
  int64_t group_grain() const {
    const int64_t values = per_group * (channels_last ? parts : unit_segments);
    return 1 + kGrain / 16 / std::max<int64_t>(values, 1);
  }

  bool keeps() const { return block_elements * element <= kKeepBytes; }

  // Elements between the runs of neighbouring channels, and bytes between neighbouring groups of one source.
  int64_t row_stride() const { return segments * length; }
  int64_t group_bytes() const { return per_group * row_stride() * element; }
  int source_of(int64_t c) const { return c < source_channels[0] ? 0 : 1; }
  // Rows of a channels-last part: segment and range of positions.
  struct Rows {
    int64_t segment, begin, end;
  };
  Rows rows(int64_t block, int64_t part) const {
    const int64_t cuts = parts / unit_segments, cut = part % cuts;
    return {block * unit_segments + part / cuts, cut * length / cuts, (cut + 1) * length / cuts};
  }

 private:
  void choose_parts() {
    const int64_t threads = torch::stable::get_num_threads(), wanted = 4 * threads;
    const int64_t cuts = channels_last ? std::max<int64_t>(unit_segments, 1) : 1;
    int64_t per_cut = (block_elements / cuts + kPart - 1) / kPart;
    if (blocks * cuts < wanted && blocks > 0) {
      const int64_t enough = (wanted + blocks * cuts - 1) / (blocks * cuts);
      per_cut = std::max(per_cut, std::min(enough, block_elements / cuts / kGrain));
    }
    per_cut = std::min(per_cut, channels_last ? length : (length + kChunk - 1) / kChunk * per_group * unit_segments);
    parts = cuts * std::max<int64_t>(per_cut, 1);
  }
};

// reduce every part of a block, finish the block, then apply its parts, the last first: they are still in cache.
template <class Reduce, class Finish, class Apply>
void run_blocks(const Plan& plan, Reduce reduce, Finish finish, Apply apply) {
  if (plan.blocks >= 4 * static_cast<int64_t>(torch::stable::get_num_threads())) {
    const int64_t grain = 1 + kGrain / std::max<int64_t>(plan.block_elements, 1);
    torch::stable::parallel_for(0, plan.blocks, grain, [&](int64_t begin, int64_t end) {
      for (int64_t block = begin; block < end; ++block) {
        for (int64_t part = 0; part < plan.parts; ++part) reduce(block, part);
        finish(block);
        for (int64_t part = plan.parts; part-- > 0;) apply(block, part);
      }
    });
    return;
  }
  const int64_t bytes = std::max<int64_t>(plan.block_elements * plan.element, 1);
  const int64_t wave = std::clamp<int64_t>(kWaveBytes / bytes, 1, std::max<int64_t>(plan.blocks, 1));
  const int64_t grain = 1 + kGrain * plan.parts / std::max<int64_t>(plan.block_elements, 1);
  for (int64_t first = 0; first < plan.blocks; first += wave) {
    const int64_t last = std::min(first + wave, plan.blocks);
    torch::stable::parallel_for(first * plan.parts, last * plan.parts, grain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) reduce(i / plan.parts, i % plan.parts);
    });
    for (int64_t block = first; block < last; ++block) finish(block);
    torch::stable::parallel_for(first * plan.parts, last * plan.parts, grain, [&](int64_t begin, int64_t end) {
      for (int64_t i = end; i-- > begin;) apply(i / plan.parts, i % plan.parts);
    });
  }
}

// Positions [begin, end) of `rows` channels from c on, in segment `frame` of a sample; `segment` counts all segments.
struct Chunk {
  int64_t sample, frame, segment, c, rows, begin, end;
};

// Calls body(chunk) for the chunks of one part of a contiguous group, in memory order.
template <class Body>
void each_chunk(const Plan& plan, int64_t block, int64_t part, Body body) {
  const int64_t unit = block / plan.groups, first_c = block % plan.groups * plan.per_group;
  const int64_t first = unit * plan.unit_segments, sample = first / plan.segments, frame = first % plan.segments;
  const int64_t cuts = (plan.length + kChunk - 1) / kChunk, total = plan.per_group * plan.unit_segments * cuts;
  const int64_t begin = part * total / plan.parts, end = (part + 1) * total / plan.parts;
  if (cuts == 1 && plan.unit_segments == 1) {
    // Short runs: one call for all channels of a source.
    const int64_t split = std::clamp(plan.source_channels[0], first_c + begin, first_c + end);
    const auto rows = [&](int64_t from, int64_t to) {
      if (to > from) body(Chunk{sample, frame, first, from, to - from, 0, plan.length});
    };
    rows(first_c + begin, split);
    rows(split, first_c + end);
    return;
  }
  int64_t cut = begin % cuts, s = begin / cuts % plan.unit_segments, c = begin / cuts / plan.unit_segments;
  for (int64_t i = begin; i < end; ++i) {
    body(Chunk{sample, frame + s, first + s, first_c + c, 1, cut * kChunk, std::min((cut + 1) * kChunk, plan.length)});
    if (++cut < cuts) continue;
    cut = 0;
    if (++s == plan.unit_segments) s = 0, ++c;
  }
}

}  // namespace vdiff::group_norm
