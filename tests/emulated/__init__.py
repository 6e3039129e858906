"""The contract of the ops with compiled kernels: their PTX runs in gpu_emulator, on CPU tensors.

python -m tests.emulated cuda            every op, dtype and device, all samples (`make emulate`)
python -m tests.emulated triton          the same through Triton's compiler
python -m tests.emulated --help
"""
