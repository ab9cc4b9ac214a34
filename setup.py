"""What pyproject.toml has no words for: a wheel that holds the compiled CPU engine."""

import sys
from pathlib import Path

from setuptools import setup

sys.path.insert(0, str(Path(__file__).parent / "backprop_gpu" / "kernels"))

from cpu import backend

setup(
    distclass=backend.PlatformDistribution,
    cmdclass={"bdist_wheel": backend.PlatformWheel, "build_py": backend.BuildWithLibrary},
)
