"""What several op rooms share: argument checks, random draws, schedules, launch parameters.

`triton/` holds device functions and kernels of more than one room, `cases/` the benchmark layers and compile-only cases
that their specs have in common. A room imports its own files, this folder, and of another room only its reference or
its public function.
"""
