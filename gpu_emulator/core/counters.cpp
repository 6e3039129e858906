#include "counters.h"

#include <algorithm>
#include <bit>
#include <memory>

#include "memory.h"
#include "ptxsim.h"

namespace ptxsim {

namespace {

constexpr uint64_t kSectorBytes = 32;
constexpr uint32_t kBanks = 32, kBankBytes = 4;

// How often a bank has to be asked for the lanes of one phase: the most different words of one bank.
uint32_t wavefronts_of(const Request& r, uint32_t lanes) {
  uint64_t words[kLanes * 2];
  int n = 0;
  for (uint32_t m = lanes; m != 0; m &= m - 1) {
    const int l = std::countr_zero(m);
    for (uint64_t w = r.address[l] / kBankBytes; w <= (r.address[l] + r.bytes - 1) / kBankBytes; ++w) words[n++] = w;
  }
  std::sort(words, words + n);
  uint32_t different[kBanks] = {}, most = 0;
  for (int i = 0; i < n; ++i) {
    if (i == 0 || words[i] != words[i - 1]) most = std::max(most, ++different[words[i] % kBanks]);
  }
  return most;
}

}  // namespace

L2::Entry& L2::find(uint64_t sector) {
  if (used_ * 2 >= table_.size()) grow();
  const size_t mask = table_.size() - 1;
  size_t i = (sector * 0x9e3779b97f4a7c15u) >> 20 & mask;
  while (table_[i].sector != 0 && table_[i].sector != sector + 1) i = (i + 1) & mask;
  if (table_[i].sector == 0) table_[i].sector = sector + 1, ++used_;
  return table_[i];
}

void L2::grow() {
  std::vector<Entry> old(std::max<size_t>(table_.size() * 2, 1 << 12));
  old.swap(table_);
  const size_t mask = table_.size() - 1;
  for (const Entry& e : old) {
    if (e.sector == 0) continue;
    size_t i = ((e.sector - 1) * 0x9e3779b97f4a7c15u) >> 20 & mask;
    while (table_[i].sector != 0) i = (i + 1) & mask;
    table_[i] = e;
  }
}

void L2::unlink(uint32_t line) {
  lines_[lines_[line].newer].older = lines_[line].older;
  lines_[lines_[line].older].newer = lines_[line].newer;
}

void L2::link(uint32_t line) {
  const uint32_t newest = lines_[0].older;
  lines_[line].older = newest, lines_[line].newer = 0;
  lines_[newest].newer = line, lines_[0].older = line;
}

// A line for a sector that is not in the cache: a new one, or the least recently used one's. Spoils the reference.
uint32_t L2::place(Entry& e) {
  if (lines_.empty()) lines_.emplace_back();
  const bool full = lines_.size() > kSectors;
  const uint32_t line = full ? lines_[0].newer : static_cast<uint32_t>(lines_.size());
  const uint64_t sector = e.sector - 1;
  e.line = line;
  if (full) {
    unlink(line);
    find(lines_[line].sector).line = 0;
  } else {
    lines_.emplace_back();
  }
  lines_[line].sector = sector, lines_[line].dirty = false;
  link(line);
  return line;
}

void L2::load(uint64_t sector) {
  Entry& e = find(sector);
  if (e.loaded != launch_ && e.stored != launch_) ++unique_loaded;
  e.loaded = launch_;
  if (e.line != 0) {
    unlink(e.line), link(e.line);
  } else {
    ++loaded;
    place(e);
  }
}

void L2::store(uint64_t sector) {
  Entry& e = find(sector);
  unique_stored += e.stored != launch_;
  e.stored = launch_;
  uint32_t line = e.line;
  if (line != 0) {
    unlink(line), link(line);
  } else {
    line = place(e);
  }
  stored += !lines_[line].dirty;
  lines_[line].dirty = true;
}

// What an earlier launch left dirty has been counted; a rewrite of it counts again, for it may have left meanwhile.
void L2::begin() {
  loaded = stored = unique_loaded = unique_stored = 0;
  ++launch_;
  for (Line& line : lines_) line.dirty = false;
}

namespace {
std::unique_ptr<L2> kept;
}

L2* kept_l2() { return kept.get(); }
void keep_l2(bool keep) { kept = keep ? std::make_unique<L2>() : nullptr; }

Counters::Counters() : l2_(kept_l2() ? *kept_l2() : own_) { l2_.begin(); }

void Counters::global(const Request& r) {
  const int lanes = std::popcount(r.mask);
  if (lanes == 0) return;
  uint64_t sectors[kLanes * 5];
  int n = 0;
  for (uint32_t m = r.mask; m != 0; m &= m - 1) {
    const int l = std::countr_zero(m);
    const auto begin = reinterpret_cast<uint64_t>(r.host[l]) / kSectorBytes;
    const auto end = (reinterpret_cast<uint64_t>(r.host[l]) + r.bytes - 1) / kSectorBytes;
    for (uint64_t s = begin; s <= end; ++s) {
      if (n == 0 || sectors[n - 1] != s) sectors[n++] = s;
    }
  }
  std::sort(sectors, sectors + n);
  n = static_cast<int>(std::unique(sectors, sectors + n) - sectors);
  const auto asked = static_cast<uint64_t>(lanes) * r.bytes;
  if (r.access == Access::load) {
    ++global_load_requests, global_load_sectors += static_cast<uint64_t>(n), global_load_bytes += asked;
    for (int i = 0; i < n; ++i) l2_.load(sectors[i]);
  } else {
    ++global_store_requests, global_store_sectors += static_cast<uint64_t>(n), global_store_bytes += asked;
    for (int i = 0; i < n; ++i) {
      if (r.access == Access::atomic) l2_.load(sectors[i]);
      l2_.store(sectors[i]);
    }
  }
}

// Accesses of 8 bytes a lane go by half warps, of 16 by quarter warps; each such phase counts as one request.
void Counters::shared(const Request& r) {
  const int lanes = r.bytes > 8 ? 8 : r.bytes > 4 ? 16 : 32;
  for (int first = 0; first < kLanes; first += lanes) {
    const uint32_t phase = r.mask & (lanes == 32 ? kAll : ((1u << lanes) - 1) << first);
    if (phase == 0) continue;
    ++shared_requests;
    shared_wavefronts += wavefronts_of(r, phase);
  }
}

void Counters::report(ptxsim_report& out) {
  out.global_load_requests = global_load_requests, out.global_load_sectors = global_load_sectors;
  out.global_store_requests = global_store_requests, out.global_store_sectors = global_store_sectors;
  out.global_load_bytes_asked = global_load_bytes, out.global_store_bytes_asked = global_store_bytes;
  out.unique_load_bytes = l2_.unique_loaded * kSectorBytes, out.unique_store_bytes = l2_.unique_stored * kSectorBytes;
  out.dram_load_bytes = l2_.loaded * kSectorBytes, out.dram_store_bytes = l2_.stored * kSectorBytes;
  out.shared_requests = shared_requests, out.shared_wavefronts = shared_wavefronts;
  out.local_bytes = local_bytes, out.atomics = atomics, out.async_copies = async_copies;
  out.tensor_ops = tensor_ops, out.divergent_branches = divergent_branches;
}

}  // namespace ptxsim
