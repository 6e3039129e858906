// The CUDA blocks of rms_norm_silu, forward and backward, written once for device and host: `Cta` is csrc/cuda/cta.cuh,
// or its counterpart in tests/native.
//
// A block takes some positions of one segment with all their channels. The rows of its tile are channels (contiguous)
// or positions (channels-last), read as vectors of 16 bytes; a thread keeps to one column of vectors at a time. So it
// sums along the column in registers and along the row with its neighbours, and one of the two sums is over the
// channels.
#pragma once

#include "cuda/norm.h"

namespace vdiff::rms_norm {

using namespace norm;

// Bytes of x (and dy) per block; not measured yet.
constexpr int64_t kForwardBytes = 48 << 10, kBackwardBytes = 40 << 10;
constexpr int kMinLanes = 4;  // contiguous: at least 64 bytes of a channel's positions
constexpr int kTables = 2;    // of numbers per channel, and of numbers per position

struct Plan : NormGeometry {
  bool aligned;  // every vector is one access
  // A row is read by `lanes` threads side by side, in `tiles` one after the other; the block reads rows_at_once() rows,
  // in `rounds` one after the other.
  int lanes, tiles, rounds;
  int64_t positions, cuts;  // of a block; blocks of a segment
  bool resident;            // else the tile is too large for shared memory and is read twice

  VDIFF_HOST_DEVICE int vector_elements() const { return kVectorBytes / element; }
  VDIFF_HOST_DEVICE int rows_at_once() const { return kThreads / lanes; }
  VDIFF_HOST_DEVICE int vectors_per_thread() const { return tiles * rounds; }
  VDIFF_HOST_DEVICE int64_t blocks() const { return batch * segments * cuts; }
};

// Bytes of a table of n numbers. It is stored as [element of the vector][vector], so that the threads of a row read
// neighbouring words.
VDIFF_HOST_DEVICE int64_t table_bytes(const Plan& plan, int64_t n) {
  return ceil_div(n, plan.vector_elements()) * plan.vector_elements() * 4;
}

// Byte offsets into a block's shared memory.
struct Layout {
  int64_t second, threads, tables, positions, bytes;

  VDIFF_HOST_DEVICE Layout(const Plan& plan, bool backward) {
    second = plan.resident ? int64_t{plan.vectors_per_thread()} * kThreads * kVectorBytes : 0;
    threads = second * (backward ? 2 : 1);
    const bool columns = backward || !plan.channels_last;
    const int sums = backward && plan.channels_last ? 2 : 1;
    tables = threads + (columns ? sums * plan.vector_elements() * kThreads * 4 : 0);
    positions = tables + kTables * table_bytes(plan, plan.channels);
    bytes = positions + kTables * table_bytes(plan, plan.positions);
  }
};

// `on_vectors`: all tensors begin at a multiple of 16 bytes.
inline void choose(Plan& plan, int64_t shared_bytes, bool backward, bool on_vectors) {
  const int64_t elements = plan.vector_elements(), arrays = backward ? 2 : 1,
                wanted = backward ? kBackwardBytes : kForwardBytes;
  plan.aligned = on_vectors && (plan.channels_last ? plan.channels : plan.length) % elements == 0;
  plan.resident = true, plan.lanes = kWarp, plan.tiles = 1;
  if (plan.channels_last) {
    const int64_t vectors = ceil_div(plan.channels, elements);
    while (plan.lanes > 1 && plan.lanes / 2 >= vectors) plan.lanes /= 2;
    plan.tiles = static_cast<int>(ceil_div(vectors, plan.lanes));
    const int64_t most_rounds = max_of(wanted / (kThreads * kVectorBytes) / plan.tiles, 1);
    plan.rounds = static_cast<int>(min_of(most_rounds, ceil_div(plan.length, plan.rows_at_once())));
    plan.positions = min_of(plan.rounds * plan.rows_at_once(), plan.length);
  } else {
    const auto bytes = [&] { return plan.channels * plan.lanes * kVectorBytes; };
    const int64_t vectors = ceil_div(plan.length, elements);
    while (plan.lanes > 1 && plan.lanes / 2 >= vectors) plan.lanes /= 2;
    while (plan.lanes > kMinLanes && bytes() > wanted) plan.lanes /= 2;
    plan.rounds = static_cast<int>(ceil_div(plan.channels, plan.rows_at_once()));
    plan.positions = min_of(plan.lanes * elements, plan.length);
  }
  plan.cuts = ceil_div(plan.length, plan.positions);
  plan.resident = int64_t{plan.vectors_per_thread()} * kThreads * kVectorBytes * arrays <= shared_bytes / 2;
}

template <class T>
struct Problem {
  Plan plan;
  ChannelInputs inputs;
  double eps;
  const T *x, *dy;
  T* y;                 // y, or dx
  float* rstd;          // written by the forward, read by the backward
  float* channel_sums;  // backward: three numbers per (segment, cut, channel), the third is unused
};

template <class Cta, class T, bool kLast, bool kBackward>
struct Block {
  static constexpr int kElements = kVectorBytes / sizeof(T);

  Cta& cta;
  const Problem<T>& p;
  const Plan& plan;
  const Layout layout;
  char* const memory;
  const int64_t segment, sample, cut, begin;
  const int positions_here;

  VDIFF_DEVICE Block(Cta& cta, const Problem<T>& p, int64_t block, char* memory)
      : cta(cta),
        p(p),
        plan(p.plan),
        layout(p.plan, kBackward),
        memory(memory),
        segment(block / p.plan.cuts),
        sample(segment / p.plan.segments),
        cut(block - segment * p.plan.cuts),
        begin(cut * p.plan.positions),
        positions_here(static_cast<int>(min_of(p.plan.positions, p.plan.length - begin))) {}

  template <class V>
  VDIFF_DEVICE V* at(int64_t offset) const {
    return reinterpret_cast<V*>(memory + offset);
  }
  VDIFF_DEVICE Vector<T>& staged(int slot, int t, bool second = false) const {
    return at<Vector<T>>(second ? layout.second : 0)[slot * kThreads + t];
  }
  // [sum][element of the pack][thread]
  VDIFF_DEVICE float& thread_sum(int k, int j, int t) const {
    return at<float>(layout.threads)[(k * kElements + j) * kThreads + t];
  }
  VDIFF_DEVICE float& table_entry(int64_t table, int which, int64_t n, int i) const {
    return at<float>(table + which * table_bytes(plan, n))[i % kElements * ceil_div(n, kElements) + i / kElements];
  }
  VDIFF_DEVICE float& slope(int c) const { return table_entry(layout.tables, 0, plan.channels, c); }
  VDIFF_DEVICE float& offset(int c) const { return table_entry(layout.tables, 1, plan.channels, c); }
  VDIFF_DEVICE float& rstd(int position) const { return table_entry(layout.positions, 0, plan.positions, position); }
  // Backward: the sum of g * slope * n over the channels.
  VDIFF_DEVICE float& dot(int position) const { return table_entry(layout.positions, 1, plan.positions, position); }
  VDIFF_DEVICE float* channel_sums(int c) const {
    return p.channel_sums + 3 * ((segment * plan.cuts + cut) * plan.channels + c);
  }

  // One vector of a thread: n elements of a row of the tile from `column` on, none past the tile's end.
  struct ThreadVector {
    int row, column, n;
  };
  VDIFF_DEVICE int first_column(int t, int tile) const { return (tile * plan.lanes + t % plan.lanes) * kElements; }
  VDIFF_DEVICE ThreadVector vector_at(int t, int tile, int round) const {
    const int row = round * plan.rows_at_once() + t / plan.lanes, column = first_column(t, tile);
    const int64_t rows = kLast ? positions_here : plan.channels, columns = kLast ? plan.channels : positions_here;
    return {row, column, row < rows ? static_cast<int>(max_of(min_of(columns - column, kElements), 0)) : 0};
  }
  VDIFF_DEVICE int slot(int tile, int round) const { return tile * plan.rounds + round; }
  template <class P>
  VDIFF_DEVICE P* find(P* data, const ThreadVector& v) const {
    if (kLast) return data + (segment * plan.length + begin + v.row) * plan.channels + v.column;
    const int64_t frame = segment - sample * plan.segments;
    return data + ((sample * plan.channels + v.row) * plan.segments + frame) * plan.length + begin + v.column;
  }
  VDIFF_DEVICE int64_t rstd_index(int position) const { return segment * plan.length + begin + position; }

  VDIFF_DEVICE void load_vector(const T* data, const ThreadVector& v, Vector<T>& to) const {
    if (plan.aligned) {
      to = *reinterpret_cast<const Vector<T>*>(find(data, v));
      return;
    }
    for (int j = 0; j < v.n; ++j) to.v[j] = find(data, v)[j];
  }
  VDIFF_DEVICE void store_vector(const ThreadVector& v, const Vector<T>& from) const {
    if (plan.aligned) {
      cta.store(find(p.y, v), from);
      return;
    }
    for (int j = 0; j < v.n; ++j) find(p.y, v)[j] = from.v[j];
  }
  VDIFF_DEVICE void fetch(const T* data, const ThreadVector& v, Vector<T>& to) const {
    if (plan.aligned) {
      cta.copy(&to, find(data, v));
    } else {
      load_vector(data, v, to);
    }
  }
  VDIFF_DEVICE void load(int t) const {
    if (!plan.resident) return;
    CopyStages stages(plan.vectors_per_thread());
    for (int tile = 0; tile < plan.tiles; ++tile) {
      for (int round = 0; round < plan.rounds; ++round) {
        const ThreadVector one = vector_at(t, tile, round);
        stages.commit_before(cta, slot(tile, round));
        if (one.n == 0) continue;
        fetch(p.x, one, staged(slot(tile, round), t));
        if (kBackward) fetch(p.dy, one, staged(slot(tile, round), t, true));
      }
    }
    stages.commit_rest(cta);
  }
  // Waits for the vectors of one slot that this thread has copied itself.
  VDIFF_DEVICE void await(int at) const {
    if (!plan.resident) return;
    const int vectors_per_stage = (plan.vectors_per_thread() + kStages - 1) / kStages;
    cta.wait(kStages - 1 - at / vectors_per_stage);
  }
  VDIFF_DEVICE Vector<T> read(bool second, int at, int t, const ThreadVector& v) const {
    Vector<T> x{};
    if (v.n == 0) return x;
    if (plan.resident) return staged(at, t, second);
    load_vector(second ? p.dy : p.x, v, x);
    return x;
  }

  VDIFF_DEVICE void set_tables() const {
    cta.threads([&](int t) {
      for (int c = t; c < plan.channels; c += kThreads) {
        slope(c) = static_cast<float>(weight_of(p.inputs, c) * factor_of(plan, p.inputs, segment, c));
        offset(c) = static_cast<float>(framed(plan, p.inputs.shift, p.inputs.shift_frames, segment, c));
      }
      for (int i = t; i < positions_here; i += kThreads) {
        dot(i) = 0.0f;
        if (kBackward) rstd(i) = p.rstd[rstd_index(i)];
      }
    });
  }
  // Adds up the threads' sums of every column of a tile over the rows read at once: body(column, sums).
  template <int kSums, class Body>
  VDIFF_DEVICE void fold_columns(int tile, int64_t columns, Body body) const {
    cta.threads([&](int t) {
      const int first = tile * plan.lanes * kElements,
                last = static_cast<int>(min_of(first + plan.lanes * kElements, columns));
      for (int column = first + t; column < last; column += kThreads) {
        const int lane = (column - first) / kElements, j = column % kElements;
        double total[kSums] = {};
        for (int row = 0; row < plan.rows_at_once(); ++row) {
          VDIFF_UNROLL
          for (int k = 0; k < kSums; ++k) total[k] += thread_sum(k, j, row * plan.lanes + lane);
        }
        body(column, total);
      }
    });
  }

  // --- forward -----------------------------------------------------------------------------------------------------

  VDIFF_DEVICE void squares_of_columns() const {
    cta.threads([&](int t) {
      float sums[kElements] = {};
      for (int round = 0; round < plan.rounds; ++round) {
        await(round);
        const ThreadVector one = vector_at(t, 0, round);
        const Vector<T> x = read(false, round, t, one);
        VDIFF_UNROLL
        for (int j = 0; j < kElements; ++j) {
          const float v = j < one.n ? cta.to_float(x.v[j]) : 0.0f;
          sums[j] += v * v;
        }
      }
      VDIFF_UNROLL
      for (int j = 0; j < kElements; ++j) thread_sum(0, j, t) = sums[j];
    });
    fold_columns<1>(0, positions_here, [&](int position, const double (&total)[1]) { set_rstd(position, total[0]); });
  }
  VDIFF_DEVICE void squares_of_rows() const {
    for (int round = 0; round < plan.rounds; ++round) {
      cta.template reduce_lanes<float>(
          plan.lanes,
          [&](int t) {
            float sum = 0;
            for (int tile = 0; tile < plan.tiles; ++tile) {
              await(slot(tile, round));
              const ThreadVector one = vector_at(t, tile, round);
              const Vector<T> x = read(false, slot(tile, round), t, one);
              VDIFF_UNROLL
              for (int j = 0; j < kElements; ++j) {
                const float v = j < one.n ? cta.to_float(x.v[j]) : 0.0f;
                sum += v * v;
              }
            }
            return sum;
          },
          [](float& a, float b) { a += b; },
          [&](int t, float sum) {
            const int row = round * plan.rows_at_once() + t / plan.lanes;
            if (row < positions_here) set_rstd(row, sum);
          });
    }
    cta.threads([](int) {});
  }
  VDIFF_DEVICE void set_rstd(int position, double squares) const {
    const double r = 1.0 / sqrt(squares / static_cast<double>(plan.channels) + p.eps);
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
      for (int tile = 0; tile < plan.tiles; ++tile) {
        for (int round = 0; round < plan.rounds; ++round) {
          const ThreadVector one = vector_at(t, tile, round);
          if (one.n == 0) continue;
          Vector<T> v = read(false, slot(tile, round), t, one);
          VDIFF_UNROLL
          for (int j = 0; j < kElements; ++j) {
            if (j < one.n) {
              const Element e = element(one, j);
              const float z = cta.to_float(v.v[j]) * e.rstd * e.slope + e.offset;
              v.v[j] = cta.template from_float<T>(activated(cta, z, plan.silu));
            }
          }
          store_vector(one, v);
        }
      }
    });
  }
  struct Element {
    float rstd, slope, offset;
  };
  VDIFF_DEVICE int channel_of(const ThreadVector& v, int j) const { return kLast ? v.column + j : v.row; }
  VDIFF_DEVICE int position_of(const ThreadVector& v, int j) const { return kLast ? v.row : v.column + j; }
  VDIFF_DEVICE Element element(const ThreadVector& v, int j) const {
    const int c = channel_of(v, j);
    return {rstd(position_of(v, j)), slope(c), offset(c)};
  }

  // --- backward ----------------------------------------------------------------------------------------------------

  struct Term {
    float g, gn;  // g = dy * act'(z), and g * n with n = x * rstd
  };
  VDIFF_DEVICE Term term(const Vector<T>& x, const Vector<T>& dy, const ThreadVector& v, int j) const {
    if (j >= v.n) return {0.0f, 0.0f};
    const Element e = element(v, j);
    const float n = cta.to_float(x.v[j]) * e.rstd;
    const float g = through_activation(cta, cta.to_float(dy.v[j]), n * e.slope + e.offset, plan.silu);
    return {g, g * n};
  }

  // Sums g and g * n. Along a row they are a channel's two sums (contiguous) or a position's sum over the channels
  // (channels-last), along a column the other of the two.
  VDIFF_DEVICE void sums() const {
    typename Cta::template Local<Term[kElements]> columns(cta);
    for (int tile = 0; tile < plan.tiles; ++tile) {
      cta.each([&](int t) {
        VDIFF_UNROLL
        for (int j = 0; j < kElements; ++j) columns[t][j] = {};
      });
      for (int round = 0; round < plan.rounds; ++round) {
        cta.template reduce_lanes<Term>(
            plan.lanes, [&](int t) { return row_sums(t, tile, round, columns[t]); },
            [](Term& a, const Term& b) { a.g += b.g, a.gn += b.gn; },
            [&](int t, const Term& total) { keep_row(round * plan.rows_at_once() + t / plan.lanes, total); });
      }
      cta.threads([&](int t) {
        VDIFF_UNROLL
        for (int j = 0; j < kElements; ++j) {
          if (kLast) thread_sum(1, j, t) = columns[t][j].g;
          thread_sum(0, j, t) = columns[t][j].gn;
        }
      });
      if constexpr (kLast) {
        fold_columns<2>(tile, plan.channels, [&](int c, const double (&total)[2]) {
          keep_channel(c, static_cast<float>(total[1]), static_cast<float>(total[0]));
        });
      } else {
        fold_columns<1>(tile, positions_here,
                        [&](int position, const double (&total)[1]) { dot(position) = static_cast<float>(total[0]); });
      }
    }
  }
  VDIFF_DEVICE Term row_sums(int t, int tile, int round, Term (&columns)[kElements]) const {
    await(slot(tile, round));
    const ThreadVector one = vector_at(t, tile, round);
    const Vector<T> x = read(false, slot(tile, round), t, one), dy = read(true, slot(tile, round), t, one);
    Term row{};
    VDIFF_UNROLL
    for (int j = 0; j < kElements; ++j) {
      const Term e = term(x, dy, one, j);
      const float through = j < one.n ? e.gn * slope(channel_of(one, j)) : 0.0f;
      row.g += e.g, row.gn += kLast ? through : e.gn;
      columns[j].g += e.g, columns[j].gn += kLast ? e.gn : through;
    }
    return row;
  }
  VDIFF_DEVICE void keep_row(int row, const Term& total) const {
    if constexpr (kLast) {
      if (row < positions_here) dot(row) += total.gn;
    } else {
      if (row < plan.channels) keep_channel(row, total.g, total.gn);
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
    const float inverse_channels = 1.0f / static_cast<float>(plan.channels);
    cta.each([&](int t) {
      for (int tile = 0; tile < plan.tiles; ++tile) {
        for (int round = 0; round < plan.rounds; ++round) {
          const ThreadVector one = vector_at(t, tile, round);
          if (one.n == 0) continue;
          Vector<T> x = read(false, slot(tile, round), t, one);
          const Vector<T> dy = read(true, slot(tile, round), t, one);
          VDIFF_UNROLL
          for (int j = 0; j < kElements; ++j) {
            if (j < one.n) {
              const Element e = element(one, j);
              const float mean = dot(position_of(one, j)) * inverse_channels, n = cta.to_float(x.v[j]) * e.rstd;
              const float g = term(x, dy, one, j).g;
              x.v[j] = cta.template from_float<T>(e.rstd * (g * e.slope - n * mean));
            }
          }
          store_vector(one, x);
        }
      }
    });
  }
};

}  // namespace vdiff::rms_norm
