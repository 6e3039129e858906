// The blocks of group_norm_silu, forward and backward, written once for device and host: `Cta` is csrc/cuda/cta.cuh or
// its counterpart in tests/native, where the same source runs without a GPU.
//
// A thread loads its packs into shared memory of its own, sums them as they arrive, waits for the numbers of the group,
// and applies them to the same packs: x is read from global memory once. Only sums are exchanged, over threads, then
// entries (warps, or channels), then the shares of a unit: by the cluster's shared memory, by global memory and a
// counter among blocks that all run at once (`take_turns`), or by a second kernel that loads its packs again
// (Phase::reduce, then Phase::apply).
#pragma once

#include <type_traits>

#include "ops/group_norm_silu/cuda_affine.h"

namespace vdiff::group_norm {

enum class Phase { whole, reduce, apply };

template <class T>
struct Problem {
  Shape shape;
  Vectors vectors;
  double eps;
  const T *x, *x2, *dy;
  T *y, *y2;            // y, or dx and dx2
  float *mean, *rstd;   // written by the forward, read by the backward
  double* group_sums;   // grid, split: three numbers of each share's groups
  float* channel_sums;  // backward: three numbers of each channel of (segment, cut)
  unsigned* arrivals;   // grid: of the shares of each unit's slab, zero before
};

template <class Cta, class T, bool kLast, bool kBackward>
struct Block {
  static constexpr int kPack = kBytesAPack / sizeof(T), kVectors = kLast ? kPack : 1, kSums = kBackward ? 3 : 2;
  using Total = Moments<double>;
  using Numbers = std::conditional_t<kBackward, Pair, Total>;  // of a group

  Cta& cta;
  const Problem<T>& p;
  const Shape& s;
  const Share share;
  const Layout layout;
  char *const memory, *const buffer;

  VDIFF_DEVICE Block(Cta& cta, const Problem<T>& p, int64_t index, char* memory, int64_t buffer = 0)
      : cta(cta),
        p(p),
        s(p.shape),
        share(share_of(p.shape, index)),
        layout(p.shape, kBackward),
        memory(memory),
        buffer(memory + buffer * p.shape.data_bytes(kBackward)) {}

  template <class V>
  VDIFF_DEVICE V* at(int64_t offset) const {
    return reinterpret_cast<V*>(memory + offset);
  }
  VDIFF_DEVICE Pack<T>& pack(int slot, int thread, bool second = false) const {
    return reinterpret_cast<Pack<T>*>(buffer + (second ? layout.second : 0))[slot * kThreads + thread];
  }
  // [sum][element of the pack][thread]
  VDIFF_DEVICE float& thread_sum(int k, int j, int thread) const {
    return at<float>(layout.threads)[(k * kPack + j) * kThreads + thread];
  }
  VDIFF_DEVICE Affine& affine(int c) const { return at<Affine>(layout.tables)[c]; }
  VDIFF_DEVICE Gradient& gradient(int c) const { return at<Gradient>(layout.tables)[s.part + c]; }
  VDIFF_DEVICE float* sums(int c) const { return at<float>(layout.tables) + 3 * (2 * s.part + c); }
  VDIFF_DEVICE float* channel_sums(int c) const {
    return p.channel_sums + 3 * ((share.segment * s.cuts + share.rank % s.cuts) * s.channels + share.channel + c);
  }
  // A group's numbers: this share's, and all shares'.
  template <class V>
  VDIFF_DEVICE V& group(int g, bool total) const {
    return reinterpret_cast<V&>(at<Total>(layout.groups)[total ? s.slab_groups + g : g]);
  }
  VDIFF_DEVICE int group_of(int c) const { return s.slab_groups == 1 ? 0 : static_cast<int>(c / s.per_group); }

  // Element (channel, position) of a segment in [first | second], or in one tensor of all channels.
  template <class P>
  VDIFF_DEVICE P* find(P* first, P* second, int64_t c, int64_t segment, int64_t position) const {
    int64_t channels = s.channels;
    if (second != nullptr) {
      channels = c < s.c1 ? s.c1 : s.c2;
      if (c >= s.c1) first = second, c -= s.c1;
    }
    if (kLast) return first + (segment * s.length + position) * channels + c;
    const int64_t sample = segment / s.segments, frame = segment - sample * s.segments;
    return first + ((sample * channels + c) * s.segments + frame) * s.length + position;
  }
  // Element j of a pack, which begins at local channel c and position.
  template <class P>
  VDIFF_DEVICE P* element(P* first, P* second, int c, int position, int j) const {
    return find(first, second, share.channel + c + (kLast ? j : 0), share.segment,
                share.begin + position + (kLast ? 0 : j));
  }
  VDIFF_DEVICE int elements(int c, int position) const {
    return static_cast<int>(least(kPack, kLast ? share.channels - c : share.positions - position));
  }

  // body(slot, position, elements) of the packs of one round.
  template <class Body>
  VDIFF_DEVICE void packs(const Spot& spot, Body body) const {
    for (int i = 0; i < spot.packs; ++i) {
      const int position = spot.position + i * spot.step;
      body(spot.slot + i, position, elements(spot.c, position));
    }
  }

  VDIFF_DEVICE void load(int t) const {
    Batches batches(s.slots);
    for (int round = 0; round < rounds_of(s); ++round) {
      const Spot spot = spot_of(s, share, t, round);
      packs(spot, [&](int slot, int position, int n) {
        batches.close_before(cta, slot);
        load_pack(p.x, p.x2, spot.c, position, n, pack(slot, t));
        if constexpr (kBackward) load_pack<const T>(p.dy, nullptr, spot.c, position, n, pack(slot, t, true));
      });
    }
    batches.close(cta);
  }
  template <class P>
  VDIFF_DEVICE void load_pack(P* first, P* second, int c, int position, int n, Pack<T>& to) const {
    if (s.aligned) {
      cta.copy(&to, element(first, second, c, position, 0));
      return;
    }
    for (int j = 0; j < n; ++j) to.v[j] = *element(first, second, c, position, j);
  }
  VDIFF_DEVICE void store_pack(T* first, T* second, int c, int position, int n, const Pack<T>& from) const {
    if (s.aligned) {
      cta.store(element(first, second, c, position, 0), from);
      return;
    }
    for (int j = 0; j < n; ++j) *element(first, second, c, position, j) = from.v[j];
  }
  // Folds `count` entries of each group by a warp, in a fixed order; a lane reads kAhead of them at a time.
  template <class V, int kAhead = 1, class Read, class Take, class Write>
  VDIFF_DEVICE void fold(int64_t count, Read read, Take take, Write write) const {
    for (int base = 0; base < share.groups; base += kThreads / kWarp) {
      cta.template lanes<V>(
          kWarp,
          [&](int t) {
            V v{};
            const int g = base + t / kWarp;
            for (int64_t i = t % kWarp; i < count && g < share.groups; i += kAhead * kWarp) {
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
            if (base + t / kWarp < share.groups) write(base + t / kWarp, v);
          });
    }
    cta.threads([](int) {});
  }
  static VDIFF_DEVICE void combine(Moments<double>& a, const Moments<double>& b) {
    if (b.count > 0) a.take(b, b.count / (a.count + b.count));
  }
  VDIFF_DEVICE void combine(Moments<float>& a, const Moments<float>& b) const {
    if (b.count > 0) a.take(b, cta.quotient(b.count, a.count + b.count));
  }
  static VDIFF_DEVICE void add(Pair& a, const Pair& b) { a.g += b.g, a.gn += b.gn; }
  static VDIFF_DEVICE void add(Sums& a, const Sums& b) {
    for (int k = 0; k < 3; ++k) a.v[k] += b.v[k];
  }

  // The numbers of the shares of a unit's slab, from the cluster or from the kernel before.
  template <Phase kPhase, class V, class Take>
  VDIFF_DEVICE void exchange(Take take) const {
    if constexpr (kPhase == Phase::whole) {
      if (s.shares > 1) cta.cluster_sync();
      fold<V>(
          s.shares,
          [&](int g, int64_t i) {
            V* own = &group<V>(g, false);
            return s.shares > 1 ? *cta.peer(own, static_cast<int>(i)) : *own;
          },
          take, [&](int g, const V& v) { group<V>(g, true) = v; });
      if (s.shares > 1) cta.cluster_sync();  // no block leaves while another reads its memory
    } else {
      // Thousands of shares in memory of the chip's own: one read after the other would take its latency for each.
      fold<V, 4>(
          s.shares, [&](int g, int64_t i) { return *group_sums<V>(static_cast<int>(i), g); }, take,
          [&](int g, const V& v) { group<V>(g, true) = v; });
    }
  }
  template <class V>
  VDIFF_DEVICE V* group_sums(int rank, int g) const {
    const int64_t row = (share.unit * s.slabs + share.slab) * s.shares + rank;
    return reinterpret_cast<V*>(p.group_sums + 3 * (row * s.slab_groups + g));
  }
  VDIFF_DEVICE int64_t statistic(int g) const { return share.unit * s.groups + share.group + g; }

  // --- forward -----------------------------------------------------------------------------------------------------

  // Less one of its values, x has a mean of the size of its deviation.
  VDIFF_DEVICE float origin(int64_t c) const {
    return cta.to_float(*find(p.x, p.x2, c, share.unit * s.unit_segments, 0));
  }
  // One channel's positions lie side by side: two passes over each pack, then Chan's combination.
  VDIFF_DEVICE Moments<float> thread_moments(int t, int64_t first, float base) const {
    Moments<float> moments{};
    Batches batches(s.slots);
    for (int round = 0; round < rounds_of(s); ++round) {
      const Spot spot = spot_of(s, share, t, round);
      if (spot.packs == 0) continue;
      const float more =
          add_of(s, p.vectors, share.segment, share.channel + spot.c) - add_of(s, p.vectors, share.segment, first);
      packs(spot, [&](int slot, int, int n) {
        batches.await(cta, slot);
        const Pack<T> from = pack(slot, t);
        float v[kPack], sum = 0, squares = 0;
        VDIFF_UNROLL
        for (int j = 0; j < kPack; ++j) v[j] = j < n ? (cta.to_float(from.v[j]) - base) + more : 0.0f, sum += v[j];
        const float count = static_cast<float>(n), mean = cta.quotient(sum, count);
        VDIFF_UNROLL
        for (int j = 0; j < kPack; ++j) squares += j < n ? (v[j] - mean) * (v[j] - mean) : 0.0f;
        combine(moments, {count, mean, squares});
      });
    }
    return moments;
  }
  VDIFF_DEVICE void contiguous_moments() const {
    const int64_t first = share.group * s.per_group;
    const float base = origin(first);
    cta.template lanes<Moments<float>>(
        kWarp, [&](int t) { return thread_moments(t, first, base); },
        [&](Moments<float>& a, const Moments<float>& b) { combine(a, b); },
        [&](int t, const Moments<float>& m) {
          const double exact = static_cast<double>(base) + add_of(s, p.vectors, share.segment, first) + m.mean;
          at<Total>(layout.entries)[t / kWarp] = {m.count, exact, m.squares};
        });
    cta.threads([](int) {});
  }
  // Welford's update of each channel of the pack, then a thread per channel over the rows side by side.
  VDIFF_DEVICE void channels_last_moments() const {
    cta.threads([&](int t) {
      const Spot spot = spot_of(s, share, t, 0);
      Batches batches(s.slots);
      float base[kPack], mean[kPack] = {}, squares[kPack] = {}, count = 0;
      VDIFF_UNROLL
      for (int j = 0; j < kPack; ++j) base[j] = spot.c + j < share.channels ? origin(share.channel + spot.c + j) : 0.0f;
      packs(spot, [&](int slot, int, int n) {
        batches.await(cta, slot);
        const Pack<T> from = pack(slot, t);
        const float part = cta.quotient(1.0f, count += 1.0f);
        VDIFF_UNROLL
        for (int j = 0; j < kPack; ++j) {
          const float delta = j < n ? cta.to_float(from.v[j]) - base[j] - mean[j] : 0.0f;
          mean[j] += delta * part, squares[j] += delta * delta * (1.0f - part);
        }
      });
      VDIFF_UNROLL
      for (int j = 0; j < kPack; ++j) thread_sum(0, j, t) = mean[j], thread_sum(1, j, t) = squares[j];
    });
    cta.threads([&](int t) {
      for (int c = t; c < share.channels; c += kThreads) {
        Moments<float> moments{};
        const int column = c / kPack, j = c % kPack;
        for (int row = 0; row < s.row_lanes && row < share.positions; ++row) {
          const int thread = row * s.columns + column, rows = (share.positions - row + s.row_lanes - 1) / s.row_lanes;
          combine(moments, {static_cast<float>(rows), thread_sum(0, j, thread), thread_sum(1, j, thread)});
        }
        const int64_t channel = share.channel + c;
        const double exact =
            static_cast<double>(origin(channel)) + add_of(s, p.vectors, share.segment, channel) + moments.mean;
        at<Total>(layout.entries)[c] = {moments.count, exact, moments.squares};
      }
    });
  }
  VDIFF_DEVICE int64_t members() const { return s.slab_groups == 1 ? share.channels : s.per_group; }

  VDIFF_DEVICE void set_affine(double mean, double rstd, int c) const {
    affine(c) = affine_of(s, p.vectors, share.segment, share.channel + c, mean, rstd);
  }

  VDIFF_DEVICE void measure_moments() const {
    if constexpr (kLast) {
      channels_last_moments();
    } else {
      contiguous_moments();
    }
    const int64_t entries = kLast ? members() : kThreads / kWarp;
    fold<Total>(
        entries, [&](int g, int64_t i) { return at<Total>(layout.entries)[g * entries + i]; },
        [](Total& a, const Total& b) { combine(a, b); }, [&](int g, const Total& v) { group<Total>(g, false) = v; });
  }
  template <Phase kPhase>
  VDIFF_DEVICE void finish_forward() const {
    exchange<kPhase, Total>([](Total& a, const Total& b) { combine(a, b); });
    cta.threads([&](int t) {
      for (int c = t; c < share.channels; c += kThreads) {
        const Total& total = group<Total>(group_of(c), true);
        set_affine(total.mean, rstd_of(total), c);
      }
      for (int g = t; g < share.groups && share.rank == 0; g += kThreads) {
        const Total& total = group<Total>(g, true);
        p.mean[statistic(g)] = static_cast<float>(total.mean),
        p.rstd[statistic(g)] = static_cast<float>(rstd_of(total));
      }
    });
    cta.each([&](int t) { apply(t); });
  }
  VDIFF_DEVICE double rstd_of(const Total& total) const {
    return 1.0 / sqrt(total.squares / static_cast<double>(s.count()) + p.eps);
  }
  VDIFF_DEVICE void affines(const Spot& spot, Affine (&maps)[kVectors]) const {
    VDIFF_UNROLL
    for (int j = 0; j < kVectors; ++j) maps[j] = spot.c + j < share.channels ? affine(spot.c + j) : Affine{};
  }

  VDIFF_DEVICE void apply(int t) const {
    Batches batches(s.slots);
    for (int round = 0; round < rounds_of(s); ++round) {
      const Spot spot = spot_of(s, share, t, round);
      if (spot.packs == 0) continue;
      Affine maps[kVectors];
      affines(spot, maps);
      packs(spot, [&](int slot, int position, int n) {
        batches.await(cta, slot);
        Pack<T> v = pack(slot, t);
        VDIFF_UNROLL
        for (int j = 0; j < kPack; ++j) {
          const Affine& map = maps[kLast ? j : 0];
          const float z = (cta.to_float(v.v[j]) - map.center) * map.slope + map.offset;
          v.v[j] = cta.template from_float<T>(activated(cta, z, s.silu));
        }
        store_pack(p.y, nullptr, spot.c, position, n, v);
      });
    }
  }

  // --- backward ----------------------------------------------------------------------------------------------------

  VDIFF_DEVICE void add_element(const Pack<T>& x, const Pack<T>& dy, int j, bool inside, const Affine& map,
                                Sums& sums) const {
    const float centered = inside ? cta.to_float(x.v[j]) - map.center : 0.0f;
    const float g =
        inside ? through_activation(cta, cta.to_float(dy.v[j]), centered * map.slope + map.offset, s.silu) : 0.0f;
    sums.v[0] += g, sums.v[1] += g * centered, sums.v[2] += centered;
  }

  VDIFF_DEVICE void contiguous_sums() const {
    Sums* items = at<Sums>(layout.entries);
    for (int round = 0; round < rounds_of(s); ++round) {
      cta.template lanes<Sums>(
          s.lanes,
          [&](int t) {
            Sums sums{};
            const Spot spot = spot_of(s, share, t, round);
            if (spot.packs == 0) return sums;
            Batches batches(s.slots);
            Affine maps[kVectors];
            affines(spot, maps);
            packs(spot, [&](int slot, int, int n) {
              batches.await(cta, slot);
              const Pack<T> x = pack(slot, t), dy = pack(slot, t, true);
              VDIFF_UNROLL
              for (int j = 0; j < kPack; ++j) add_element(x, dy, j, j < n, maps[0], sums);
            });
            return sums;
          },
          [](Sums& a, const Sums& b) { add(a, b); },
          [&](int t, const Sums& v) {
            const Spot spot = spot_of(s, share, t, round);
            if (spot.c < share.channels) items[spot.item] = v;
          });
    }
    cta.threads([](int) {});
    cta.threads([&](int t) {
      for (int c = t; c < share.channels; c += kThreads) {
        fold_channel(c, s.pieces, [&](int i, int k) { return items[c * s.pieces + i].v[k]; });
      }
    });
  }
  VDIFF_DEVICE void channels_last_sums() const {
    cta.threads([&](int t) {
      const Spot spot = spot_of(s, share, t, 0);
      Batches batches(s.slots);
      Affine maps[kVectors];
      affines(spot, maps);
      Sums sums[kPack] = {};
      packs(spot, [&](int slot, int, int n) {
        batches.await(cta, slot);
        const Pack<T> x = pack(slot, t), dy = pack(slot, t, true);
        VDIFF_UNROLL
        for (int j = 0; j < kPack; ++j) add_element(x, dy, j, j < n, maps[kLast ? j : 0], sums[j]);
      });
      VDIFF_UNROLL
      for (int j = 0; j < kPack; ++j) {
        VDIFF_UNROLL
        for (int k = 0; k < 3; ++k) thread_sum(k, j, t) = sums[j].v[k];
      }
    });
    cta.threads([&](int t) {
      for (int c = t; c < share.channels; c += kThreads) {
        const int column = c / kPack, j = c % kPack;
        fold_channel(c, s.row_lanes, [&](int i, int k) { return thread_sum(k, j, i * s.columns + column); });
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

  VDIFF_DEVICE Channel channel(int c) const {
    const int g = group_of(c);
    return {
        s, p.vectors, share.segment, share.channel + c, p.mean[statistic(g)], p.rstd[statistic(g)], affine(c).center};
  }

  VDIFF_DEVICE void saved_affines() const {
    cta.threads([&](int t) {
      for (int c = t; c < share.channels; c += kThreads) {
        const int64_t i = statistic(group_of(c));
        set_affine(p.mean[i], p.rstd[i], c);
      }
    });
  }
  VDIFF_DEVICE void measure_sums() const {
    saved_affines();
    if constexpr (kLast) {
      channels_last_sums();
    } else {
      contiguous_sums();
    }
    const int64_t entries = members();
    fold<Pair>(
        entries,
        [&](int g, int64_t i) {
          const int c = static_cast<int>(g * entries + i);
          const Channel one = channel(c);
          return Pair{one.w * sums(c)[0], one.w * one.sum_gn(sums(c))};
        },
        [](Pair& a, const Pair& b) { add(a, b); }, [&](int g, const Pair& v) { group<Pair>(g, false) = v; });
  }
  template <Phase kPhase>
  VDIFF_DEVICE void finish_backward() const {
    if constexpr (kPhase == Phase::apply) saved_affines();
    exchange<kPhase, Pair>([](Pair& a, const Pair& b) { add(a, b); });
    cta.threads([&](int t) {
      for (int c = t; c < share.channels; c += kThreads) finish_channel<kPhase>(c);
    });
    cta.each([&](int t) { apply_gradient(t); });
  }
  // dx's map; the third sum becomes that of dx, or of n where nobody asks for dx's.
  template <Phase kPhase>
  VDIFF_DEVICE void finish_channel(int c) const {
    const double count = static_cast<double>(s.count());
    const Pair& total = group<Pair>(group_of(c), true);
    const Pair mean{total.g / count, total.gn / count};
    const Channel one = channel(c);
    gradient(c) = one.gradient(mean);
    float* to = channel_sums(c);
    const float from[3] = {to[0], to[1], to[2]};
    to[1] = static_cast<float>(one.sum_gn(from));
    to[2] = static_cast<float>(one.sum_dx(from, share.positions, mean));
  }
  VDIFF_DEVICE void apply_gradient(int t) const {
    Batches batches(s.slots);
    for (int round = 0; round < rounds_of(s); ++round) {
      const Spot spot = spot_of(s, share, t, round);
      if (spot.packs == 0) continue;
      Affine maps[kVectors];
      affines(spot, maps);
      Gradient lines[kVectors];
      VDIFF_UNROLL
      for (int j = 0; j < kVectors; ++j) lines[j] = spot.c + j < share.channels ? gradient(spot.c + j) : Gradient{};
      packs(spot, [&](int slot, int position, int n) {
        batches.await(cta, slot);
        Pack<T> x = pack(slot, t);
        const Pack<T> dy = pack(slot, t, true);
        VDIFF_UNROLL
        for (int j = 0; j < kPack; ++j) {
          const Affine& map = maps[kLast ? j : 0];
          const Gradient& line = lines[kLast ? j : 0];
          const float centered = cta.to_float(x.v[j]) - map.center;
          const float g = through_activation(cta, cta.to_float(dy.v[j]), centered * map.slope + map.offset, s.silu);
          x.v[j] = cta.template from_float<T>(g * line.gain + (centered * line.tilt + line.level));
        }
        store_pack(p.y, p.y2, spot.c, position, n, x);
      });
    }
  }

  // --- both --------------------------------------------------------------------------------------------------------

  // The numbers of this share's groups, from its packs.
  VDIFF_DEVICE void measure() const {
    if constexpr (kBackward) {
      measure_sums();
    } else {
      measure_moments();
    }
  }
  VDIFF_DEVICE void publish() const {
    cta.each([&](int t) {
      for (int g = t; g < share.groups; g += kThreads) {
        *group_sums<Numbers>(share.rank, g) = group<Numbers>(g, false);
      }
    });
  }
  // From the numbers of all shares to the output.
  template <Phase kPhase>
  VDIFF_DEVICE void finish() const {
    if constexpr (kBackward) {
      finish_backward<kPhase>();
    } else {
      finish_forward<kPhase>();
    }
  }
  template <Phase kPhase>
  VDIFF_DEVICE void run() const {
    cta.each([&](int t) { load(t); });
    if constexpr (kPhase != Phase::apply) measure();
    if constexpr (kPhase == Phase::reduce) {
      publish();
    } else {
      finish<kPhase>();
    }
  }
  VDIFF_DEVICE unsigned* arrivals() const { return p.arrivals + share.unit * s.slabs + share.slab; }
};

// A block of a grid whose blocks all run at once: it takes its share of one slab after the other. While the shares of a
// slab meet at their counter, it loads and measures the next one in its other buffer, if it has two.
template <class Cta, class T, bool kLast, bool kBackward>
VDIFF_DEVICE void take_turns(Cta& cta, const Problem<T>& p, int64_t block, char* memory) {
  const Shape& s = p.shape;
  const int turns = static_cast<int>(ceil_of(s.items() - block / s.shares, s.teams)), late = s.buffers - 1;
  const auto at = [&](int turn) {
    return Block<Cta, T, kLast, kBackward>(cta, p, block + turn * s.blocks(), memory, turn & late);
  };
  cta.each([&](int t) { at(0).load(t); });
  for (int turn = 0; turn < turns + late; ++turn) {
    if (turn < turns) {
      const auto one = at(turn);
      one.measure(), one.publish();
      cta.arrive(one.arrivals());
    }
    if (turn >= late) {
      const auto one = at(turn - late);
      cta.await(one.arrivals(), static_cast<unsigned>(s.shares));
      one.template finish<Phase::apply>();
    }
    if (turn + 1 >= turns) continue;
    const auto load = [&](int t) { at(turn + 1).load(t); };  // over packs that the same thread was the last to read
    if constexpr (kBackward) {
      cta.threads(load);  // until here all threads read tables that `measure` begins with
    } else {
      cta.each(load);
    }
  }
}

}  // namespace vdiff::group_norm
