from vdiff_fast.ops.diffusion_loss.api import diffusion_loss

__all__ = ["diffusion_loss"]
