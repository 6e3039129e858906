"""A denoiser of diffusers called as this library's networks are."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from vdiff_fast._files import whole_folder
from vdiff_fast.patch import patch
from vdiff_fast.pretrained.conventions import PretrainedError, find_model
from vdiff_fast.pretrained.families import FAMILIES, Family, Inputs
from vdiff_fast.pretrained.lora import LoraOptions, add_lora, save_lora

# Times of a flow in [0, 1] as its transformers are told them.
_FLOW_STEPS = 1000.0
# What LTX's pipeline takes for clips of no given rate.
_FPS = 25.0


class Pretrained(nn.Module):
    """prediction = network(x_t, t | context), called as the network's own pipeline calls it.

    Args:
        network: a module of one of `FAMILIES`.
        compression: of the codec, frames, rows and columns of pixels for one latent; LTX is told it.
        fps: of the clips; LTX is told it, too.
        lora: train an adapter instead of the whole network.
        patched: let it run on this library's kernels, see `vdiff_fast.patch`.

    Shape:
        x: (B, c, t, h, w), normalised latents.
        t: (B,) int64 steps; of a flow, float times in [0, 1].
        context, context_mask: (B, L, D) and (B, L) bool.
        returns (B, c, t, h, w): the network's own prediction target.

    Raises:
        PretrainedError: another class; LoRA targets that are not there.
    """

    def __init__(
        self, network: Any, *, compression: tuple[int, int, int] = (1, 8, 8), fps: float | None = None,
        lora: LoraOptions | None = None, patched: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        family = next((FAMILIES[c.__name__] for c in type(network).__mro__ if c.__name__ in FAMILIES), None)
        if family is None:
            raise PretrainedError(f"{type(network).__name__} is none of {', '.join(FAMILIES)}")
        self.family: Family = family
        self.network, self.compression, self.fps = network, compression, fps or _FPS
        self.has_adapter = lora is not None
        if lora is not None:
            add_lora(network, family, lora)
        if patched:
            patch(network)

    @property
    def config(self) -> Any:
        """What training and sampling ask of any network."""
        width = self.network.config.get(self.family.context_dim)
        return SimpleNamespace(in_channels=self.network.config.in_channels, context_dim=width, cond_channels=0)

    def forward(
        self, x: Tensor, t: Tensor, *, context: Tensor | None = None, context_mask: Tensor | None = None
    ) -> Tensor:
        if context is None:
            raise PretrainedError(f"{self.family.name} needs a context; give the empty prompt's embeddings for none")
        if context_mask is None:
            context_mask = torch.ones(context.shape[:2], dtype=torch.bool, device=context.device)
        dtype = next(self.network.parameters()).dtype
        if self.family.flow:
            t = t.float() * _FLOW_STEPS
        inputs = Inputs(x.to(dtype), t, context.to(dtype), context_mask, self.compression, self.fps)
        return self.family.call(self.network, inputs).to(x.dtype)

    def export(self, folder: Path) -> None:
        """Write the adapter, or the whole network, for diffusers; the folder is whole or as it was."""
        with whole_folder(folder) as writing:
            if self.has_adapter:
                save_lora(self.network, self.family, writing)
            else:
                self.network.save_pretrained(writing)


def load_pretrained(
    folder: str | os.PathLike[str], *, compression: tuple[int, int, int] = (1, 8, 8), fps: float | None = None,
    lora: LoraOptions | None = None, patched: bool = True, gradient_checkpointing: bool = False,
) -> Pretrained:  # fmt: skip
    """The denoiser of a local folder, of a model or of a whole pipeline. Nothing is downloaded.

    Args:
        folder: see above.
        gradient_checkpointing: recompute blocks in the backward, as diffusers does it.
        compression, fps, lora, patched: see `Pretrained`.

    Raises:
        PretrainedError: no known denoiser, weights that do not fit, or those of `Pretrained`.
        ImportError: diffusers is not installed.
    """
    try:
        import diffusers
    except ImportError as error:
        raise ImportError("models diffusers:FOLDER need diffusers: pip install diffusers") from error
    path, family = find_model(folder)
    try:
        network = getattr(diffusers, family.name).from_pretrained(path, local_files_only=True)
    except (OSError, RuntimeError, ValueError, TypeError) as error:
        raise PretrainedError(f"{path}: the {family.name} cannot be loaded: {' '.join(str(error).split())}") from error
    if gradient_checkpointing:
        network.enable_gradient_checkpointing()
    return Pretrained(network, compression=compression, fps=fps, lora=lora, patched=patched)
