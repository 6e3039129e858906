// The instruction set of the CPU kernels, chosen once at run time. CMakeLists.txt has the list of the sets.
#pragma once

#if defined(VDIFF_ISA)

// Compiled for one set: the kernel is declared in its namespace, and nothing here depends on which sets are built.
#define VDIFF_DECLARE_KERNEL(name, params) \
  namespace vdiff::VDIFF_ISA {             \
  void name params;                        \
  }

#else

#include "cpu/isa_list.h"

namespace vdiff {

// The sets that were built, the least capable first.
#define VDIFF_ISA_NAME(isa, ...) isa,
enum class Isa : int { VDIFF_FOR_EACH_ISA(VDIFF_ISA_NAME) };
#undef VDIFF_ISA_NAME

// The best of them that this CPU has, unless VDIFF_FAST_ISA or vdiff_fast_set_isa() names a lesser one.
Isa active_isa();

}  // namespace vdiff

// Declares one kernel in the namespace of every set that was built; cpu_kernel.cpp defines it in `namespace VDIFF_ISA`.
#define VDIFF_DECLARE_IN(isa, name, params) \
  namespace vdiff::isa {                    \
  void name params;                         \
  }
#define VDIFF_DECLARE_KERNEL(name, params) VDIFF_FOR_EACH_ISA(VDIFF_DECLARE_IN, name, params)

// A pointer to the kernel of the active set.
#define VDIFF_ADDRESS_IN(isa, name) &::vdiff::isa::name,
#define VDIFF_KERNEL(name)                                                                               \
  ([] {                                                                                                  \
    constexpr decltype(&::vdiff::scalar::name) kernels[] = {VDIFF_FOR_EACH_ISA(VDIFF_ADDRESS_IN, name)}; \
    return kernels[static_cast<int>(::vdiff::active_isa())];                                             \
  }())

#endif
