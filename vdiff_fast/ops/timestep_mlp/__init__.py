from vdiff_fast.ops.timestep_mlp.api import timestep_mlp

__all__ = ["timestep_mlp"]
