"""Weights of published diffusion transformers as VideoDiT: DiT and Latte by their own names, and diffusers' models.

>>> model = vf.models.from_dit(torch.load("DiT-XL-2-256x256.pt"))
>>> model = vf.models.from_diffusers(diffusers.LatteTransformer3DModel.from_pretrained(...))

Each `*_weights` function maps tensors by name and computes nothing, so it maps gradients as well as weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vdiff_fast.models.dit_config import VideoDiTConfig
from vdiff_fast.models.video_dit import VideoDiT
from vdiff_fast.models.weights import plain_module, plain_weights, weights_dtype
from vdiff_fast.nn.patch_embedding import sincos_grid, sincos_positions

Weights = Mapping[str, Tensor]

# Heads of the published widths, which the weights do not tell.
HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16}


def _patch_weight(kernel: Tensor) -> Tensor:
    """A convolution's kernel (D, C, ph, pw) as the matrix of PatchEmbed (D, ph pw C)."""
    return kernel.permute(0, 2, 3, 1).flatten(1)


def _copy(target: dict[str, Tensor], name: str, source: Weights, old: str) -> None:
    for kind in ("weight", "bias"):
        if f"{old}.{kind}" in source:
            target[f"{name}.{kind}"] = source[f"{old}.{kind}"]


def _joined(target: dict[str, Tensor], name: str, source: Weights, parts: list[str]) -> None:
    """Projections one under the other; absent biases (projections without) are zero."""
    target[f"{name}.weight"] = torch.cat([source[f"{part}.weight"] for part in parts])
    biases = [source.get(f"{part}.bias") for part in parts]
    zeros = (source[f"{part}.weight"].new_zeros(len(source[f"{part}.weight"])) for part in parts)
    target[f"{name}.bias"] = torch.cat([zero if bias is None else bias for bias, zero in zip(biases, zeros)])


def _depth(weights: Weights, prefix: str) -> int:
    return 1 + max((int(name.split(".")[1]) for name in weights if name.startswith(f"{prefix}.")), default=-1)


def _build(config: VideoDiTConfig, make: Callable[[], dict[str, Tensor]]) -> VideoDiT:
    """The model with the weights that `make` maps and in their dtype; what only a VideoDiT has keeps its initial value.

    Raises:
        ValueError: a weight is missing, as in one file of several.
    """
    try:
        weights = make()
    except KeyError as error:
        raise ValueError(
            f"{error.args[0]} is missing: give the weights of the whole model, all files of them"
        ) from None
    model = VideoDiT(config).to(weights_dtype(weights))
    own = ("null_context", *(("attns.1.",) if config.attention == "divided" else ()))
    missing = [n for n, _ in model.named_parameters() if n not in weights and not any(part in n for part in own)]
    if missing:
        raise ValueError(
            f"nothing was given for {', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}: give the weights of "
            "the whole model, all files of them"
        )
    model.load_state_dict(model.state_dict() | weights)
    return model


# DiT and Latte, names of facebookresearch/DiT and Vchitect/Latte


def dit_weights(source: Weights, *, divided: bool = False) -> dict[str, Tensor]:
    """Tensors of DiT or Latte under the names of VideoDiT.

    Args:
        source: its state_dict, or gradients by the same names.
        divided: leave room in the modulation for attention over time, closed by zero gates.
    """
    depth, target = _depth(source, "blocks"), dict[str, Tensor]()
    target["patch_embed.proj.weight"] = _patch_weight(source["x_embedder.proj.weight"])
    target["patch_embed.proj.bias"] = source["x_embedder.proj.bias"]
    for number, layer in ((1, 0), (2, 2)):
        _copy(target, f"conditioning.0.time.linear_{number}", source, f"t_embedder.mlp.{layer}")
    if "y_embedder.embedding_table.weight" in source:
        target["conditioning.0.label.weight"] = source["y_embedder.embedding_table.weight"]
    for i in range(depth):
        for name, old in (
            ("attns.0.qkv", "attn.qkv"),
            ("attns.0.proj", "attn.proj"),
            ("mlp.fc1",) * 2,
            ("mlp.fc2",) * 2,
        ):
            _copy(target, f"blocks.{i}.{name}", source, f"blocks.{i}.{old}")
    for kind in ("weight", "bias"):
        parts = []
        for i in range(depth):
            attention, mlp = source[f"blocks.{i}.adaLN_modulation.1.{kind}"].chunk(2)
            parts += [attention, torch.zeros_like(attention), mlp] if divided else [attention, mlp]
        target[f"modulation.{kind}"] = torch.cat([*parts, source[f"final_layer.adaLN_modulation.1.{kind}"]])
    _copy(target, "final_layer.linear", source, "final_layer.linear")
    return target


def _dit_config(source: Weights, heads: int | None, attention: str) -> VideoDiTConfig:
    kernel, output = source["x_embedder.proj.weight"], source["final_layer.linear.weight"]
    width, channels, ph, pw = kernel.shape
    if heads is None and width not in HEADS:
        raise ValueError(f"width {width} is not one of DiT's ({', '.join(map(str, HEADS))}); give the number of heads")
    labels = source.get("y_embedder.embedding_table.weight")
    changes: dict[str, Any] = {"attention": attention}
    return VideoDiTConfig(
        in_channels=channels,
        out_channels=len(output) // (ph * pw),
        patch=(1, ph, pw),
        width=width,
        depth=_depth(source, "blocks"),
        heads=HEADS[width] if heads is None else heads,
        mlp_ratio=len(source["blocks.0.mlp.fc1.weight"]) / width,
        positions="sincos",
        num_classes=0 if labels is None else len(labels) - 1,
        **changes,
    )


def _check_positions(source: Weights) -> None:
    """The stored position tables are the ones that VideoDiT computes.

    Raises:
        ValueError: they were trained, or are of another kind.
    """
    width = len(source["x_embedder.proj.weight"])
    expected = {}
    if "pos_embed" in source:
        side = int(source["pos_embed"].shape[1] ** 0.5)
        expected["pos_embed"] = sincos_grid(side, side, width)
    if "temp_embed" in source:
        expected["temp_embed"] = sincos_positions(torch.arange(source["temp_embed"].shape[1]), width)
    for name, table in expected.items():
        stored = source[name][0].cpu()
        # The table may have been rounded to the weights' dtype since it was made.
        rounding = torch.finfo(stored.dtype).eps if stored.is_floating_point() else 0.0
        if stored.shape != table.shape or not torch.allclose(stored.float(), table, atol=1e-3, rtol=rounding):
            raise ValueError(
                f"{name} is not the sin-cos table of DiT, which is the only one VideoDiT computes: a table that was "
                "trained, or of another kind, has no place in it"
            )


def _check_names(source: Weights, known: tuple[str, ...]) -> None:
    needed = ("x_embedder.proj.weight", "final_layer.linear.weight", "blocks.0.mlp.fc1.weight")
    missing = [name for name in needed if name not in source]
    if missing:
        shown = ", ".join(list(source)[:3])
        raise ValueError(f"no weights of DiT, or not all files of them: {', '.join(missing)} missing beside {shown}")
    unknown = sorted(name for name in source if not name.startswith(known))
    if unknown:
        raise ValueError(f"VideoDiT has no place for {', '.join(unknown[:3])}; expected {', '.join(known)}")


def from_dit(
    source: Mapping[str, Any] | nn.Module, *, heads: int | None = None, attention: Literal["joint", "divided"] = "joint"
) -> VideoDiT:
    """A VideoDiT with the weights of facebookresearch/DiT; on one frame it computes what DiT does.

    A model that also predicts a variance keeps it: its prediction has twice the channels of x, see
    `vf.diffusion.split_prediction`.

    Args:
        source: its state_dict, a checkpoint that holds one ({"ema": ...}), or the module; float32, bfloat16 or float16,
            which the model then has, and names of any wrapper ("module.", "_orig_mod."), see `plain_weights`.
        heads: attention heads; None takes those of DiT's own widths.
        attention: over all tokens of a clip ("joint"), or over space with DiT's weights and then over time with new
            ones that start closed ("divided"): where to begin training on video.

    Raises:
        TypeError: no state_dict, or quantised weights.
        ValueError: names, positions or a width that are not DiT's.

    Source: Peebles and Xie 2023, "Scalable Diffusion Models with Transformers".
    """
    weights = _published(source, "pos_embed")
    divided = attention == "divided"
    return _build(_dit_config(weights, heads, attention), lambda: dit_weights(weights, divided=divided))


def _published(source: Mapping[str, Any] | nn.Module, *tables: str) -> Weights:
    """The weights of DiT or Latte by their own names, checked.

    Raises:
        TypeError, ValueError: those of `from_dit`.
    """
    weights = plain_weights(source, holding="x_embedder.proj.weight")
    _check_names(weights, ("x_embedder.", "t_embedder.", "y_embedder.", "blocks.", "final_layer.", *tables))
    _check_positions(weights)
    return weights


def from_latte(source: Mapping[str, Any] | nn.Module, *, heads: int | None = None) -> VideoDiT:
    """A VideoDiT with the weights of Vchitect/Latte (variant 1, unconditional or with class labels).

    Args:
        source: as in `from_dit`. Videos are (B, F, C, H, W) there and (B, C, F, H, W) here.
        heads: as in `from_dit`.

    Raises:
        TypeError: no state_dict, or quantised weights.
        ValueError: names, positions or a width that are not Latte's.

    Source: Ma et al. 2024, "Latte: Latent Diffusion Transformer for Video Generation".
    """
    weights = _published(source, "pos_embed", "temp_embed")
    return _build(_dit_config(weights, heads, "interleaved"), lambda: dit_weights(weights))


# diffusers' models


def _diffusers_block(target: dict[str, Tensor], name: str, source: Weights, old: str) -> None:
    _joined(target, f"{name}.attns.0.qkv", source, [f"{old}.attn1.to_{part}" for part in "qkv"])
    _copy(target, f"{name}.attns.0.proj", source, f"{old}.attn1.to_out.0")
    _copy(target, f"{name}.mlp.fc1", source, f"{old}.ff.net.0.proj")
    _copy(target, f"{name}.mlp.fc2", source, f"{old}.ff.net.2")
    if f"{old}.attn2.to_q.weight" in source:
        _joined(target, f"{name}.cross_attn.q", source, [f"{old}.attn2.to_q"])
        _joined(target, f"{name}.cross_attn.kv", source, [f"{old}.attn2.to_{part}" for part in "kv"])
        _copy(target, f"{name}.cross_attn.proj", source, f"{old}.attn2.to_out.0")


def diffusers_dit_weights(source: Weights, *, block_embeddings: bool) -> dict[str, Tensor]:
    """Tensors of diffusers' DiTTransformer2DModel under the names of VideoDiT; see `dit_weights`."""
    depth, target = _depth(source, "transformer_blocks"), dict[str, Tensor]()
    target["patch_embed.proj.weight"] = _patch_weight(source["pos_embed.proj.weight"])
    target["patch_embed.proj.bias"] = source["pos_embed.proj.bias"]
    for i in range(depth):
        old = f"transformer_blocks.{i}"
        _diffusers_block(target, f"blocks.{i}", source, old)
        if block_embeddings or i == 0:
            for layer in ("linear_1", "linear_2"):
                _copy(target, f"conditioning.{i}.time.{layer}", source, f"{old}.norm1.emb.timestep_embedder.{layer}")
            _copy(target, f"conditioning.{i}.label", source, f"{old}.norm1.emb.class_embedder.embedding_table")
    parts = [*(f"transformer_blocks.{i}.norm1.linear" for i in range(depth)), "proj_out_1"]
    if block_embeddings:
        for i, part in enumerate(parts):
            _copy(target, f"modulation.{i}", source, part)
    else:
        _joined(target, "modulation", source, parts)
    _copy(target, "final_layer.linear", source, "proj_out_2")
    return target


def diffusers_latte_weights(source: Weights) -> dict[str, Tensor]:
    """Tensors of diffusers' LatteTransformer3DModel under the names of VideoDiT; see `dit_weights`."""
    target = {"patch_embed.proj.weight": _patch_weight(source["pos_embed.proj.weight"])}
    target["patch_embed.proj.bias"] = source["pos_embed.proj.bias"]
    tables = []
    for i in range(_depth(source, "transformer_blocks")):
        for odd, old in enumerate((f"transformer_blocks.{i}", f"temporal_transformer_blocks.{i}")):
            _diffusers_block(target, f"blocks.{2 * i + odd}", source, old)
            tables.append(source[f"{old}.scale_shift_table"])
    target["tables"] = torch.cat([*tables, source["scale_shift_table"]])
    _copy(target, "modulation", source, "adaln_single.linear")
    for layer in ("linear_1", "linear_2"):
        _copy(target, f"conditioning.0.time.{layer}", source, f"adaln_single.emb.timestep_embedder.{layer}")
        _copy(target, f"context_projection.{layer}", source, f"caption_projection.{layer}")
    _copy(target, "final_layer.linear", source, "proj_out")
    return target


def _require(config: Any, **wanted: Any) -> None:
    for name, value in wanted.items():
        if getattr(config, name) != value:
            raise ValueError(f"{name} is {getattr(config, name)!r}; VideoDiT computes {value!r} alone")


def _shared_sizes(config: Any) -> dict[str, Any]:
    _require(config, activation_fn="gelu-approximate", norm_elementwise_affine=False)
    return {
        "in_channels": config.in_channels,
        "out_channels": config.out_channels or config.in_channels,
        "patch": (1, config.patch_size, config.patch_size),
        "width": config.num_attention_heads * config.attention_head_dim,
        "heads": config.num_attention_heads,
        "positions": "sincos",
    }


def _from_diffusers_dit(config: Any, source: Weights) -> VideoDiT:
    depth = config.num_layers
    first = {name: value for name, value in source.items() if name.startswith("transformer_blocks.0.norm1.emb.")}
    differ = any(
        not torch.equal(value, source[name.replace("blocks.0.", f"blocks.{i}.")])
        for name, value in first.items()
        for i in range(1, depth)
    )
    dit = VideoDiTConfig(
        **_shared_sizes(config),
        depth=depth,
        attention="joint",
        norm_eps=(1e-6, config.norm_eps),
        time_shift=1.0,
        block_embeddings=differ,
        num_classes=config.num_embeds_ada_norm,
    )
    return _build(dit, lambda: diffusers_dit_weights(source, block_embeddings=differ))


def _from_diffusers_latte(config: Any, source: Weights) -> VideoDiT:
    _require(config, norm_type="ada_norm_single")
    if config.cross_attention_dim is None:
        raise ValueError("a LatteTransformer3DModel without cross_attention_dim ignores its captions; give it one")
    latte = VideoDiTConfig(
        **_shared_sizes(config),
        depth=2 * config.num_layers,
        attention="interleaved",
        position_scale=1 / max(config.sample_size // 64, 1),
        adaln="shared",
        norm_eps=(config.norm_eps, config.norm_eps),
        context_dim=config.caption_channels,
    )
    return _build(latte, lambda: diffusers_latte_weights(source))


def from_diffusers(model: nn.Module) -> VideoDiT:
    """A VideoDiT with the weights of diffusers' DiTTransformer2DModel or LatteTransformer3DModel, without dropout.

    DiT's embeddings of t and y, one set in every block, become one where they are equal, as in the published weights.
    An image is a video of one frame; Latte's `encoder_hidden_states` is `context`, without a mask.

    Args:
        model: the diffusers model, compiled or wrapped or not, at the sample size it was built for.

    Raises:
        TypeError: another class.
        ValueError: an option that VideoDiT does not compute; the message names it.

    Source: Peebles and Xie 2023; Ma et al. 2024; Chen et al. 2024, "PixArt-alpha" (adaLN-single).
    """
    makers = {"DiTTransformer2DModel": _from_diffusers_dit, "LatteTransformer3DModel": _from_diffusers_latte}
    model = plain_module(model)
    name = type(model).__name__
    if name not in makers:
        raise TypeError(f"from_diffusers knows {' and '.join(makers)}, got {name}")
    return makers[name](model.config, plain_weights(model))
