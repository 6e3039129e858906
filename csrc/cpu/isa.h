// Which instruction set the CPU kernels use, decided once at run time.
#pragma once

namespace vdiff {

enum class Isa : int { scalar = 0, avx2 = 1, avx512 = 2, avx512bf16 = 3 };

// The best set this CPU has and the build contains, unless VDIFF_FAST_ISA or set_isa() names a lesser one.
Isa active_isa();

}  // namespace vdiff

// Declares one kernel in the namespace of every instruction set; cpu_kernel.cpp defines it in `namespace VDIFF_ISA`.
#if VDIFF_HAS_X86_KERNELS
#define VDIFF_DECLARE_KERNEL(name, params) \
  namespace vdiff::scalar {                \
  void name params;                        \
  }                                        \
  namespace vdiff::avx2 {                  \
  void name params;                        \
  }                                        \
  namespace vdiff::avx512 {                \
  void name params;                        \
  }                                        \
  namespace vdiff::avx512bf16 {            \
  void name params;                        \
  }
#define VDIFF_KERNEL(name)                                                        \
  (::vdiff::active_isa() == ::vdiff::Isa::avx512bf16 ? &::vdiff::avx512bf16::name \
   : ::vdiff::active_isa() == ::vdiff::Isa::avx512   ? &::vdiff::avx512::name     \
   : ::vdiff::active_isa() == ::vdiff::Isa::avx2     ? &::vdiff::avx2::name       \
                                                     : &::vdiff::scalar::name)
#else
#define VDIFF_DECLARE_KERNEL(name, params) \
  namespace vdiff::scalar {                \
  void name params;                        \
  }
#define VDIFF_KERNEL(name) (&::vdiff::scalar::name)
#endif
