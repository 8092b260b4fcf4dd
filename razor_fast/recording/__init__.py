"""Gradients of two losses -> four sums a unit, in three ways: buffers, stream and lockstep (docs/memory.md).

`recorder.py` is the face; the pieces here know parameters, graphs and hooks, and nothing of families.
"""
