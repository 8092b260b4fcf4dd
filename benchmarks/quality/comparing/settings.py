"""The settings that a comparison runs with: settings.json, data set -> method -> options that are not the method's defaults."""

import json
from pathlib import Path

__all__ = ["SETTINGS", "chosen_settings", "keep_settings"]

SETTINGS = Path(__file__).with_name("settings.json")


def chosen_settings(data, method):
    return json.loads(SETTINGS.read_text(encoding="utf-8")).get(data, {}).get(method, {})


def keep_settings(data, method, options):
    every = json.loads(SETTINGS.read_text(encoding="utf-8"))
    every.setdefault(data, {})[method] = options
    SETTINGS.write_text(json.dumps(every, indent=1) + "\n", encoding="utf-8")
