// One CUDA block of group_norm_silu's backward: sums of g, g * n and n over its slice, then dx. See math.h.
#pragma once

#include "ops/group_norm_silu/cuda_slice.h"

namespace vdiff::group_norm {

template <class Cta, class T, bool kLast>
struct BackwardBlock : BlockSlice<Cta, T, kLast, true> {
  using Base = BlockSlice<Cta, T, kLast, true>;
  using Base::affine, Base::affines, Base::for_each_vector, Base::group_channels, Base::group_of;
  using Base::Base, Base::kElements, Base::kMaps;
  using Base::cta, Base::p, Base::plan, Base::slice, Base::layout;
  using Base::set_affine, Base::staged, Base::statistic, Base::store_vector, Base::thread_sum;
  using GroupSums = GroupGradient;

  // Sums of g, g * (x - center) and x - center over some of a channel.
  struct Sums {
    float v[3];
  };
  static VDIFF_DEVICE void add(Sums& a, const Sums& b) {
    for (int k = 0; k < 3; ++k) a.v[k] += b.v[k];
  }
  static VDIFF_DEVICE void add(GroupSums& a, const GroupSums& b) { a.g += b.g, a.gn += b.gn; }

  // Tables in shared memory: after the affine maps the gradients' maps, then the sums of every channel.
  VDIFF_DEVICE Gradient<float>& gradient(int c) const {
    return this->template at<Gradient<float>>(layout.tables)[plan.slice_channels + c];
  }
  VDIFF_DEVICE float* sums(int c) const {
    return this->template at<float>(layout.tables) + 3 * (2 * plan.slice_channels + c);
  }
  VDIFF_DEVICE float* channel_sums(int c) const {
    const int64_t row = slice.segment * plan.cuts + slice.rank % plan.cuts;
    return p.channel_sums + 3 * (row * plan.channels + slice.channel + c);
  }

  VDIFF_DEVICE float gradient_of_z(const Vector<T>& dy, int j, float centered, const Affine<float>& map) const {
    return through_activation(cta, cta.to_float(dy.v[j]), centered * map.slope + map.offset, plan.silu);
  }
  VDIFF_DEVICE void add_element(const Vector<T>& x, const Vector<T>& dy, int j, bool inside, const Affine<float>& map,
                                Sums& sums) const {
    const float centered = inside ? cta.to_float(x.v[j]) - map.center : 0.0f;
    const float g = inside ? gradient_of_z(dy, j, centered, map) : 0.0f;
    sums.v[0] += g, sums.v[1] += g * centered, sums.v[2] += centered;
  }

  // Contiguous: the lanes that read a piece of a row add up its sums, then one thread per channel adds up its pieces.
  VDIFF_DEVICE void contiguous_sums() const {
    Sums* pieces = this->template at<Sums>(layout.entries);
    for (int round = 0; round < rounds_of(plan); ++round) {
      cta.template reduce_lanes<Sums>(
          plan.lanes,
          [&](int t) {
            Sums sums{};
            const ThreadVectors mine = thread_vectors(plan, slice, t, round);
            if (mine.count == 0) return sums;
            CopyStages stages(plan.vectors_per_thread);
            Affine<float> maps[kMaps];
            affines(mine, maps);
            for_each_vector(mine, [&](int slot, int, int n) {
              stages.await(cta, slot);
              const Vector<T> x = staged(slot, t), dy = staged(slot, t, true);
              VDIFF_UNROLL
              for (int j = 0; j < kElements; ++j) add_element(x, dy, j, j < n, maps[0], sums);
            });
            return sums;
          },
          [](Sums& a, const Sums& b) { add(a, b); },
          [&](int t, const Sums& v) {
            const ThreadVectors mine = thread_vectors(plan, slice, t, round);
            if (mine.c < slice.channels) pieces[mine.entry] = v;
          });
    }
    cta.threads([](int) {});
    cta.threads([&](int t) {
      for (int c = t; c < slice.channels; c += kThreads) {
        fold_channel(c, plan.row_pieces, [&](int i, int k) { return pieces[c * plan.row_pieces + i].v[k]; });
      }
    });
  }
  // Channels-last: a thread adds up its channels row by row, then one thread per channel adds up the rows that were
  // read at once.
  VDIFF_DEVICE void channels_last_sums() const {
    cta.threads([&](int t) {
      const ThreadVectors mine = thread_vectors(plan, slice, t, 0);
      CopyStages stages(plan.vectors_per_thread);
      Affine<float> maps[kMaps];
      affines(mine, maps);
      Sums sums[kElements] = {};
      for_each_vector(mine, [&](int slot, int, int n) {
        stages.await(cta, slot);
        const Vector<T> x = staged(slot, t), dy = staged(slot, t, true);
        VDIFF_UNROLL
        for (int j = 0; j < kElements; ++j) add_element(x, dy, j, j < n, maps[kLast ? j : 0], sums[j]);
      });
      VDIFF_UNROLL
      for (int j = 0; j < kElements; ++j) {
        VDIFF_UNROLL
        for (int k = 0; k < 3; ++k) thread_sum(k, j, t) = sums[j].v[k];
      }
    });
    cta.threads([&](int t) {
      for (int c = t; c < slice.channels; c += kThreads) {
        const int column = c / kElements, j = c % kElements;
        fold_channel(c, plan.rows_at_once, [&](int i, int k) { return thread_sum(k, j, i * plan.columns + column); });
      }
    });
  }
  template <class Read>
  VDIFF_DEVICE void fold_channel(int c, int count, Read read) const {
    double total[3] = {};
    for (int i = 0; i < count; ++i) {
      VDIFF_UNROLL
      for (int k = 0; k < 3; ++k) total[k] += read(i, k);
    }
    VDIFF_UNROLL
    for (int k = 0; k < 3; ++k) sums(c)[k] = channel_sums(c)[k] = static_cast<float>(total[k]);
  }

  VDIFF_DEVICE ChannelBackward channel(int c) const {
    const int64_t i = statistic(group_of(c));
    return {this->parameters(c), p.mean[i], p.rstd[i], affine(c).center};
  }
  // The maps of the forward, from the statistics that it saved.
  VDIFF_DEVICE void saved_affines() const {
    cta.threads([&](int t) {
      for (int c = t; c < slice.channels; c += kThreads) {
        const int64_t i = statistic(group_of(c));
        set_affine(p.mean[i], p.rstd[i], c);
      }
    });
  }

  // The sums of this slice's groups, from its vectors.
  VDIFF_DEVICE void measure() const {
    saved_affines();
    if constexpr (kLast) {
      channels_last_sums();
    } else {
      contiguous_sums();
    }
    const int64_t count = group_channels();
    this->template fold<GroupSums>(
        count,
        [&](int g, int64_t i) {
          const int c = static_cast<int>(g * count + i);
          const ChannelBackward one = channel(c);
          return GroupSums{one.w * sums(c)[0], one.w * one.sum_gn(sums(c))};
        },
        [](GroupSums& a, const GroupSums& b) { add(a, b); },
        [&](int g, const GroupSums& v) { this->template group<GroupSums>(g, false) = v; });
  }

  // From the sums of all slices to dx.
  template <Phase kPhase>
  VDIFF_DEVICE void finish() const {
    if constexpr (kPhase == Phase::apply) saved_affines();
    this->template exchange<kPhase, GroupSums>([](GroupSums& a, const GroupSums& b) { add(a, b); });
    cta.threads([&](int t) {
      for (int c = t; c < slice.channels; c += kThreads) finish_channel(c);
    });
    cta.each([&](int t) { apply(t); });
  }
  // The map of dx. The sums of the channel, which the gradients of the inputs per channel are made of, become those of
  // g, g * n and dx.
  VDIFF_DEVICE void finish_channel(int c) const {
    const double count = static_cast<double>(plan.count());
    const GroupSums& total = this->template group<GroupSums>(group_of(c), true);
    const GroupGradient mean{total.g / count, total.gn / count};
    const ChannelBackward one = channel(c);
    gradient(c) = one.template gradient<float>(mean);
    float* to = channel_sums(c);
    const float from[3] = {to[0], to[1], to[2]};
    to[1] = static_cast<float>(one.sum_gn(from));
    to[2] = static_cast<float>(one.sum_dx(from[0], one.sum_n(from, slice.positions), slice.positions, mean));
  }
  VDIFF_DEVICE void apply(int t) const {
    CopyStages stages(plan.vectors_per_thread);
    for (int round = 0; round < rounds_of(plan); ++round) {
      const ThreadVectors mine = thread_vectors(plan, slice, t, round);
      if (mine.count == 0) continue;
      Affine<float> maps[kMaps];
      affines(mine, maps);
      Gradient<float> lines[kMaps];
      VDIFF_UNROLL
      for (int j = 0; j < kMaps; ++j) {
        lines[j] = mine.c + j < slice.channels ? gradient(mine.c + j) : Gradient<float>{};
      }
      for_each_vector(mine, [&](int slot, int position, int n) {
        stages.await(cta, slot);
        Vector<T> x = staged(slot, t);
        const Vector<T> dy = staged(slot, t, true);
        VDIFF_UNROLL
        for (int j = 0; j < kElements; ++j) {
          const Affine<float>& map = maps[kLast ? j : 0];
          const Gradient<float>& line = lines[kLast ? j : 0];
          const float centered = cta.to_float(x.v[j]) - map.center;
          const float g = gradient_of_z(dy, j, centered, map);
          x.v[j] = cta.template from_float<T>(g * line.gain + (centered * line.tilt + line.level));
        }
        store_vector(p.y, p.y2, mine.c, position, n, x);
      });
    }
  }
};

}  // namespace vdiff::group_norm
