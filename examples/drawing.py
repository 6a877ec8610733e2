"""Shared by the examples: colours, figures without pyplot, rows of images, and small files."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from PIL import Image


HERE = Path(__file__).parent  # where pictures go by default; a notebook has no `__file__`
BLUE, RED, GREEN = "#0072B2", "#D55E00", "#009E73"
COLOURS = [BLUE, RED, GREEN, "#E69F00", "#56B4E9", "#CC79A7"]  # Okabe and Ito's
BOUND = {"color": "black", "linestyle": "--", "linewidth": 1.0}


def figure(width: float, height: float, *grid: int, **options: Any) -> tuple[Figure, np.ndarray]:
    """A figure without pyplot, and its axes without their upper and right edges."""
    fig = Figure((width, height), dpi=130, layout="constrained")
    axes = fig.subplots(*grid, **options)
    for ax in axes.flat:
        ax.spines[["top", "right"]].set_visible(False)
    return fig, axes


def save(fig: Figure, path: Path) -> None:
    """Saves with a palette of 128 colours, which halves the file."""
    canvas = FigureCanvasAgg(fig)
    canvas.draw()
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
    image.quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)


def draw_row(
    axes: Iterable[Axes],
    name: str,
    images: Iterable[ArrayLike],
    low: float = -1.0,
    cmap: str = "gray_r",
) -> None:
    """Draws images with pixels in [low, 1], one on each of the axes, and their name on the left."""
    for i, (ax, image) in enumerate(zip(axes, images, strict=True)):
        ax.imshow(image, cmap=cmap, vmin=low, vmax=1)
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
        if i == 0:
            ax.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
