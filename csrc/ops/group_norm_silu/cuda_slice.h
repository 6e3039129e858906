// What the forward and the backward of a CUDA block of group_norm_silu share: its slice in shared memory, and the sums
// that the blocks of a group tile exchange. `Cta` is csrc/cuda/cta.cuh, or its counterpart in tests/native, where the
// same source runs without a GPU.
#pragma once

#include "ops/group_norm_silu/cuda_plan.h"

namespace vdiff::group_norm {

// A kernel does the whole work of a slice, or one kernel adds up its sums and another applies the statistics.
enum class Phase { whole, reduce, apply };

template <class T>
struct Problem {
  Plan plan;
  ChannelInputs inputs;
  double eps;
  const T *x, *x2, *dy;
  T *y, *y2;            // y, or dx and dx2
  float *mean, *rstd;   // written by the forward, read by the backward
  double* group_sums;   // Exchange::grid and split: three numbers per group of every slice
  float* channel_sums;  // backward: three numbers per channel of every (segment, cut)
  unsigned* arrivals;   // Exchange::grid: a counter per group tile, zero before
};

template <class Cta, class T, bool kLast, bool kBackward>
struct BlockSlice {
  static constexpr int kElements = kVectorBytes / sizeof(T);  // of a vector
  // Affine maps that a vector needs: one per channel in channels-last, one for all its positions in contiguous memory.
  static constexpr int kMaps = kLast ? kElements : 1;

  Cta& cta;
  const Problem<T>& p;
  const Plan& plan;
  const Slice slice;
  const Layout layout;
  char *const memory, *const buffer;

  VDIFF_DEVICE BlockSlice(Cta& cta, const Problem<T>& p, int64_t index, char* memory, int64_t buffer)
      : cta(cta),
        p(p),
        plan(p.plan),
        slice(slice_of(p.plan, index)),
        layout(p.plan, kBackward),
        memory(memory),
        buffer(memory + buffer * p.plan.data_bytes(kBackward)) {}

  // --- shared memory
  // ---------------------------------------------------------------------------------------------------

  template <class V>
  VDIFF_DEVICE V* at(int64_t offset) const {
    return reinterpret_cast<V*>(memory + offset);
  }
  // A thread's vector of x, or of dy.
  VDIFF_DEVICE Vector<T>& staged(int slot, int thread, bool dy = false) const {
    return reinterpret_cast<Vector<T>*>(buffer + (dy ? layout.second : 0))[slot * kThreads + thread];
  }
  // [sum][element of the vector][thread]
  VDIFF_DEVICE float& thread_sum(int k, int j, int thread) const {
    return at<float>(layout.threads)[(k * kElements + j) * kThreads + thread];
  }
  VDIFF_DEVICE Affine<float>& affine(int c) const { return at<Affine<float>>(layout.tables)[c]; }
  // The sums of one group: those of this slice, or of the whole tile.
  template <class V>
  VDIFF_DEVICE V& group(int g, bool total) const {
    return reinterpret_cast<V&>(at<Moments<double>>(layout.groups)[total ? plan.tile_groups + g : g]);
  }
  VDIFF_DEVICE int group_of(int c) const { return plan.tile_groups == 1 ? 0 : static_cast<int>(c / plan.per_group); }
  // Entries that are folded into the sums of one group: channels of the slice.
  VDIFF_DEVICE int64_t group_channels() const { return plan.tile_groups == 1 ? slice.channels : plan.per_group; }

  // --- global memory
  // ---------------------------------------------------------------------------------------------------

  // Element (channel, position) of a segment in [first | second], or in one tensor of all channels.
  template <class P>
  VDIFF_DEVICE P* find(P* first, P* second, int64_t c, int64_t segment, int64_t position) const {
    int64_t channels = plan.channels;
    if (second != nullptr) {
      channels = c < plan.source_channels[0] ? plan.source_channels[0] : plan.source_channels[1];
      if (c >= plan.source_channels[0]) first = second, c -= plan.source_channels[0];
    }
    if (kLast) return first + (segment * plan.length + position) * channels + c;
    const int64_t sample = segment / plan.segments, frame = segment - sample * plan.segments;
    return first + ((sample * channels + c) * plan.segments + frame) * plan.length + position;
  }
  // Element j of the vector that begins at channel c and `position` of the slice.
  template <class P>
  VDIFF_DEVICE P* element(P* first, P* second, int c, int position, int j) const {
    return find(first, second, slice.channel + c + (kLast ? j : 0), slice.segment,
                slice.begin + position + (kLast ? 0 : j));
  }
  VDIFF_DEVICE int elements(int c, int position) const {
    return static_cast<int>(min_of(kElements, kLast ? slice.channels - c : slice.positions - position));
  }

  // body(slot, position, elements) for the vectors of one thread in one round.
  template <class Body>
  VDIFF_DEVICE void for_each_vector(const ThreadVectors& mine, Body body) const {
    for (int i = 0; i < mine.count; ++i) {
      const int position = mine.position + i * mine.step;
      body(mine.slot + i, position, elements(mine.c, position));
    }
  }

  // Begins to copy the vectors of thread t into shared memory.
  VDIFF_DEVICE void load(int t) const {
    CopyStages stages(plan.vectors_per_thread);
    for (int round = 0; round < rounds_of(plan); ++round) {
      const ThreadVectors mine = thread_vectors(plan, slice, t, round);
      for_each_vector(mine, [&](int slot, int position, int n) {
        stages.commit_before(cta, slot);
        load_vector(p.x, p.x2, mine.c, position, n, staged(slot, t));
        if constexpr (kBackward) load_vector<const T>(p.dy, nullptr, mine.c, position, n, staged(slot, t, true));
      });
    }
    stages.commit_rest(cta);
  }
  template <class P>
  VDIFF_DEVICE void load_vector(P* first, P* second, int c, int position, int n, Vector<T>& to) const {
    if (plan.aligned) {
      cta.copy(&to, element(first, second, c, position, 0));
      return;
    }
    for (int j = 0; j < n; ++j) to.v[j] = *element(first, second, c, position, j);
  }
  VDIFF_DEVICE void store_vector(T* first, T* second, int c, int position, int n, const Vector<T>& from) const {
    if (plan.aligned) {
      cta.store(element(first, second, c, position, 0), from);
      return;
    }
    for (int j = 0; j < n; ++j) *element(first, second, c, position, j) = from.v[j];
  }

  // --- sums of groups
  // --------------------------------------------------------------------------------------------------

  // Folds `count` entries of every group in a fixed order, each group by one warp; a lane reads kAhead of them at a
  // time.
  template <class V, int kAhead = 1, class Read, class Take, class Write>
  VDIFF_DEVICE void fold(int64_t count, Read read, Take take, Write write) const {
    for (int base = 0; base < slice.groups; base += kThreads / kWarp) {
      cta.template reduce_lanes<V>(
          kWarp,
          [&](int t) {
            V v{};
            const int g = base + t / kWarp;
            for (int64_t i = t % kWarp; i < count && g < slice.groups; i += kAhead * kWarp) {
              V next[kAhead] = {};
              VDIFF_UNROLL
              for (int k = 0; k < kAhead; ++k) {
                if (i + k * kWarp < count) next[k] = read(g, i + k * kWarp);
              }
              VDIFF_UNROLL
              for (int k = 0; k < kAhead; ++k) {
                if (i + k * kWarp < count) take(v, next[k]);
              }
            }
            return v;
          },
          take,
          [&](int t, const V& v) {
            if (base + t / kWarp < slice.groups) write(base + t / kWarp, v);
          });
    }
    cta.threads([](int) {});
  }

  // Folds the sums of all slices of the tile: from the cluster's shared memory, or from global memory.
  template <Phase kPhase, class V, class Take>
  VDIFF_DEVICE void exchange(Take take) const {
    if constexpr (kPhase == Phase::whole) {
      if (plan.slices > 1) cta.cluster_sync();
      fold<V>(
          plan.slices,
          [&](int g, int64_t i) {
            V* own = &group<V>(g, false);
            return plan.slices > 1 ? *cta.peer(own, static_cast<int>(i)) : *own;
          },
          take, [&](int g, const V& v) { group<V>(g, true) = v; });
      if (plan.slices > 1) cta.cluster_sync();  // no block leaves while another reads its memory
    } else {
      // There may be thousands of slices: a lane reads four at a time, or each read would wait for the one before.
      fold<V, 4>(
          plan.slices, [&](int g, int64_t i) { return *group_sums<V>(static_cast<int>(i), g); }, take,
          [&](int g, const V& v) { group<V>(g, true) = v; });
    }
  }
  // Writes this slice's sums to where the other slices read them.
  template <class V>
  VDIFF_DEVICE void publish() const {
    cta.each([&](int t) {
      for (int g = t; g < slice.groups; g += kThreads) *group_sums<V>(slice.rank, g) = group<V>(g, false);
    });
  }
  template <class V>
  VDIFF_DEVICE V* group_sums(int rank, int g) const {
    const int64_t row = (slice.unit * plan.tiles + slice.tile) * plan.slices + rank;
    return reinterpret_cast<V*>(p.group_sums + 3 * (row * plan.tile_groups + g));
  }
  // Index of a group in mean and rstd.
  VDIFF_DEVICE int64_t statistic(int g) const { return slice.unit * plan.groups + slice.group + g; }
  VDIFF_DEVICE unsigned* arrivals() const { return p.arrivals + slice.unit * plan.tiles + slice.tile; }

  // --- channels
  // --------------------------------------------------------------------------------------------------------

  VDIFF_DEVICE ChannelParameters parameters(int c) const {
    const int64_t channel = slice.channel + c;
    return {weight_of(p.inputs, channel), bias_of(p.inputs, channel), factor_of(plan, p.inputs, slice.segment, channel),
            framed(plan, p.inputs.shift, p.inputs.shift_frames, slice.segment, channel),
            add_of(plan, p.inputs, slice.segment, channel)};
  }
  VDIFF_DEVICE void set_affine(double mean, double rstd, int c) const {
    affine(c) = affine_of<float>(parameters(c), mean, rstd);
  }
  VDIFF_DEVICE void affines(const ThreadVectors& mine, Affine<float> (&maps)[kMaps]) const {
    VDIFF_UNROLL
    for (int j = 0; j < kMaps; ++j) maps[j] = mine.c + j < slice.channels ? affine(mine.c + j) : Affine<float>{};
  }
};

}  // namespace vdiff::group_norm
