"""The modules of examples/cifar10, which are scripts side by side and not a package."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "cifar10"))

import data
import resnet

__all__ = ["data", "resnet"]
