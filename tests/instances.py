"""One of everything, for the laws to run over."""

import jax.numpy as jnp
import jax.random as jr

import hopfield_layers as hl


SHAPE = (3, 4)


def soft_absolute(x):
    return jnp.sum(jnp.sqrt(1 + x**2))


LAGRANGIANS = {
    "identity": hl.LIdentity(),
    "repu": hl.LRepu(n=3.0),
    "repu 1.5": hl.LRepu(n=1.5),
    "relu": hl.LRelu(),
    "power": hl.LPower(p=2.5),
    "power 2": hl.LPower(),
    "exp": hl.LExp(beta=1.3),
    "rexp": hl.LRexp(beta=0.9),
    "cosh": hl.LCosh(beta=0.8),
    "tanh": hl.LTanh(beta=1.7),
    "sigmoid": hl.LSigmoid(beta=2.0, scale=1.5),
    "softmax": hl.LSoftmax(beta=0.7),
    "softmax, first axis": hl.LSoftmax(beta=2.0, axis=0),
    "ghostmax": hl.LGhostmax(beta=1.2),
    "sparsemax": hl.LSparsemax(beta=0.8),
    "entmax": hl.LEntmax(beta=0.9),
    "entmax 1.1": hl.LEntmax(beta=1.1, alpha=1.1),
    "entmax 2.5": hl.LEntmax(alpha=2.5, axis=0),
    "layer norm": hl.LLayerNorm(gamma=1.2, delta=0.3),
    "spherical norm": hl.LSphericalNorm(gamma=0.8, delta=jnp.array([0.1, -0.2, 0.0, 0.3])),
    "callable": hl.as_lagrangian(soft_absolute),
}

LAYERS = {
    name: hl.Layer(
        lagrangian,
        SHAPE,
        tau=[0.5, 1.0, 2.0][i % 3],
        bias=None if i % 2 else 0.3 * jr.normal(jr.key(i), SHAPE),
    )
    for i, (name, lagrangian) in enumerate(LAGRANGIANS.items())
}
