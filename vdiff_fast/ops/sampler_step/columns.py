"""Columns of a sampler's coefficient table (steps, COLUMNS), float32: every sampler is one linear update.

y = uncond + GUIDANCE (prediction - uncond); x0 = X0_X x + X0_Y y, clipped;
x_prev = X x + X0 x0 + Y y + PREVIOUS previous + PREVIOUS2 previous2 + NOISE z.
The same order in csrc/ops/sampler_step/columns.h.
"""

X0_X, X0_Y, X, X0, Y, PREVIOUS, NOISE, GUIDANCE, PREVIOUS2 = range(9)
COLUMNS = 9
NO_CLIP, FIXED, DYNAMIC = range(3)
