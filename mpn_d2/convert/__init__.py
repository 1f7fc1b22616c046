"""Weights of other implementations in the names and layout of ours, one file a source.

Every converter is a pure function: named tensors of the source in, `Converted` out.
"""

from mpn_d2.convert.sources import SOURCES, Source, convert

__all__ = ["SOURCES", "Source", "convert"]
