"""Builds razor_fast: metadata stands in pyproject.toml, packages and compiled parts here."""

from setuptools import find_packages, setup

# kernels/ at the top of the tree is installed as razor_fast.kernels: a bare `kernels` package would shadow another's
setup(
    packages=find_packages(include=["razor_fast", "razor_fast.*"]) + ["razor_fast.kernels"],
    package_dir={"razor_fast": "razor_fast", "razor_fast.kernels": "kernels"},
    zip_safe=False,
)
