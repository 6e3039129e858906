// How the CPU op divides its work between threads, and which parts it visits in which order.
//
//   block  what is normalised as one: a group of a unit in contiguous memory, a whole unit in channels-last
//   part   what one thread takes of a block
#pragma once

#include <algorithm>

#include "cpu/tensor.h"
#include "ops/group_norm_silu/arguments.h"

namespace vdiff::group_norm {

// Bytes of x between a block's statistics and its second read: what the last-level cache holds beside the output.
constexpr int64_t kWaveBytes = 8 << 20;
// Bytes of x in a block up to which the backward keeps a SiLU's g in dx between its passes. Above this size dx would be
// a third tensor that is evicted between the passes, and computing g again is as cheap.
constexpr int64_t kKeepBytes = 1 << 20;
// Elements of one contiguous chunk, the unit in which a group is cut between threads.
constexpr int64_t kChunk = 16384;
// Elements of a part where there are blocks enough for all threads: the second pass goes through the parts in reverse.
constexpr int64_t kPart = 1 << 18;

struct Plan : Geometry {
  int64_t blocks, block_elements, parts;

  explicit Plan(const Geometry& geometry) : Geometry(geometry) {
    blocks = channels_last ? units : units * groups;
    block_elements = segments_per_unit * length * (channels_last ? channels : per_group);
    choose_parts();
  }

  // Groups whose work per channel is worth a thread: some nanoseconds per channel and part.
  int64_t group_grain() const {
    const int64_t values = per_group * (channels_last ? parts : segments_per_unit);
    return 1 + kGrain / 16 / std::max<int64_t>(values, 1);
  }

  bool keeps() const { return block_elements * element <= kKeepBytes; }

  // Elements between neighbouring channels in contiguous memory, and bytes between neighbouring groups of one source.
  int64_t row_stride() const { return segments * length; }
  int64_t group_bytes() const { return per_group * row_stride() * element; }
  int source_of(int64_t c) const { return c < source_channels[0] ? 0 : 1; }
  // Rows of a channels-last part: a segment and a range of its positions.
  struct Rows {
    int64_t segment, begin, end;
  };
  Rows rows(int64_t block, int64_t part) const {
    const int64_t cuts = parts / segments_per_unit, cut = part % cuts;
    return {block * segments_per_unit + part / cuts, cut * length / cuts, (cut + 1) * length / cuts};
  }

 private:
  void choose_parts() {
    const int64_t threads = torch::stable::get_num_threads(), wanted = 4 * threads;
    const int64_t cuts = channels_last ? std::max<int64_t>(segments_per_unit, 1) : 1;
    int64_t per_cut = (block_elements / cuts + kPart - 1) / kPart;
    if (blocks * cuts < wanted && blocks > 0) {
      const int64_t enough = (wanted + blocks * cuts - 1) / (blocks * cuts);
      per_cut = std::max(per_cut, std::min(enough, block_elements / cuts / kGrain));
    }
    per_cut =
        std::min(per_cut, channels_last ? length : (length + kChunk - 1) / kChunk * per_group * segments_per_unit);
    parts = cuts * std::max<int64_t>(per_cut, 1);
  }
};

// Calls reduce(block, part) for every part of a block, finish(block), then apply(block, part) with the last part first,
// as that is still in the cache. Where blocks are few, a wave of them at a time: threads share the parts.
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

// Positions [begin, end) of `rows` channels from c on, in segment `frame` of a sample. `segment` counts the segments of
// all samples.
struct Chunk {
  int64_t sample, frame, segment, c, rows, begin, end;
};

// Calls body(chunk) for the chunks of one part of a group in contiguous memory, in the order of memory.
template <class Body>
void each_chunk(const Plan& plan, int64_t block, int64_t part, Body body) {
  const int64_t unit = block / plan.groups, first_c = block % plan.groups * plan.per_group;
  const int64_t first = unit * plan.segments_per_unit, sample = first / plan.segments, frame = first % plan.segments;
  const int64_t cuts = (plan.length + kChunk - 1) / kChunk, total = plan.per_group * plan.segments_per_unit * cuts;
  const int64_t begin = part * total / plan.parts, end = (part + 1) * total / plan.parts;
  if (cuts == 1 && plan.segments_per_unit == 1) {
    // Short channels: one chunk for all channels of a source.
    const int64_t split = std::clamp(plan.source_channels[0], first_c + begin, first_c + end);
    const auto rows = [&](int64_t from, int64_t to) {
      if (to > from) body(Chunk{sample, frame, first, from, to - from, 0, plan.length});
    };
    rows(first_c + begin, split);
    rows(split, first_c + end);
    return;
  }
  int64_t cut = begin % cuts, s = begin / cuts % plan.segments_per_unit, c = begin / cuts / plan.segments_per_unit;
  for (int64_t i = begin; i < end; ++i) {
    body(Chunk{sample, frame + s, first + s, first_c + c, 1, cut * kChunk, std::min((cut + 1) * kChunk, plan.length)});
    if (++cut < cuts) continue;
    cut = 0;
    if (++s == plan.segments_per_unit) s = 0, ++c;
  }
}

}  // namespace vdiff::group_norm
