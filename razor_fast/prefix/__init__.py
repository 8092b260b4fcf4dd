"""Activations before the edited block, computed once: see cache.py. Knows modules and parameters; no family, no data."""

from .cache import PrefixCache
from .flags import flags_on
from .tower import Tower

__all__ = ["PrefixCache", "Tower", "flags_on"]
