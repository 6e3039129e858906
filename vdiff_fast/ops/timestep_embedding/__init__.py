from vdiff_fast.ops.timestep_embedding.api import timestep_embedding

__all__ = ["timestep_embedding"]
