"""Triton kernels and their launchers, one file per operator; no registration here. Installed as `razor_fast.kernels`."""

if __name__ == "kernels":
    # Python started in the root of a checkout finds this folder under a bare name that belongs to others: step aside
    import importlib.machinery
    import importlib.util
    import pathlib
    import sys

    _root = pathlib.Path(__file__).resolve().parent.parent
    _spec = importlib.machinery.PathFinder.find_spec(
        "kernels", [entry for entry in sys.path if pathlib.Path(entry or ".").resolve() != _root])
    if _spec is None or _spec.loader is None:
        raise ModuleNotFoundError("No module named 'kernels'; razor_fast's are razor_fast.kernels", name="kernels")
    sys.modules["kernels"] = _module = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(_module)
