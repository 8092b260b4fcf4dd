"""Activations before the edited block, computed once: see cache.py. Knows modules and parameters; no family, no data."""

from .cache import PrefixCache
from .tower import Tower

__all__ = ["PrefixCache", "Tower"]
