"""Imported once by the server that the ranks of tests/ranks.py are forked from."""

import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

import sharding  # noqa: E402, F401
import torch.distributed.fsdp  # noqa: E402, F401
import torch.distributed.tensor.parallel  # noqa: E402, F401

for name in sharding.ARCHITECTURES:  # so that what they import lazily is imported once
    sharding.built(name)
