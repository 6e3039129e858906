"""Compiled GPU kernels, executed on the CPU: PTX of CUDA C++ and of Triton, with memory and race checks and counters.

    from gpu_emulator import compile_cuda          # the kernels of a .cu file on numpy arrays or CPU tensors
    from gpu_emulator import triton                # Triton's launches on CPU tensors: `with triton.active():`
    from gpu_emulator import cuda                  # a library's own host code and kernels: `with cuda.active("h200"):`

README.md says what it proves and what it cannot show.
"""

from gpu_emulator.build import BuildError
from gpu_emulator.ptx import EmulatorError, Module, Options, Report, compile_cuda

__all__ = ["BuildError", "EmulatorError", "Module", "Options", "Report", "compile_cuda"]
