"""Importing this package fills the registries of backbones, heads and meta-architectures."""

from mpn_d2.modeling import backbone, heads, meta_arch, roi_heads

__all__ = ["backbone", "heads", "meta_arch", "roi_heads"]
