"""Pictures of states and activations."""

from typing import Literal

import diffrax
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import PyTree
from matplotlib.axes import Axes
from matplotlib.cbook import normalize_kwargs
from matplotlib.lines import Line2D

from .._conversion import as_state
from ..layers import Layer
from ..model import StateLike
from ..network import HAM
from ._drawing import canvas, draw, Path, sample_times, times_and_states


def plot_states(
    model: Layer | HAM,
    path: Path | StateLike,
    *,
    layer: str | None = None,
    activations: bool = False,
    kind: Literal["images", "traces"] | None = None,
    ax: Axes | None = None,
    **options: object,
) -> Axes:
    """Draws x, or g, of a layer: as lines against time, or as images side by side.

    In images, the last axis in front of the layer's shape, which is time along a path, runs to the
    right, and all others run down. An image has shape `(height,)`, `(height, width)` or
    `(height, width, 1 or 3)`; three channels are red, green and blue, scaled from the least to the
    largest value.

    **Arguments:**

    - `model`: a [`hopfield_layers.Layer`][] or a [`hopfield_layers.HAM`][].
    - `path`: a path as in [`hopfield_layers.plotting.plot_energy`][], or a state alone.
    - `layer`: the name of the network's layer. It may be left out if there is only one.
    - `activations`: whether to draw g instead of x.
    - `kind`: `"images"`, or `"traces"` with one line per unit and sample. The default is traces for
        a path of several times of a layer of at most one axis, and images otherwise.
    - `ax`: the axes to draw into, which are returned.
    - `options`: options of Matplotlib's `imshow`, or of its lines.

    **Raises:** `TypeError` for another model; `ValueError` for an unknown layer or kind, a layer
    that is not an image, traces without times, and as in
    [`hopfield_layers.plotting.plot_energy`][].

    Examples:
        >>> image = jnp.sin(jnp.arange(8.0))[:, None] * jnp.cos(jnp.arange(6.0))
        >>> x = jnp.geomspace(2.0, 0.1, 5)[:, None, None] * image  # five states, which fade
        >>> ax = hl.plotting.plot_states(hl.TanhLayer((8, 6)), x, activations=True)
    """
    t, x = None, path
    if isinstance(path, diffrax.Solution | tuple):
        t, x = times_and_states(path, least=2 if kind == "traces" else 1)
    chosen, x = _one_layer(model, x, layer)
    x = as_state(x, chosen.shape)
    if x.size == 0:
        raise ValueError(f"Expected at least one unit and one sample, got shape {x.shape}.")
    batch = x.shape[: x.ndim - len(chosen.shape)]
    t = None if t is None else sample_times(t, batch)
    values = np.array(chosen.activation(x) if activations else x, float)
    values = values.reshape(-1, (1, *batch)[-1], *chosen.shape)
    if kind is None:
        along_path = t is not None and t.shape[-1] > 1
        kind = "traces" if along_path and len(chosen.shape) < 2 else "images"
    if kind == "images":
        return _draw_images(values, t, ax, options)
    if kind != "traces" or t is None:
        raise ValueError(f"Expected kind to be 'images' or, for a path, 'traces', got {kind!r}.")
    ax = canvas(ax)
    for unit in np.moveaxis(values.reshape(*t.shape, -1), -1, 0):
        draw(ax, t, unit, True, **normalize_kwargs(options, Line2D))
    ax.set(xlabel="time t", ylabel="activation g" if activations else "state x")
    return ax


def _one_layer(model: Layer | HAM, x: PyTree, name: str | None) -> tuple[Layer, ArrayLike]:
    """The layer to draw, and its state."""
    if isinstance(model, Layer) and name is None:
        return model, x
    if not isinstance(model, HAM):
        raise TypeError(f"Expected a HAM, or a Layer and no name, got {type(model).__name__}.")
    if name is None and len(model.layers) == 1:
        (name,) = model.layers
    if name not in model.layers:
        raise ValueError(f"Expected layer to be one of {list(model.layers)}, got {name!r}.")
    model.activations(x)  # raises an error if x is not a state
    return model.layers[name], x[name]


def _draw_images(values: np.ndarray, t: np.ndarray | None, ax: Axes | None, options: dict) -> Axes:
    """Draws the first axis of the values down and the second one to the right."""
    rows, _, *shape = values.shape
    if len(shape) > 3 or shape[2:] not in ([], [1], [3]):
        raise ValueError(
            "Expected a layer of one axis, or of shape (height, width) or (height, width, 1 or 3) "
            f"to draw as images, got {tuple(shape)}."
        )
    if t is not None:
        used = np.isfinite(t)
        values[~used] = np.nan
        values, t = values[:, used.any(0)], t[:, used.any(0)]
    height, width, channels = (*shape, 1, 1, 1)[:3]
    tiles = values.reshape(rows, -1, height, width, channels)
    down, right = max(height // 16, 1), max(width // 16, 1) if len(shape) > 1 else 0
    tiles = np.pad(tiles, [(0, 0)] * 2 + [(down, 0), (right, 0), (0, 0)], constant_values=np.nan)
    image = tiles.swapaxes(1, 2).reshape(rows * (height + down), -1, channels)[down:, right:]
    finite = image[np.isfinite(image)]
    least, most = (np.min(finite), np.max(finite)) if finite.size else (0.0, 0.0)
    if channels == 3:
        image = np.nan_to_num(
            (image - least) / (most - least or 1.0), nan=1.0, posinf=1.0, neginf=0
        )
    size = max(-least, most) or 1.0
    style = {"cmap": "RdBu_r", "aspect": "equal" if len(shape) > 1 else "auto"}
    style |= {} if "norm" in options else {"vmin": -size, "vmax": size}
    ax = canvas(ax)
    ax.imshow(image, **style | options)  # pyright: ignore[reportArgumentType]
    ax.set(xticks=[], yticks=[])
    if t is not None and np.all(t == t[0]):
        some = np.unique(np.linspace(0, t.shape[1] - 1, min(t.shape[1], 6)).round().astype(int))
        ax.set_xticks((width + right) * some + (width - 1) / 2, [f"{t[0, i]:.3g}" for i in some])
        ax.set_xlabel("time t")
    return ax
