#include "cpu/isa.h"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <iterator>

namespace vdiff {
namespace {

#define VDIFF_ISA_TEXT(isa, ...) #isa,
constexpr const char* kNames[] = {VDIFF_FOR_EACH_ISA(VDIFF_ISA_TEXT)};
constexpr const char* kKnownNames[] = {VDIFF_FOR_EACH_KNOWN_ISA(VDIFF_ISA_TEXT)};
#undef VDIFF_ISA_TEXT

// Whether this CPU has every feature that the flags of a set in CMakeLists.txt allow.
bool runs_here(const char* name) {
  if (std::strcmp(name, "scalar") == 0) return true;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  if (std::strcmp(name, "avx2") == 0) return avx2;
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (std::strcmp(name, "avx512") == 0) return avx512;
  if (std::strcmp(name, "avx512bf16") == 0) return avx512 && __builtin_cpu_supports("avx512bf16");
#endif
  return false;
}

Isa best_isa() {
  int best = 0;
  for (int i = 0; i < static_cast<int>(std::size(kNames)); ++i) best = runs_here(kNames[i]) ? i : best;
  return static_cast<Isa>(best);
}

int parse(const char* name) {
  for (int i = 0; i < static_cast<int>(std::size(kNames)); ++i) {
    if (std::strcmp(name, kNames[i]) == 0) return i;
  }
  return -1;
}

Isa initial_isa() {
  const Isa best = best_isa();
  const char* wanted = std::getenv("VDIFF_FAST_ISA");
  const int index = wanted ? parse(wanted) : -1;
  return index >= 0 && runs_here(wanted) ? static_cast<Isa>(index) : best;
}

std::atomic<int>& current() {
  static std::atomic<int> value{static_cast<int>(initial_isa())};
  return value;
}

}  // namespace

Isa active_isa() { return static_cast<Isa>(current().load(std::memory_order_relaxed)); }

}  // namespace vdiff

// Plain C symbols for ctypes: doctor and the tests use them, the operator path does not.
extern "C" {
__attribute__((visibility("default"))) const char* vdiff_fast_isa() {
  return vdiff::kNames[static_cast<int>(vdiff::active_isa())];
}

// The names of all sets of this build, the least capable first; null past the last.
__attribute__((visibility("default"))) const char* vdiff_fast_isa_name(int index) {
  return index >= 0 && index < static_cast<int>(std::size(vdiff::kNames)) ? vdiff::kNames[index] : nullptr;
}

// The best set that this CPU runs, whether it was built or not.
__attribute__((visibility("default"))) const char* vdiff_fast_cpu_isa() {
  const char* best = vdiff::kKnownNames[0];
  for (const char* name : vdiff::kKnownNames) best = vdiff::runs_here(name) ? name : best;
  return best;
}

// 0 on success, -1 where the name is unknown or this CPU lacks it.
__attribute__((visibility("default"))) int vdiff_fast_set_isa(const char* name) {
  const int index = vdiff::parse(name);
  if (index < 0 || !vdiff::runs_here(name)) return -1;
  vdiff::current().store(index);
  return 0;
}
}
