"""Latents and embeddings of captioned clips on disk, in buckets of length and size, for training."""

from vdiff_fast.latents.buckets import Bucket, BucketError, choose_bucket, parse_bucket, suggested_buckets
from vdiff_fast.latents.cache import CacheOptions, CacheReport, write_cache
from vdiff_fast.latents.captions import CaptionError, read_captions
from vdiff_fast.latents.dataset import LatentDataset
from vdiff_fast.latents.info import CacheError, LatentInfo, check_encoders, is_cache
from vdiff_fast.latents.sampler import BucketSampler

__all__ = [
    "Bucket",
    "BucketError",
    "BucketSampler",
    "CacheError",
    "CacheOptions",
    "CacheReport",
    "CaptionError",
    "LatentDataset",
    "LatentInfo",
    "check_encoders",
    "choose_bucket",
    "is_cache",
    "parse_bucket",
    "read_captions",
    "suggested_buckets",
    "write_cache",
]
