// How the CUDA blocks of group_norm_silu divide the work. Plain arithmetic for host and device, tested without a GPU.
//
//   group tile   `tile_groups` groups of one unit
//   block slice  what one block holds of a group tile, as vectors of 16 bytes in its shared memory
//   exchange     how the slices of a group tile add up their sums
#pragma once

#include "cuda/norm.h"
#include "ops/group_norm_silu/math.h"

namespace vdiff::group_norm {

using namespace norm;

// Channels of a block slice at most: of a channels-last row, and of contiguous memory, where each is a row.
constexpr int kMaxChannels = 512, kMaxRows = 128;
constexpr int kMaxClusterBlocks = 8;   // the largest portable cluster
constexpr int kMaxVectorsPerLane = 4;  // of a contiguous row, between two reductions over its lanes
// Two blocks fit on a multiprocessor: the kernels' launch bounds leave registers for both.
constexpr int kBlocksPerMultiprocessor = 2;
constexpr int64_t kReservedBytes = 1 << 10;   // shared memory that the chip takes from every block
constexpr int64_t kSplitBytes = 32 << 10;     // bytes of x per block with Exchange::split
constexpr int64_t kMinSliceBytes = 16 << 10;  // a slice with less is cut no further
// Bytes of x per block and iteration: about 1 us of one block's memory traffic on an H200.
constexpr int64_t kIterationBytes = 8 << 10;

// Where the slices of a group tile add up their sums: in the shared memory of a cluster (or of the one block), in
// global memory behind a counter of a grid whose blocks all run at once, or in a second kernel.
enum class Exchange { cluster, grid, split };

// A block slice is `slice_length` positions of one segment in `slice_channels` channels: those of `tile_groups` groups,
// or some channels of one group. A segment's length is cut into `cuts`, the channels of a tile into `channel_cuts`, and
// the tile into `slices`.
struct Plan : Geometry {
  bool aligned;  // every vector is one access
  int64_t tile_groups, tiles, slice_channels, channel_cuts, slice_length, cuts, slices;
  // Contiguous: a row is cut into `row_pieces`, each of which `lanes` neighbouring threads read, `vectors_per_lane`
  // each.
  int lanes, vectors_per_lane, row_pieces;
  // Channels-last: vectors of a row, and rows that the block reads at once.
  int columns, rows_at_once;
  int vectors_per_thread;
  Exchange exchange;
  int64_t tiles_at_once;  // Exchange::grid: each by `slices` blocks, which then go on to the next tile
  int buffers;            // slices that a block holds: with two, one waits for its sums while the next is loaded

  VDIFF_HOST_DEVICE int vector_elements() const { return kVectorBytes / element; }
  VDIFF_HOST_DEVICE int64_t all_tiles() const { return units * tiles; }
  VDIFF_HOST_DEVICE int64_t all_slices() const { return all_tiles() * slices; }
  VDIFF_HOST_DEVICE int64_t blocks() const {
    return (exchange == Exchange::grid ? tiles_at_once : all_tiles()) * slices;
  }
  VDIFF_HOST_DEVICE int64_t data_bytes(bool backward) const {
    return int64_t{vectors_per_thread} * kThreads * kVectorBytes * (backward ? 2 : 1);
  }
};

// Byte offsets into a block's shared memory: vectors of x (and, from `second` on, of dy) in every buffer, sums of the
// threads, entries (sums of a warp, of a channel or of a piece of a row), tables of the channels and of the groups.
struct Layout {
  int64_t second, threads, entries, tables, groups, bytes;

  VDIFF_HOST_DEVICE Layout(const Plan& plan, bool backward) {
    const int64_t sums = backward ? 3 : 2;
    const int64_t count = plan.channels_last ? plan.slice_channels
                          : backward         ? plan.slice_channels * plan.row_pieces
                                             : kThreads / kWarp;
    second = int64_t{plan.vectors_per_thread} * kThreads * kVectorBytes;
    threads = plan.buffers * plan.data_bytes(backward);
    entries = threads + (plan.channels_last ? sums * plan.vector_elements() * kThreads * 4 : 0);
    tables = entries + ceil_div(count * (backward ? 12 : 24), 16) * 16;
    groups = tables + ceil_div(plan.slice_channels * (backward ? 36 : 12), 16) * 16;
    bytes = groups + 2 * plan.tile_groups * 24;
  }
};

// A block slice: `channels` from `channel` on and `positions` from `begin` on, of one segment. The tile's groups begin
// at `group`; `rank` counts the slices of the tile.
struct Slice {
  int64_t unit, sample, segment, begin, tile, channel, group;
  int channels, groups, positions, rank;
};

VDIFF_HOST_DEVICE Slice slice_of(const Plan& plan, int64_t index) {
  Slice r;
  r.rank = static_cast<int>(index % plan.slices);
  r.tile = index / plan.slices % plan.tiles, r.unit = index / plan.slices / plan.tiles;
  const int64_t row = r.rank / plan.cuts, first = r.tile * plan.tile_groups * plan.per_group;
  r.segment = r.unit * plan.segments_per_unit + row / plan.channel_cuts, r.sample = r.segment / plan.segments;
  r.begin = r.rank % plan.cuts * plan.slice_length;
  r.positions = static_cast<int>(min_of(plan.slice_length, plan.length - r.begin));
  r.group = r.tile * plan.tile_groups;
  r.groups = static_cast<int>(min_of(plan.tile_groups, plan.groups - r.group));
  const int64_t offset = row % plan.channel_cuts * plan.slice_channels;
  r.channel = first + offset;
  r.channels = static_cast<int>(min_of(plan.slice_channels, r.groups * plan.per_group - offset));
  return r;
}

// The `count` vectors that one thread reads in one round. They begin at channel `c` and position `position` of the
// slice and lie `step` positions apart. In contiguous memory a vector is positions of one channel, in channels-last it
// is channels of one position. `slot` is where the first one lies among the thread's vectors, `entry` the piece of a
// row that they belong to.
struct ThreadVectors {
  int c, position, step, count, slot, entry;
};

VDIFF_HOST_DEVICE int rounds_of(const Plan& plan) {
  return plan.channels_last ? 1
                            : static_cast<int>(ceil_div(plan.slice_channels * plan.row_pieces, kThreads / plan.lanes));
}

VDIFF_HOST_DEVICE ThreadVectors thread_vectors(const Plan& plan, const Slice& slice, int thread, int round) {
  ThreadVectors v;
  if (plan.channels_last) {
    const int row = thread / plan.columns, left = slice.positions - row;
    v.entry = v.slot = 0, v.c = (thread - row * plan.columns) * plan.vector_elements();
    v.position = row, v.step = plan.rows_at_once;
    v.count = row < plan.rows_at_once && v.c < slice.channels && left > 0
                  ? (left + plan.rows_at_once - 1) / plan.rows_at_once
                  : 0;
    return v;
  }
  const int piece = thread / plan.lanes, lane = thread - piece * plan.lanes;
  v.entry = round * (kThreads / plan.lanes) + piece, v.c = v.entry / plan.row_pieces;
  v.slot = round * plan.vectors_per_lane;
  v.step = plan.lanes * plan.vector_elements();
  v.position = (v.entry - v.c * plan.row_pieces) * plan.vectors_per_lane * v.step + lane * plan.vector_elements();
  const int left = slice.positions - v.position;
  v.count = v.c < slice.channels && left > 0
                ? static_cast<int>(min_of((left + v.step - 1) / v.step, plan.vectors_per_lane))
                : 0;
  return v;
}

// --- the choice of slices, on the host
// ---------------------------------------------------------------------------------

struct Device {
  int64_t multiprocessors, shared_bytes;  // shared memory that one block may ask for
  bool clusters, cooperative;             // cooperative: a grid can be sure that all its blocks run at once
};

inline bool two_fit(const Plan& plan, const Device& device, bool backward) {
  return kBlocksPerMultiprocessor * Layout(plan, backward).bytes + kReservedBytes <= device.shared_bytes;
}

// Groups of a tile. In contiguous memory one; in channels-last as many as make rows of whole 32-byte sectors, of at
// least 64 and at most 512 bytes.
inline int64_t choose_tile_groups(const Plan& plan) {
  if (!plan.channels_last || plan.per_group > kMaxChannels) return 1;
  const int64_t row = plan.per_group * plan.element, fit = min_of(plan.groups, max_of(512 / row, 1));
  for (int64_t k = 1; k <= fit; ++k) {
    if (k * row >= 64 && k * row % 32 == 0) return k;
  }
  for (int64_t k = fit; k > 1; --k) {
    if (k * row % kVectorBytes == 0) return k;
  }
  return fit;
}

// Whether no vector of a row belongs to two blocks, or to both of x and x2.
inline bool whole_vectors_of_channels(const Plan& plan) {
  const int64_t elements = plan.vector_elements();
  return plan.source_channels[0] % elements == 0 && plan.source_channels[1] % elements == 0 &&
         (plan.tiles == 1 || plan.tile_groups * plan.per_group % elements == 0) &&
         (plan.channel_cuts == 1 || plan.slice_channels % elements == 0);
}

// Cuts the length of a segment into `cuts` slices (or fewer, where they are rounded up to whole vectors).
inline void cut(Plan& plan, int64_t cuts) {
  const int64_t elements = plan.vector_elements(), vectors = ceil_div(ceil_div(plan.length, cuts), elements);
  plan.slice_length = plan.channels_last ? ceil_div(plan.length, cuts) : vectors * elements;
  plan.cuts = ceil_div(plan.length, plan.slice_length);
  plan.slices = plan.segments_per_unit * plan.channel_cuts * plan.cuts;
  plan.lanes = 1, plan.vectors_per_lane = 1, plan.row_pieces = 1, plan.columns = 1, plan.rows_at_once = 1;
  if (plan.channels_last) {
    plan.columns = static_cast<int>(ceil_div(plan.slice_channels, elements));
    plan.rows_at_once = kThreads / plan.columns;
    plan.vectors_per_thread = static_cast<int>(ceil_div(plan.slice_length, plan.rows_at_once));
    return;
  }
  while (plan.lanes < kWarp && plan.lanes < vectors) plan.lanes *= 2;
  plan.row_pieces = static_cast<int>(ceil_div(vectors, plan.lanes * kMaxVectorsPerLane));
  plan.vectors_per_lane = static_cast<int>(ceil_div(vectors, plan.lanes * plan.row_pieces));
  plan.vectors_per_thread = rounds_of(plan) * plan.vectors_per_lane;
}

// Exchange::split: slices of half to all of kSplitBytes, in the number that leaves the fewest threads idle.
inline void split(Plan& plan, const Device& device, bool backward) {
  for (int64_t bytes = kSplitBytes;; bytes /= 2) {
    const int64_t fewest = max_of(ceil_div(plan.length * plan.slice_channels * plan.element, bytes), 1);
    Plan best{};
    for (int64_t i = 0; i < 16; ++i) {
      Plan one = plan;
      cut(one, min_of(fewest + fewest * i / 16, plan.length));
      if (i == 0 || one.cuts * one.vectors_per_thread < best.cuts * best.vectors_per_thread) best = one;
    }
    if (Layout(best, backward).bytes > device.shared_bytes && bytes > kMinSliceBytes / 8) continue;
    plan = best, plan.exchange = Exchange::split;
    return;
  }
}

// Exchange::grid: as many tiles at once as make the work of one block least. An iteration costs the bytes of a slice,
// and kIterationBytes for reading the sums of the other slices; an exchange that no load hides costs twice that. False
// where the chip does not hold one group tile.
inline bool persist(Plan& plan, const Device& device, bool backward) {
  const int64_t held = kBlocksPerMultiprocessor * device.multiprocessors;
  const int64_t rows = plan.segments_per_unit * plan.channel_cuts;
  const int64_t position = plan.slice_channels * plan.element * (backward ? 2 : 1);
  const int64_t most_cuts = max_of(ceil_div(plan.length * position, kMinSliceBytes), 1);
  int64_t least_work = 0;
  Plan best{};
  for (int buffers = 1; buffers <= 2; ++buffers) {
    for (int64_t at_once = 1; at_once <= plan.all_tiles() && at_once * rows <= held; ++at_once) {
      const int64_t iterations = ceil_div(plan.all_tiles(), at_once);
      if (iterations < buffers) break;
      Plan one = plan;
      one.exchange = Exchange::grid, one.tiles_at_once = at_once, one.buffers = buffers;
      cut(one, min_of(held / (at_once * rows), most_cuts));
      if (!two_fit(one, device, backward)) break;
      const int64_t bare = buffers == 1 ? iterations : 1;
      const int64_t work = iterations * (one.slice_length * position + kIterationBytes) + bare * 2 * kIterationBytes;
      if (best.tiles_at_once == 0 || work <= least_work) best = one, least_work = work;
    }
  }
  if (best.tiles_at_once > 0) plan = best;
  return best.tiles_at_once > 0;
}

// Chooses by size; no threshold is measured yet. Bytes count x, in the backward x and dy. Channels-last leaves less
// room, as the sums of the threads lie in shared memory too.
//   a group tile that fits one block, with two blocks on a multiprocessor  one block
//   more, or fewer blocks than multiprocessors                             a cluster of 2 to 8, with two blocks on each
//   more than half a multiprocessor's shared memory times 8                a cluster of 8, or as few as hold it
//   more than all of it times 8 (H200: 1.8 MB), or no clusters             a grid, with two blocks on each
//   multiprocessor more than half of all shared memory (H200: 10 to 14 MB)                a grid that holds one tile at
//   a time more than all of it (H200: 20 to 28 MB), or no cooperative launch      Exchange::split, 32 KB per block
// `on_vectors`: all tensors begin at a multiple of 16 bytes.
inline void choose(Plan& plan, const Device& device, bool backward, bool on_vectors) {
  plan.tile_groups = choose_tile_groups(plan), plan.tiles = ceil_div(plan.groups, plan.tile_groups);
  const int64_t tile = plan.tile_groups * plan.per_group, limit = plan.channels_last ? kMaxChannels : kMaxRows;
  plan.channel_cuts = ceil_div(tile, limit);
  plan.slice_channels = ceil_div(ceil_div(tile, plan.channel_cuts), plan.vector_elements()) * plan.vector_elements();
  if (plan.slice_channels > tile) plan.slice_channels = tile;
  plan.channel_cuts = ceil_div(tile, plan.slice_channels);
  plan.aligned =
      on_vectors && (plan.channels_last ? whole_vectors_of_channels(plan) : plan.length % plan.vector_elements() == 0);
  plan.exchange = Exchange::cluster, plan.tiles_at_once = 0, plan.buffers = 1;
  const int64_t most_slices = device.clusters ? kMaxClusterBlocks : 1;
  Plan best{};
  for (int64_t cuts = 1; plan.segments_per_unit * plan.channel_cuts * cuts <= most_slices; ++cuts) {
    Plan one = plan;
    cut(one, cuts);
    if (one.cuts != cuts || Layout(one, backward).bytes > device.shared_bytes) continue;
    const bool fills = one.blocks() >= device.multiprocessors, few = one.data_bytes(backward) <= kMinSliceBytes;
    if (!device.clusters && !fills && !few) break;
    best = one;
    if (few || (fills && two_fit(one, device, backward))) break;
  }
  if (best.slices > 0) {
    plan = best;
    return;
  }
  if (device.cooperative && persist(plan, device, backward)) return;
  split(plan, device, backward);
}

}  // namespace vdiff::group_norm
