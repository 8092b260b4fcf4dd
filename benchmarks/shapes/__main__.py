"""Writes the shapes of the models named on the command line."""

import json
import sys

from benchmarks.shapes import FOLDER, build

for name in sys.argv[1:]:
    lines = ",\n".join(f"{json.dumps(n)}: {json.dumps(shape)}" for n, shape in build(name).items())
    (FOLDER / f"{name}.json").write_text("{\n" + lines + "\n}\n")
