"""The tests mirror the package."""

import os

# Before torch: where workers share the cores, threads that spin while they wait take most of the processor's time.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
