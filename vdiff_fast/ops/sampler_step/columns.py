"""Columns of a sampler's coefficient table (steps, COLUMNS), float32: every sampler is one linear update.

y = uncond + GUIDANCE (prediction - uncond); x0 = X0_X x + X0_Y y, clipped;
x_prev = X x + X0 x0 + Y y + PREVIOUS previous + NOISE z. The same order in csrc/ops/sampler_step/columns.h.
"""

X0_X, X0_Y, X, X0, Y, PREVIOUS, NOISE, GUIDANCE = range(8)
COLUMNS = 8
NO_CLIP, FIXED, DYNAMIC = range(3)
