// One CUDA block of group_norm_silu's forward: moments of its slice, then y from the statistics of the groups.
#pragma once

#include "ops/group_norm_silu/cuda_slice.h"

namespace vdiff::group_norm {

template <class Cta, class T, bool kLast>
struct ForwardBlock : BlockSlice<Cta, T, kLast, false> {
  using Base = BlockSlice<Cta, T, kLast, false>;
  using Base::affine, Base::affines, Base::for_each_vector, Base::group_channels, Base::group_of;
  using Base::Base, Base::kElements, Base::kMaps;
  using Base::cta, Base::p, Base::plan, Base::slice, Base::layout;
  using Base::set_affine, Base::staged, Base::statistic, Base::store_vector, Base::thread_sum;
  using GroupSums = Moments<double>;

  // Subtracted from x before it is summed: one of its values, so that what is left has a mean of the deviation's size.
  VDIFF_DEVICE float origin(int64_t c) const {
    return cta.to_float(*this->find(p.x, p.x2, c, slice.unit * plan.segments_per_unit, 0));
  }
  VDIFF_DEVICE float add(int64_t c) const { return add_of(plan, p.inputs, slice.segment, c); }
  VDIFF_DEVICE GroupSums* entries() const { return this->template at<GroupSums>(layout.entries); }

  static VDIFF_DEVICE void combine(Moments<double>& a, const Moments<double>& b) {
    if (b.count > 0) a.take(b, b.count / (a.count + b.count));
  }
  VDIFF_DEVICE void combine(Moments<float>& a, const Moments<float>& b) const {
    if (b.count > 0) a.take(b, cta.quotient(b.count, a.count + b.count));
  }

  // Contiguous: a vector holds positions of one channel, so its moments take two passes over it; vectors, lanes and
  // warps are combined by Chan's formula.
  VDIFF_DEVICE Moments<float> thread_moments(int t, int64_t first, float base) const {
    Moments<float> moments{};
    CopyStages stages(plan.vectors_per_thread);
    for (int round = 0; round < rounds_of(plan); ++round) {
      const ThreadVectors mine = thread_vectors(plan, slice, t, round);
      if (mine.count == 0) continue;
      const float more = add(slice.channel + mine.c) - add(first);
      for_each_vector(mine, [&](int slot, int, int n) {
        stages.await(cta, slot);
        const Vector<T> from = staged(slot, t);
        float v[kElements], sum = 0, squares = 0;
        VDIFF_UNROLL
        for (int j = 0; j < kElements; ++j) v[j] = j < n ? (cta.to_float(from.v[j]) - base) + more : 0.0f, sum += v[j];
        const float count = static_cast<float>(n), mean = cta.quotient(sum, count);
        VDIFF_UNROLL
        for (int j = 0; j < kElements; ++j) squares += j < n ? (v[j] - mean) * (v[j] - mean) : 0.0f;
        combine(moments, {count, mean, squares});
      });
    }
    return moments;
  }
  VDIFF_DEVICE void contiguous_moments() const {
    const int64_t first = slice.group * plan.per_group;
    const float base = origin(first);
    cta.template reduce_lanes<Moments<float>>(
        kWarp, [&](int t) { return thread_moments(t, first, base); },
        [&](Moments<float>& a, const Moments<float>& b) { combine(a, b); },
        [&](int t, const Moments<float>& m) {
          const double exact = static_cast<double>(base) + add(first) + m.mean;
          entries()[t / kWarp] = {m.count, exact, m.squares};
        });
    cta.threads([](int) {});
  }

  // Channels-last: a vector holds channels of one position. A thread updates the moments of its channels row by row
  // (Welford); then one thread per channel combines those of the rows that were read at once.
  VDIFF_DEVICE void channels_last_moments() const {
    cta.threads([&](int t) {
      const ThreadVectors mine = thread_vectors(plan, slice, t, 0);
      CopyStages stages(plan.vectors_per_thread);
      float base[kElements], mean[kElements] = {}, squares[kElements] = {}, count = 0;
      VDIFF_UNROLL
      for (int j = 0; j < kElements; ++j) {
        base[j] = mine.c + j < slice.channels ? origin(slice.channel + mine.c + j) : 0.0f;
      }
      for_each_vector(mine, [&](int slot, int, int n) {
        stages.await(cta, slot);
        const Vector<T> from = staged(slot, t);
        const float fraction = cta.quotient(1.0f, count += 1.0f);
        VDIFF_UNROLL
        for (int j = 0; j < kElements; ++j) {
          const float delta = j < n ? cta.to_float(from.v[j]) - base[j] - mean[j] : 0.0f;
          mean[j] += delta * fraction, squares[j] += delta * delta * (1.0f - fraction);
        }
      });
      VDIFF_UNROLL
      for (int j = 0; j < kElements; ++j) thread_sum(0, j, t) = mean[j], thread_sum(1, j, t) = squares[j];
    });
    cta.threads([&](int t) {
      for (int c = t; c < slice.channels; c += kThreads) {
        Moments<float> moments{};
        const int column = c / kElements, j = c % kElements;
        for (int row = 0; row < plan.rows_at_once && row < slice.positions; ++row) {
          const int thread = row * plan.columns + column;
          const int rows = (slice.positions - row + plan.rows_at_once - 1) / plan.rows_at_once;
          combine(moments, {static_cast<float>(rows), thread_sum(0, j, thread), thread_sum(1, j, thread)});
        }
        const int64_t channel = slice.channel + c;
        const double exact = static_cast<double>(origin(channel)) + add(channel) + moments.mean;
        entries()[c] = {moments.count, exact, moments.squares};
      }
    });
  }

  // The moments of this slice's groups, from its vectors.
  VDIFF_DEVICE void measure() const {
    if constexpr (kLast) {
      channels_last_moments();
    } else {
      contiguous_moments();
    }
    const int64_t count = kLast ? group_channels() : kThreads / kWarp;
    this->template fold<GroupSums>(
        count, [&](int g, int64_t i) { return entries()[g * count + i]; },
        [](GroupSums& a, const GroupSums& b) { combine(a, b); },
        [&](int g, const GroupSums& v) { this->template group<GroupSums>(g, false) = v; });
  }

  // From the moments of all slices to y.
  template <Phase kPhase>
  VDIFF_DEVICE void finish() const {
    this->template exchange<kPhase, GroupSums>([](GroupSums& a, const GroupSums& b) { combine(a, b); });
    cta.threads([&](int t) {
      for (int c = t; c < slice.channels; c += kThreads) {
        const GroupSums& total = this->template group<GroupSums>(group_of(c), true);
        set_affine(total.mean, rstd_of(total), c);
      }
      for (int g = t; g < slice.groups && slice.rank == 0; g += kThreads) {
        const GroupSums& total = this->template group<GroupSums>(g, true);
        p.mean[statistic(g)] = static_cast<float>(total.mean),
        p.rstd[statistic(g)] = static_cast<float>(rstd_of(total));
      }
    });
    cta.each([&](int t) { apply(t); });
  }
  VDIFF_DEVICE double rstd_of(const GroupSums& total) const {
    return 1.0 / sqrt(total.squares / static_cast<double>(plan.count()) + p.eps);
  }
  VDIFF_DEVICE void apply(int t) const {
    CopyStages stages(plan.vectors_per_thread);
    for (int round = 0; round < rounds_of(plan); ++round) {
      const ThreadVectors mine = thread_vectors(plan, slice, t, round);
      if (mine.count == 0) continue;
      Affine<float> maps[kMaps];
      affines(mine, maps);
      for_each_vector(mine, [&](int slot, int position, int n) {
        stages.await(cta, slot);
        Vector<T> v = staged(slot, t);
        VDIFF_UNROLL
        for (int j = 0; j < kElements; ++j) {
          const Affine<float>& map = maps[kLast ? j : 0];
          const float z = (cta.to_float(v.v[j]) - map.center) * map.slope + map.offset;
          v.v[j] = cta.template from_float<T>(activated(cta, z, plan.silu));
        }
        store_vector(p.y, nullptr, mine.c, position, n, v);
      });
    }
  }
};

}  // namespace vdiff::group_norm
