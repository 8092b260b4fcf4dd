"""The five metrics of RAZOR's tables, M1 to M5, and what each family calls them."""

from ..errors import ConfigError

__all__ = ["ALIASES", "MEANINGS", "metric_name", "aliases_of"]

MEANINGS = {
    "M1": "forget accuracy",
    "M2": "forget retrieval",
    "M3": "privacy leakage",
    "M4": "retain accuracy",
    "M5": "retrieval stability",
}

#: family -> alias -> the metric's name in `task.evaluate`; a family leaves out what it has no counterpart of
ALIASES = {
    "clip": {
        "M1": "forget_accuracy",
        "M2": "forget_retrieval",
        "M3": "privacy_leakage",
        "M4": "retain_accuracy",
        "M5": "retrieval_stability",
    },
    "diffusion": {"M1": "forget_accuracy", "M4": "in_domain_accuracy"},
    "vlm": {"M1": "forget_accuracy", "M4": "retain_accuracy"},
}


def metric_name(alias, family="clip"):
    """The metric's name in a family: metric_name("M4") is "retain_accuracy". A full name comes back as it is.

    Raises ConfigError for an alias the family has no metric for.
    """
    if alias.upper() not in MEANINGS:
        return alias
    found = ALIASES.get(family, {}).get(alias.upper())
    if found is None:
        raise ConfigError(
            f"{alias} ({MEANINGS[alias.upper()]}) has no counterpart in the family {family!r}; it has "
            f"{', '.join(ALIASES.get(family, {})) or 'none'}"
        )
    return found


def aliases_of(family):
    """{metric name: alias} of a family; empty for one that is not known."""
    return {name: alias for alias, name in ALIASES.get(family, {}).items()}
