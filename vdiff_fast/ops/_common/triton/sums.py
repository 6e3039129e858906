"""What a sum over lanes is made of."""

import triton
import triton.language as tl


@triton.jit
def rounded_product(a, b):
    """a * b for a sum over lanes: rounded by itself.

    The compiler fuses a product into the addition of the lane opposite, fma(a, b, shuffle(a * b)): then the two lanes,
    which should agree, round in two ways, and which of them writes the sum is up to the hardware. The addition of zero
    is in the same instruction as the product.
    """
    return tl.fma(a, b, 0.0)
