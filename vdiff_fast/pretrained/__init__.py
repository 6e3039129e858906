"""Denoisers of diffusers as models of this library: their own conventions, patched, trained in full or by LoRA."""

from vdiff_fast.pretrained.conventions import PREFIX, PretrainedError, conventions, schedule_of
from vdiff_fast.pretrained.denoiser import Pretrained, load_pretrained
from vdiff_fast.pretrained.families import FAMILIES
from vdiff_fast.pretrained.lora import LoraOptions, parse_lora

__all__ = [
    "FAMILIES",
    "PREFIX",
    "LoraOptions",
    "Pretrained",
    "PretrainedError",
    "conventions",
    "load_pretrained",
    "parse_lora",
    "schedule_of",
]
