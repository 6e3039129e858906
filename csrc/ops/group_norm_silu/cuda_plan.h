// What a CUDA block of group_norm_silu holds, and how many blocks share a unit: the statistics of one sample, or of one
// frame. Plain arithmetic for host and device, tested without a GPU.
#pragma once

#include "cuda/norm.h"

namespace vdiff::group_norm {

using namespace norm;

constexpr int kMostChannels = 512, kMostRows = 128;  // that a block takes of channels-last rows, of contiguous ones
constexpr int kMostShares = 8;                       // the largest portable cluster
constexpr int kDepth = 4;                            // packs of a lane between two reductions over a contiguous row
constexpr int64_t kReservedBytes = 1 << 10;          // of shared memory, that the chip takes for every block
constexpr int64_t kSplitBytes = 32 << 10;            // of x that a block takes where no cluster holds the unit
constexpr int64_t kFewBytes = 16 << 10;              // a block with less is cut no further
constexpr int kHeldBlocks = 2;           // of a multiprocessor; the kernels' launch bounds keep registers for it
constexpr int64_t kTurnBytes = 8 << 10;  // of x, that a block of H200 could read and write in a microsecond

// How the shares of a unit's slab meet: in a cluster's shared memory (or one block's), at a counter of a grid whose
// blocks all run at once, or in a second kernel.
enum class Way { cluster, grid, split };

// x is batch x segments x length x channels: a segment is a frame where anything is per frame, else the sample. A share
// is `cut_length` positions of one segment in `part` channels (`slab_groups` groups, or a part of one), held by a block
// in packs of 16 bytes; `shares` of them make a unit's slab.
struct Shape : Segments {
  int64_t length, c1, c2, groups, per_group, unit_segments, units;
  bool channels_last, silu, aligned;  // aligned: every pack is one access
  int element;

  int64_t slab_groups, slabs, part, channel_cuts, cut_length, shares;
  int lanes, depth, pieces;  // contiguous: a row's packs go to teams of lanes, `depth` to each, in `pieces`
  int columns, row_lanes;    // channels-last: packs of a row, rows at a time
  int slots;                 // packs of a thread
  Way way;
  int64_t teams;  // grid: of `shares` blocks, which take the slabs of all units in turn
  int buffers;    // shares that a block holds: with two, one waits for its sums while the next is loaded

  VDIFF_HOST_DEVICE int pack() const { return kBytesAPack / element; }
  VDIFF_HOST_DEVICE int64_t count() const { return unit_segments * length * per_group; }
  VDIFF_HOST_DEVICE int64_t items() const { return units * slabs; }
  VDIFF_HOST_DEVICE int64_t all_shares() const { return items() * shares; }
  VDIFF_HOST_DEVICE int64_t blocks() const { return (way == Way::grid ? teams : items()) * shares; }
  VDIFF_HOST_DEVICE bool empty() const { return vectors() * length == 0; }
  VDIFF_HOST_DEVICE int64_t data_bytes(bool backward) const {
    return int64_t{slots} * kThreads * kBytesAPack * (backward ? 2 : 1);
  }
};

// Byte offsets into a block's shared memory: packs of x (and dy) of every buffer, sums of threads, of entries, numbers
// of channels and of groups.
struct Layout {
  int64_t second, threads, entries, tables, groups, bytes;

  VDIFF_HOST_DEVICE Layout(const Shape& s, bool backward) {
    const int64_t sums = backward ? 3 : 2, entry = s.channels_last ? s.part
                                                   : backward      ? s.part * s.pieces
                                                                   : kThreads / kWarp;
    second = int64_t{s.slots} * kThreads * kBytesAPack;
    threads = s.buffers * s.data_bytes(backward);
    entries = threads + (s.channels_last ? sums * s.pack() * kThreads * 4 : 0);
    tables = entries + ceil_of(entry * (backward ? 12 : 24), 16) * 16;
    groups = tables + ceil_of(s.part * (backward ? 36 : 12), 16) * 16;
    bytes = groups + 2 * s.slab_groups * 24;
  }
};

struct Share {
  int64_t unit, sample, segment, begin, slab, channel, group;
  int channels, groups, positions, rank;
};

VDIFF_HOST_DEVICE Share share_of(const Shape& s, int64_t index) {
  Share r;
  r.rank = static_cast<int>(index % s.shares);
  r.slab = index / s.shares % s.slabs, r.unit = index / s.shares / s.slabs;
  const int64_t row = r.rank / s.cuts, first = r.slab * s.slab_groups * s.per_group;
  r.segment = r.unit * s.unit_segments + row / s.channel_cuts, r.sample = r.segment / s.segments;
  r.begin = r.rank % s.cuts * s.cut_length;
  r.positions = static_cast<int>(least(s.cut_length, s.length - r.begin));
  r.group = r.slab * s.slab_groups;
  r.groups = static_cast<int>(least(s.slab_groups, s.groups - r.group));
  const int64_t offset = row % s.channel_cuts * s.part;
  r.channel = first + offset;
  r.channels = static_cast<int>(least(s.part, r.groups * s.per_group - offset));
  return r;
}

// Packs of one thread in one round: from local channel c and local position on, `step` positions apart; all of one
// channel in contiguous memory, all of the same channels in channels-last.
struct Spot {
  int c, position, step, packs, slot, item;
};

VDIFF_HOST_DEVICE int rounds_of(const Shape& s) {
  return s.channels_last ? 1 : static_cast<int>(ceil_of(s.part * s.pieces, kThreads / s.lanes));
}

VDIFF_HOST_DEVICE Spot spot_of(const Shape& s, const Share& r, int thread, int round) {
  Spot p;
  if (s.channels_last) {
    const int row = thread / s.columns, left = r.positions - row;
    p.item = p.slot = 0, p.c = (thread - row * s.columns) * s.pack(), p.position = row, p.step = s.row_lanes;
    p.packs = row < s.row_lanes && p.c < r.channels && left > 0 ? (left + s.row_lanes - 1) / s.row_lanes : 0;
    return p;
  }
  const int team = thread / s.lanes, lane = thread - team * s.lanes;
  p.item = round * (kThreads / s.lanes) + team, p.c = p.item / s.pieces, p.slot = round * s.depth;
  p.step = s.lanes * s.pack();
  p.position = (p.item - p.c * s.pieces) * s.depth * p.step + lane * s.pack();
  const int left = r.positions - p.position;
  p.packs = p.c < r.channels && left > 0 ? static_cast<int>(least((left + p.step - 1) / p.step, s.depth)) : 0;
  return p;
}

// --- the choice of shares, on the host -----------------------------------------------------------------------------

struct Device {
  int64_t multiprocessors, shared_bytes;  // shared memory that one block may ask for
  bool clusters, cooperative;             // cooperative: a grid can be sure that all its blocks run at once
};

inline bool two_fit(const Shape& s, const Device& device, bool backward) {
  return kHeldBlocks * Layout(s, backward).bytes + kReservedBytes <= device.shared_bytes;
}

// Groups of a block: one in contiguous memory, in channels-last as many as make rows of whole 32-byte sectors, 64 at
// least and 512 at most.
inline int64_t groups_of_slab(const Shape& s) {
  if (!s.channels_last || s.per_group > kMostChannels) return 1;
  const int64_t row = s.per_group * s.element, fit = least(s.groups, most(512 / row, 1));
  for (int64_t k = 1; k <= fit; ++k) {
    if (k * row >= 64 && k * row % 32 == 0) return k;
  }
  for (int64_t k = fit; k > 1; --k) {
    if (k * row % kBytesAPack == 0) return k;
  }
  return fit;
}

// No pack of a row belongs to two blocks, or to both of x and x2.
inline bool whole_packs_of_channels(const Shape& s) {
  const int64_t pack = s.pack();
  return s.c1 % pack == 0 && s.c2 % pack == 0 && (s.slabs == 1 || s.slab_groups * s.per_group % pack == 0) &&
         (s.channel_cuts == 1 || s.part % pack == 0);
}

inline void cut(Shape& s, int64_t cuts) {
  const int64_t pack = s.pack(), packs = ceil_of(ceil_of(s.length, cuts), pack);
  s.cut_length = s.channels_last ? ceil_of(s.length, cuts) : packs * pack;
  s.cuts = ceil_of(s.length, s.cut_length), s.shares = s.unit_segments * s.channel_cuts * s.cuts;
  s.lanes = 1, s.depth = 1, s.pieces = 1, s.columns = 1, s.row_lanes = 1;
  if (s.channels_last) {
    s.columns = static_cast<int>(ceil_of(s.part, pack)), s.row_lanes = kThreads / s.columns;
    s.slots = static_cast<int>(ceil_of(s.cut_length, s.row_lanes));
    return;
  }
  while (s.lanes < kWarp && s.lanes < packs) s.lanes *= 2;
  s.pieces = static_cast<int>(ceil_of(packs, s.lanes * kDepth));
  s.depth = static_cast<int>(ceil_of(packs, s.lanes * s.pieces));
  s.slots = rounds_of(s) * s.depth;
}

// Blocks of half to all of kSplitBytes of x, those that leave the fewest threads idle.
inline void split(Shape& s, const Device& device, bool backward) {
  for (int64_t bytes = kSplitBytes;; bytes /= 2) {
    const int64_t fewest = most(ceil_of(s.length * s.part * s.element, bytes), 1);
    Shape best{};
    for (int64_t i = 0; i < 16; ++i) {
      Shape one = s;
      cut(one, least(fewest + fewest * i / 16, s.length));
      if (i == 0 || one.cuts * one.slots < best.cuts * best.slots) best = one;
    }
    if (Layout(best, backward).bytes > device.shared_bytes && bytes > kFewBytes / 8) continue;
    s = best, s.way = Way::split;
    return;
  }
}

// As many teams as make a block's work least: in every turn the bytes of a share and kTurnBytes for reading the others'
// sums; twice that for every meeting that no load hides. False where the chip does not hold one unit's slab.
inline bool persist(Shape& s, const Device& device, bool backward) {
  const int64_t held = kHeldBlocks * device.multiprocessors, rows = s.unit_segments * s.channel_cuts;
  const int64_t position = s.part * s.element * (backward ? 2 : 1);
  const int64_t most_cuts = most(ceil_of(s.length * position, kFewBytes), 1);
  int64_t least_work = 0;
  Shape best{};
  for (int buffers = 1; buffers <= 2; ++buffers) {
    for (int64_t teams = 1; teams <= s.items() && teams * rows <= held; ++teams) {
      const int64_t turns = ceil_of(s.items(), teams);
      if (turns < buffers) break;
      Shape one = s;
      one.way = Way::grid, one.teams = teams, one.buffers = buffers;
      cut(one, least(held / (teams * rows), most_cuts));
      if (!two_fit(one, device, backward)) break;
      const int64_t bare = buffers == 1 ? turns : 1;
      const int64_t work = turns * (one.cut_length * position + kTurnBytes) + bare * 2 * kTurnBytes;
      if (best.teams == 0 || work <= least_work) best = one, least_work = work;
    }
  }
  if (best.teams > 0) s = best;
  return best.teams > 0;
}

// The table of sizes; no threshold in it is measured yet. Bytes count x, in the backward x and dy; channels-last leaves
// less room, for the sums of threads.
//   a unit's slab in one block, two of them to a multiprocessor        one block
//   more, or fewer blocks than multiprocessors                         a cluster of 2 to 8, two blocks to each again
//   more than half a multiprocessor's shared memory times 8            a cluster of 8, or as few as hold it
//   more than all of it times 8 (H200: 1.8 MB), or no clusters         a grid, two blocks to each multiprocessor
//   more than half of all shared memory (H200: 10 to 14 MB)            a grid that holds one slab at a time
//   more than all of it (H200: 20 to 28 MB), or no cooperative launch  split statistics, 32 KB a block
// `on_packs`: all tensors begin at a multiple of 16 bytes.
inline void choose(Shape& s, const Device& device, bool backward, bool on_packs) {
  s.slab_groups = groups_of_slab(s), s.slabs = ceil_of(s.groups, s.slab_groups);
  const int64_t slab = s.slab_groups * s.per_group, limit = s.channels_last ? kMostChannels : kMostRows;
  s.channel_cuts = ceil_of(slab, limit);
  s.part = ceil_of(ceil_of(slab, s.channel_cuts), s.pack()) * s.pack();
  if (s.part > slab) s.part = slab;
  s.channel_cuts = ceil_of(slab, s.part);
  s.aligned = on_packs && (s.channels_last ? whole_packs_of_channels(s) : s.length % s.pack() == 0);
  s.way = Way::cluster, s.teams = 0, s.buffers = 1;
  Shape best{};
  for (int64_t cuts = 1; s.unit_segments * s.channel_cuts * cuts <= (device.clusters ? kMostShares : 1); ++cuts) {
    Shape one = s;
    cut(one, cuts);
    if (one.cuts != cuts || Layout(one, backward).bytes > device.shared_bytes) continue;
    const bool fills = one.blocks() >= device.multiprocessors, few = one.data_bytes(backward) <= kFewBytes;
    if (!device.clusters && !fills && !few) break;
    best = one;
    if (few || (fills && two_fit(one, device, backward))) break;
  }
  if (best.shares > 0) {
    s = best;
    return;
  }
  if (device.cooperative && persist(s, device, backward)) return;
  split(s, device, backward);
}

}  // namespace vdiff::group_norm
