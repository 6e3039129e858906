#include "cpu/isa.h"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <iterator>

namespace vdiff {
namespace {

#define VDIFF_ISA_TEXT(isa, ...) #isa,
constexpr const char* kNames[] = {VDIFF_FOR_EACH_ISA(VDIFF_ISA_TEXT)};
#undef VDIFF_ISA_TEXT

Isa best_isa() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma")) {
    return __builtin_cpu_supports("avx512bf16") ? Isa::avx512bf16 : Isa::avx512;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Isa::avx2;
#endif
  return Isa::scalar;
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
  return index >= 0 && index <= static_cast<int>(best) ? static_cast<Isa>(index) : best;
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

// 0 on success, -1 where the name is unknown or this CPU lacks it.
__attribute__((visibility("default"))) int vdiff_fast_set_isa(const char* name) {
  const int index = vdiff::parse(name);
  if (index < 0 || index > static_cast<int>(vdiff::best_isa())) return -1;
  vdiff::current().store(index);
  return 0;
}
}
