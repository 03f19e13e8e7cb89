"""Class folders small enough for a test."""

import numpy as np
from PIL import Image

CLASSES = ("blue", "green", "red")


def write_classes(root, *, train=11, val=7, size=32, seed=0):
    """``train`` and ``val`` images a split, in turn of CLASSES: noise in which a color leads."""
    random = np.random.default_rng(seed)
    for split, images in (("train", train), ("val", val)):
        for index in range(images):
            label = index % len(CLASSES)
            pixels = random.integers(0, 160, (size, size + 5, 3))
            pixels[..., 2 - label] += 90
            folder = root / split / CLASSES[label]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index}.png")
    return root
