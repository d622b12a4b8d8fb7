"""Fixtures: `photos` (class folders) and `packed` (the same, packed)."""

from small_sources import packed, photos

__all__ = ["packed", "photos"]
