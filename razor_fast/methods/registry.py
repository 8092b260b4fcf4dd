"""The table of methods: a name, the settings it takes, and the file that does it."""

from dataclasses import dataclass
from importlib import import_module

from ..config import RazorConfig
from ..errors import MethodError

__all__ = ["METHODS", "Method", "find_method"]


@dataclass(frozen=True)
class Method:
    """One way to unlearn. module: its file here, whose `run(task, config, *, units, directory)` yields events (events.py),
    ends with RunEnded and returns outcome.Changed. families: those it fits; None: all. reason: why not the others."""

    name: str
    config: type
    module: str
    families: tuple[str, ...] | None = None
    reason: str = ""

    def settings(self, config):
        """`config`, or the defaults. Raises MethodError for the settings of another method."""
        if config is None:
            return self.config()
        if not isinstance(config, self.config):
            raise MethodError(
                f"the method {self.name} takes {self.config.__name__}, not {type(config).__name__}; give it, or None for "
                "the defaults"
            )
        return config

    def check_family(self, family):
        """Raises MethodError for a family that the method does not fit."""
        if self.families is not None and family not in self.families:
            raise MethodError(
                f"the method {self.name} does not fit the family {family}: {self.reason} It fits {', '.join(self.families)}"
            )

    @property
    def run(self):
        return import_module(f".{self.module}", __package__).run


METHODS = {method.name: method for method in (Method("razor", RazorConfig, "razor"),)}


def find_method(name):
    """The Method of that name. Raises MethodError that names those there are."""
    if name not in METHODS:
        raise MethodError(f"there is no method {name!r}; there are {', '.join(METHODS)}")
    return METHODS[name]
