"""Training on a cache of latents: what a batch is made of, and what the network must fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vdiff_fast import layout, ops
from vdiff_fast.latents import CacheError, LatentDataset, LatentInfo
from vdiff_fast.latents.dataset import padded
from vdiff_fast.training import draws

# Stream of the counter-based noise, after those of `masks`.
_POSTERIOR = -5
_EXAMPLES = 16


@dataclass(frozen=True)
class LatentSource:
    """Latents and text of a batch: u = (mean + exp(logvar / 2) n - shift) * scale, n drawn anew for every sample.

    Attributes:
        info: of the cache.
        null: embeddings (1, L, D) and mask (1, L) of the empty prompt, which takes a dropped caption's place.
        examples: embeddings and masks of some captions, for samples while training.
    """

    info: LatentInfo
    null: tuple[Tensor, Tensor]
    examples: tuple[Tensor, Tensor]

    @classmethod
    def of(cls, dataset: Any) -> LatentSource | None:
        """Of a data set that is a cache of latents; None of any other."""
        if not isinstance(dataset, LatentDataset):
            return None
        places = torch.linspace(0, len(dataset) - 1, min(_EXAMPLES, len(dataset)), device="cpu").long().tolist()
        batch = [dataset[place]["context"] for place in places]
        return cls(dataset.info, dataset.null_context(), padded(batch, dataset.info.text_length))

    def clips(self, raw: dict[str, Any], seed: Tensor, sample_offset: int) -> Tensor:
        """u (B, c, t, h, w), float32, channels-last, on the seed's device."""
        device = seed.device
        mean, logvar = (raw[name].to(device, torch.float32, non_blocking=True) for name in ("mean", "logvar"))
        n = ops.noise(mean.shape, seed, sample_offset=sample_offset, stream=_POSTERIOR, device=device)
        return layout.canonical(self.info.normalise(mean + (0.5 * logvar).exp() * n))

    def context(
        self, raw: dict[str, Any], dropout: float, seed: int, sample_offset: int, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Embeddings (B, L, D) and mask (B, L); a share of `dropout` has the empty prompt's."""
        context, mask = raw["context"], raw["context_mask"]
        dropped = draws.dropped_labels(len(context), dropout, seed, sample_offset)
        context = torch.where(dropped[:, None, None], self.null[0], context)
        mask = torch.where(dropped[:, None], self.null[1], mask)
        return context.to(device, torch.float32), mask.to(device)


def flow_shift_of(shift: float, positions_of: int | None, positions: int) -> float:
    """shift * sqrt(positions / positions_of): the shift of clips of so many latents, `shift` for `positions_of`.

    A clip of more latents keeps more of its signal under the same noise, so it needs more of the steps at high noise.

    Source: Esser et al. 2024, "Scaling rectified flow transformers", eq. 23.
    """
    return shift if positions_of is None else shift * (positions / positions_of) ** 0.5


def prepare_model(model: nn.Module, info: LatentInfo) -> None:
    """Check that a network fits latents and text, and freeze what they leave unused.

    Raises:
        CacheError: another number of channels, or another width of the context.
    """
    config = getattr(model, "config", None)
    for name, wanted, what in (
        ("in_channels", info.latent_channels, "latent channels"),
        ("context_dim", info.context_dim, "channels of the text's embeddings"),
    ):
        found = getattr(config, name, None)
        if isinstance(found, int) and found != wanted:
            raise CacheError(
                f"the model has {name} {found}, the cache has {wanted} {what}; leave model.changes.{name} out, or "
                f"use a cache of {found}"
            )
    # Every sample has embeddings, the empty prompt's too: the learned null token is never read.
    null = getattr(model, "null_context", None)
    if isinstance(null, nn.Parameter):
        null.requires_grad_(False)


def check_same_cache(saved: LatentInfo, now: LatentInfo) -> None:
    """Raise CacheError where a resumed run would go on with latents or embeddings of other encoders."""
    for what, before, after in (
        ("codec", saved.codec_fingerprint, now.codec_fingerprint),
        ("text encoder", saved.text_fingerprint, now.text_fingerprint),
    ):
        if before != after:
            raise CacheError(
                f"the run was trained on a cache of another {what} (fingerprint {before}, this one's is {after}); "
                "restore that cache, or start a new run"
            )
