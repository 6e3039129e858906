// The blocks of rms_norm_silu, forward and backward, written once for device and host like those of group_norm_silu.
//
// A block takes some positions of one segment with all their channels. Rows of its tile are channels (contiguous) or
// positions (channels-last), in packs of 16 bytes; a thread keeps to one column of packs at a time. So it sums along
// the column in registers and along the row with its neighbours, and one of the two is over the channels.
#pragma once

#include "cuda/norm.h"

namespace vdiff::rms_norm {

using namespace norm;

// Of x that a block takes; not measured yet.
constexpr int64_t kForwardBytes = 48 << 10, kBackwardBytes = 40 << 10;
constexpr int kFewestLanes = 4;  // contiguous: 64 bytes of a channel's positions at least
constexpr int kTables = 2;       // numbers of a channel, and of a position

struct Shape : Segments {
  int64_t length;
  bool channels_last, silu, aligned;
  int element;

  int lanes, tiles, rounds;  // a row's packs side by side, one after the other; rows one after the other
  int64_t positions;         // of a block
  bool resident;             // else the tile is too large for shared memory and is read twice

  VDIFF_HOST_DEVICE int pack() const { return kBytesAPack / element; }
  VDIFF_HOST_DEVICE int teams() const { return kThreads / lanes; }
  VDIFF_HOST_DEVICE int slots() const { return tiles * rounds; }
  VDIFF_HOST_DEVICE int64_t rows() const { return channels_last ? positions : channels; }
  VDIFF_HOST_DEVICE int64_t blocks() const { return batch * segments * cuts; }
  VDIFF_HOST_DEVICE bool empty() const { return vectors() * length == 0; }
};

// Numbers of the columns of a row lie [element of the pack][pack], so that the threads of a row read side by side.
VDIFF_HOST_DEVICE int64_t spread_bytes(const Shape& s, int64_t n) { return ceil_of(n, s.pack()) * s.pack() * 4; }

// Byte offsets into a block's shared memory.
struct Layout {
  int64_t second, threads, tables, positions, bytes;

  VDIFF_HOST_DEVICE Layout(const Shape& s, bool backward) {
    second = s.resident ? int64_t{s.slots()} * kThreads * kBytesAPack : 0;
    threads = second * (backward ? 2 : 1);
    const bool columns = backward || !s.channels_last;
    tables = threads + (columns ? (backward && s.channels_last ? 2 : 1) * s.pack() * kThreads * 4 : 0);
    positions = tables + kTables * spread_bytes(s, s.channels);
    bytes = positions + kTables * spread_bytes(s, s.positions);
  }
};

// `on_packs`: all tensors begin at a multiple of 16 bytes.
inline void choose(Shape& s, int64_t shared_bytes, bool backward, bool on_packs) {
  const int64_t pack = s.pack(), arrays = backward ? 2 : 1, wanted = backward ? kBackwardBytes : kForwardBytes;
  s.aligned = on_packs && (s.channels_last ? s.channels : s.length) % pack == 0;
  s.resident = true, s.lanes = kWarp, s.tiles = 1;
  if (s.channels_last) {
    const int64_t packs = ceil_of(s.channels, pack);
    while (s.lanes > 1 && s.lanes / 2 >= packs) s.lanes /= 2;
    s.tiles = static_cast<int>(ceil_of(packs, s.lanes));
    const int64_t most_rounds = most(wanted / (kThreads * kBytesAPack) / s.tiles, 1);
    s.rounds = static_cast<int>(least(most_rounds, ceil_of(s.length, s.teams())));
    s.positions = least(s.rounds * s.teams(), s.length);
  } else {
    const auto bytes = [&] { return s.channels * s.lanes * kBytesAPack; };
    const int64_t packs = ceil_of(s.length, pack);
    while (s.lanes > 1 && s.lanes / 2 >= packs) s.lanes /= 2;
    while (s.lanes > kFewestLanes && bytes() > wanted) s.lanes /= 2;
    s.rounds = static_cast<int>(ceil_of(s.channels, s.teams()));
    s.positions = least(s.lanes * pack, s.length);
  }
  s.cuts = ceil_of(s.length, s.positions);
  s.resident = int64_t{s.slots()} * kThreads * kBytesAPack * arrays <= shared_bytes / 2;
}

template <class T>
struct Problem {
  Shape shape;
  Vectors vectors;
  double eps;
  const T *x, *dy;
  T* y;                 // y, or dx
  float* rstd;          // written by the forward, read by the backward
  float* channel_sums;  // backward: three numbers of each (segment, cut, channel), the third for nobody
};

template <class Cta, class T, bool kLast, bool kBackward>
struct Block {
  static constexpr int kPack = kBytesAPack / sizeof(T);

  Cta& cta;
  const Problem<T>& p;
  const Shape& s;
  const Layout layout;
  char* const memory;
  const int64_t segment, sample, cut, begin;
  const int here;  // positions

  VDIFF_DEVICE Block(Cta& cta, const Problem<T>& p, int64_t block, char* memory)
      : cta(cta),
        p(p),
        s(p.shape),
        layout(p.shape, kBackward),
        memory(memory),
        segment(block / p.shape.cuts),
        sample(segment / p.shape.segments),
        cut(block - segment * p.shape.cuts),
        begin(cut * p.shape.positions),
        here(static_cast<int>(least(p.shape.positions, p.shape.length - begin))) {}

  template <class V>
  VDIFF_DEVICE V* at(int64_t offset) const {
    return reinterpret_cast<V*>(memory + offset);
  }
  VDIFF_DEVICE Pack<T>& held(int slot, int t, bool second = false) const {
    return at<Pack<T>>(second ? layout.second : 0)[slot * kThreads + t];
  }
  // [sum][element of the pack][thread]
  VDIFF_DEVICE float& thread_sum(int k, int j, int t) const {
    return at<float>(layout.threads)[(k * kPack + j) * kThreads + t];
  }
  VDIFF_DEVICE float& number(int64_t table, int which, int64_t n, int i) const {
    return at<float>(table + which * spread_bytes(s, n))[i % kPack * ceil_of(n, kPack) + i / kPack];
  }
  VDIFF_DEVICE float& slope(int c) const { return number(layout.tables, 0, s.channels, c); }
  VDIFF_DEVICE float& offset(int c) const { return number(layout.tables, 1, s.channels, c); }
  VDIFF_DEVICE float& rstd(int position) const { return number(layout.positions, 0, s.positions, position); }
  // Backward: sum of g * slope * n over the channels.
  VDIFF_DEVICE float& across(int position) const { return number(layout.positions, 1, s.positions, position); }
  VDIFF_DEVICE float* channel_sums(int c) const {
    return p.channel_sums + 3 * ((segment * s.cuts + cut) * s.channels + c);
  }

  // The pack of a thread in one slot: elements of a row from local column on, none past the tile's end.
  struct Spot {
    int row, column, n;
  };
  VDIFF_DEVICE int first_column(int t, int tile) const { return (tile * s.lanes + t % s.lanes) * kPack; }
  VDIFF_DEVICE Spot spot(int t, int tile, int round) const {
    const int row = round * s.teams() + t / s.lanes, column = first_column(t, tile);
    const int64_t rows = kLast ? here : s.channels, columns = kLast ? s.channels : here;
    return {row, column, row < rows ? static_cast<int>(most(least(columns - column, kPack), 0)) : 0};
  }
  VDIFF_DEVICE int slot(int tile, int round) const { return tile * s.rounds + round; }
  template <class P>
  VDIFF_DEVICE P* find(P* data, const Spot& spot) const {
    if (kLast) return data + (segment * s.length + begin + spot.row) * s.channels + spot.column;
    const int64_t frame = segment - sample * s.segments;
    return data + ((sample * s.channels + spot.row) * s.segments + frame) * s.length + begin + spot.column;
  }
  VDIFF_DEVICE int64_t rstd_index(int position) const { return segment * s.length + begin + position; }

  VDIFF_DEVICE void load_pack(const T* data, const Spot& spot, Pack<T>& to) const {
    if (s.aligned) {
      to = *reinterpret_cast<const Pack<T>*>(find(data, spot));
      return;
    }
    for (int j = 0; j < spot.n; ++j) to.v[j] = find(data, spot)[j];
  }
  VDIFF_DEVICE void store_pack(const Spot& spot, const Pack<T>& from) const {
    if (s.aligned) {
      cta.store(find(p.y, spot), from);
      return;
    }
    for (int j = 0; j < spot.n; ++j) find(p.y, spot)[j] = from.v[j];
  }
  VDIFF_DEVICE void fetch(const T* data, const Spot& spot, Pack<T>& to) const {
    if (s.aligned) {
      cta.copy(&to, find(data, spot));
    } else {
      load_pack(data, spot, to);
    }
  }
  VDIFF_DEVICE void load(int t) const {
    if (!s.resident) return;
    Batches batches(s.slots());
    for (int tile = 0; tile < s.tiles; ++tile) {
      for (int round = 0; round < s.rounds; ++round) {
        const Spot one = spot(t, tile, round);
        batches.close_before(cta, slot(tile, round));
        if (one.n == 0) continue;
        fetch(p.x, one, held(slot(tile, round), t));
        if (kBackward) fetch(p.dy, one, held(slot(tile, round), t, true));
      }
    }
    batches.close(cta);
  }
  // Waits for a thread's packs of one slot, which it has loaded itself.
  VDIFF_DEVICE void await(int at) const {
    if (!s.resident) return;
    const int slots = (s.slots() + kStages - 1) / kStages;
    cta.wait(kStages - 1 - at / slots);
  }
  VDIFF_DEVICE Pack<T> read(bool second, int at, int t, const Spot& spot) const {
    Pack<T> pack{};
    if (spot.n == 0) return pack;
    if (s.resident) return held(at, t, second);
    load_pack(second ? p.dy : p.x, spot, pack);
    return pack;
  }

  VDIFF_DEVICE void set_tables() const {
    cta.threads([&](int t) {
      for (int c = t; c < s.channels; c += kThreads) {
        slope(c) = static_cast<float>(weight_of(p.vectors, c) * factor_of(s, p.vectors, segment, c));
        offset(c) = static_cast<float>(framed(s, p.vectors.shift, p.vectors.shift_frames, segment, c));
      }
      for (int i = t; i < here; i += kThreads) {
        across(i) = 0.0f;
        if (kBackward) rstd(i) = p.rstd[rstd_index(i)];
      }
    });
  }
  // Adds up the columns of a tile over the teams: body(local column, sum of each kind).
  template <int kSums, class Body>
  VDIFF_DEVICE void fold_columns(int tile, int64_t columns, Body body) const {
    cta.threads([&](int t) {
      const int first = tile * s.lanes * kPack, last = static_cast<int>(least(first + s.lanes * kPack, columns));
      for (int column = first + t; column < last; column += kThreads) {
        const int lane = (column - first) / kPack, j = column % kPack;
        double total[kSums] = {};
        for (int team = 0; team < s.teams(); ++team) {
          VDIFF_UNROLL
          for (int k = 0; k < kSums; ++k) total[k] += thread_sum(k, j, team * s.lanes + lane);
        }
        body(column, total);
      }
    });
  }

  // --- forward -----------------------------------------------------------------------------------------------------

  VDIFF_DEVICE void squares_of_columns() const {
    cta.threads([&](int t) {
      float sums[kPack] = {};
      for (int round = 0; round < s.rounds; ++round) {
        await(round);
        const Spot one = spot(t, 0, round);
        const Pack<T> x = read(false, round, t, one);
        VDIFF_UNROLL
        for (int j = 0; j < kPack; ++j) {
          const float v = j < one.n ? cta.to_float(x.v[j]) : 0.0f;
          sums[j] += v * v;
        }
      }
      VDIFF_UNROLL
      for (int j = 0; j < kPack; ++j) thread_sum(0, j, t) = sums[j];
    });
    fold_columns<1>(0, here, [&](int position, const double (&total)[1]) { set_rstd(position, total[0]); });
  }
  VDIFF_DEVICE void squares_of_rows() const {
    for (int round = 0; round < s.rounds; ++round) {
      cta.template lanes<float>(
          s.lanes,
          [&](int t) {
            float sum = 0;
            for (int tile = 0; tile < s.tiles; ++tile) {
              await(slot(tile, round));
              const Spot one = spot(t, tile, round);
              const Pack<T> x = read(false, slot(tile, round), t, one);
              VDIFF_UNROLL
              for (int j = 0; j < kPack; ++j) {
                const float v = j < one.n ? cta.to_float(x.v[j]) : 0.0f;
                sum += v * v;
              }
            }
            return sum;
          },
          [](float& a, float b) { a += b; },
          [&](int t, float sum) {
            const int row = round * s.teams() + t / s.lanes;
            if (row < here) set_rstd(row, sum);
          });
    }
    cta.threads([](int) {});
  }
  VDIFF_DEVICE void set_rstd(int position, double squares) const {
    const double r = 1.0 / sqrt(squares / static_cast<double>(s.channels) + p.eps);
    rstd(position) = p.rstd[rstd_index(position)] = static_cast<float>(r);
  }

  VDIFF_DEVICE void forward() const {
    cta.each([&](int t) { load(t); });
    set_tables();
    if constexpr (kLast) {
      squares_of_rows();
    } else {
      squares_of_columns();
    }
    cta.each([&](int t) {
      for (int tile = 0; tile < s.tiles; ++tile) {
        for (int round = 0; round < s.rounds; ++round) {
          const Spot one = spot(t, tile, round);
          if (one.n == 0) continue;
          Pack<T> v = read(false, slot(tile, round), t, one);
          VDIFF_UNROLL
          for (int j = 0; j < kPack; ++j) {
            if (j < one.n) {
              const Element e = element(one, j);
              const float z = cta.to_float(v.v[j]) * e.rstd * e.slope + e.offset;
              v.v[j] = cta.template from_float<T>(activated(cta, z, s.silu));
            }
          }
          store_pack(one, v);
        }
      }
    });
  }
  struct Element {
    float rstd, slope, offset;
  };
  VDIFF_DEVICE int channel_of(const Spot& spot, int j) const { return kLast ? spot.column + j : spot.row; }
  VDIFF_DEVICE int position_of(const Spot& spot, int j) const { return kLast ? spot.row : spot.column + j; }
  VDIFF_DEVICE Element element(const Spot& spot, int j) const {
    const int c = channel_of(spot, j);
    return {rstd(position_of(spot, j)), slope(c), offset(c)};
  }

  // --- backward ----------------------------------------------------------------------------------------------------

  struct Term {
    float g, gn;  // g = dy * act'(z), and times n = x * rstd
  };
  VDIFF_DEVICE Term term(const Pack<T>& x, const Pack<T>& dy, const Spot& spot, int j) const {
    if (j >= spot.n) return {0.0f, 0.0f};
    const Element e = element(spot, j);
    const float n = cta.to_float(x.v[j]) * e.rstd;
    const float g = through_activation(cta, cta.to_float(dy.v[j]), n * e.slope + e.offset, s.silu);
    return {g, g * n};
  }

  // Along a row: a channel's two sums (contiguous), or a position's sum over the channels.
  VDIFF_DEVICE void sums() const {
    typename Cta::template Local<Term[kPack]> columns(cta);
    for (int tile = 0; tile < s.tiles; ++tile) {
      cta.each([&](int t) {
        VDIFF_UNROLL
        for (int j = 0; j < kPack; ++j) columns[t][j] = {};
      });
      for (int round = 0; round < s.rounds; ++round) {
        cta.template lanes<Term>(
            s.lanes, [&](int t) { return row_sums(t, tile, round, columns[t]); },
            [](Term& a, const Term& b) { a.g += b.g, a.gn += b.gn; },
            [&](int t, const Term& total) { keep_row(round * s.teams() + t / s.lanes, total); });
      }
      cta.threads([&](int t) {
        VDIFF_UNROLL
        for (int j = 0; j < kPack; ++j) {
          if (kLast) thread_sum(1, j, t) = columns[t][j].g;
          thread_sum(0, j, t) = columns[t][j].gn;
        }
      });
      if constexpr (kLast) {
        fold_columns<2>(tile, s.channels, [&](int c, const double (&total)[2]) {
          keep_channel(c, static_cast<float>(total[1]), static_cast<float>(total[0]));
        });
      } else {
        fold_columns<1>(tile, here, [&](int position, const double (&total)[1]) {
          across(position) = static_cast<float>(total[0]);
        });
      }
    }
  }
  VDIFF_DEVICE Term row_sums(int t, int tile, int round, Term (&columns)[kPack]) const {
    await(slot(tile, round));
    const Spot one = spot(t, tile, round);
    const Pack<T> x = read(false, slot(tile, round), t, one), dy = read(true, slot(tile, round), t, one);
    Term row{};
    VDIFF_UNROLL
    for (int j = 0; j < kPack; ++j) {
      const Term e = term(x, dy, one, j);
      const float through = j < one.n ? e.gn * slope(channel_of(one, j)) : 0.0f;
      row.g += e.g, row.gn += kLast ? through : e.gn;
      columns[j].g += e.g, columns[j].gn += kLast ? e.gn : through;
    }
    return row;
  }
  VDIFF_DEVICE void keep_row(int row, const Term& total) const {
    if constexpr (kLast) {
      if (row < here) across(row) += total.gn;
    } else {
      if (row < s.channels) keep_channel(row, total.g, total.gn);
    }
  }
  VDIFF_DEVICE void keep_channel(int c, float g, float gn) const {
    float* to = channel_sums(c);
    to[0] = g, to[1] = gn, to[2] = 0.0f;
  }

  VDIFF_DEVICE void backward() const {
    cta.each([&](int t) { load(t); });
    set_tables();
    sums();
    const float share = 1.0f / static_cast<float>(s.channels);
    cta.each([&](int t) {
      for (int tile = 0; tile < s.tiles; ++tile) {
        for (int round = 0; round < s.rounds; ++round) {
          const Spot one = spot(t, tile, round);
          if (one.n == 0) continue;
          Pack<T> x = read(false, slot(tile, round), t, one);
          const Pack<T> dy = read(true, slot(tile, round), t, one);
          VDIFF_UNROLL
          for (int j = 0; j < kPack; ++j) {
            if (j < one.n) {
              const Element e = element(one, j);
              const float mean = across(position_of(one, j)) * share, n = cta.to_float(x.v[j]) * e.rstd;
              const float g = term(x, dy, one, j).g;
              x.v[j] = cta.template from_float<T>(e.rstd * (g * e.slope - n * mean));
            }
          }
          store_pack(one, x);
        }
      }
    });
  }
};

}  // namespace vdiff::rms_norm
