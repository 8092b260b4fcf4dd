"""The table of modes."""

from .buffers import Buffers
from .lockstep import Lockstep
from .stream import Stream

__all__ = ["MODES"]

MODES = {kind.mode: kind for kind in (Buffers, Stream, Lockstep)}
