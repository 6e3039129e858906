"""`python -m gpu_emulator` builds the emulator's libraries and prints where they lie."""

from gpu_emulator import build

print(build.libraries())
