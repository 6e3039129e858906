// Build information outside the operator path. The library works without this module.
#include <pybind11/pybind11.h>

#include "cpu/isa_list.h"

namespace py = pybind11;

namespace {

py::dict cpu_features() {
  py::dict features;
#if defined(__x86_64__)
  __builtin_cpu_init();
#define VDIFF_FEATURE(name) features[name] = static_cast<bool>(__builtin_cpu_supports(name))
  VDIFF_FEATURE("avx2");
  VDIFF_FEATURE("fma");
  VDIFF_FEATURE("avx512f");
  VDIFF_FEATURE("avx512bw");
  VDIFF_FEATURE("avx512vl");
  VDIFF_FEATURE("avx512dq");
  VDIFF_FEATURE("avx512bf16");
#undef VDIFF_FEATURE
#endif
  return features;
}

py::dict build_info() {
  py::dict info;
  info["compiler"] = __VERSION__;
  info["cplusplus"] = __cplusplus;
#define VDIFF_ISA_TEXT(isa, ...) isas.append(#isa);
  py::list isas;
  VDIFF_FOR_EACH_ISA(VDIFF_ISA_TEXT)
#undef VDIFF_ISA_TEXT
  info["isas"] = py::tuple(isas);
  return info;
}

}  // namespace

PYBIND11_MODULE(_native, m) {
  m.doc() = "Build information and CPU features of vdiff_fast's native libraries.";
  m.def("cpu_features", &cpu_features, "Instruction sets this CPU has.");
  m.def("build_info", &build_info, "Compiler and instruction sets of this build.");
}
