"""The tests of hopfield_layers.

Run all of them with `pytest`, one file with `pytest tests/test_solve.py`, one law of one instance
with `pytest tests/test_laws.py -k "gradients and softmax"`, and programs with XLA's full
optimization with `XLA_FLAGS= pytest`. `pytest -m slow` runs those that take a minute each. Tests
never import benchmarks; benchmarks may import from here.

What each file tests:

| the mathematics | |
|---|---|
| `test_accuracy` | L, g and E of every Lagrangian are within a few ulps of mpmath |
| `test_laws` | the laws of `hopfield_layers.testing` hold for every Lagrangian and layer |
| `test_reference` | results agree with HAMUX 0.1.0, the system that this library ports |
| `test_energy_transformer` | the example's block is that of the paper |
| `test_retrieval` | memories retrieve the known shares of patterns |

| the parts | |
|---|---|
| `test_layers` | layers: constructors, shapes, dtypes, biases and errors |
| `test_synapses` | synapses: formulas, derivatives, masks, weights and errors |
| `test_memories` | blocks give the same as all patterns at once, in any dtype, in little memory |
| `test_network` | networks: energies, gradients, dynamics and errors |
| `test_devices` | batches and memories on several devices and in several processes |
| `test_checkpoints` | training that was interrupted resumes with the same bits |
| `test_transformations` | jit, vmap and copies change nothing, and other values compile nothing |
| `test_weights` | only the weights are trained, unless more is asked for |
| `test_floors` | parameters out of their domain count as its edge, and training brings them back |

| the dynamics | |
|---|---|
| `test_solve` | solutions agree with SciPy's, and every solver and option of Diffrax works |
| `test_straight_line` | unrolled steps and their derivatives are those of Diffrax's own solvers |
| `test_replay` | gradients of solutions are those of their steps, in bounded memory |
| `test_langevin` | samples at finite temperature have the density exp(−E/T) |
| `test_inputs` | every solver steps to the changes of inputs in time, for each sample |
| `test_relax` | relaxations reach fixed points, report whether they did, and are differentiable |
| `test_fixed_points` | fixed points, eigenvalues and shares agree with closed forms |
| `test_block_updates` | every network comes to rest in few drives, with right derivatives |
| `test_while_loop` | loops over batches drop the samples that are done |
| `test_clamp` | clamped units keep their values; masks that would let the energy rise are errors |
| `test_descent` | under `energy_descent` no accepted step raises the energy |
| `test_exponential` | the exponential solvers have their orders, and are exact in the leak |

| the tools and the house | |
|---|---|
| `test_testing` | the laws reject every wrong model of `zoo`, by the right name |
| `test_checks` | reports find every synapse, network and model right, and `zoo_parts` wrong |
| `test_pickles` | programs that reproduce violations contain the code of scripts |
| `test_plotting` | pictures show the right numbers |
| `test_messages` | wrong arguments raise errors that tell what to write instead |
| `test_docs` | docstrings and README run, and name everything that is public |
| `test_costs` | products, memory, evaluations and compilations are as few as they should be |
| `test_house` | imports, types, sizes and classes keep the rules of the house |

| helpers | |
|---|---|
| `instances` | one of everything, for the laws to run over |
| `networks` | chains, binary networks and random networks, to be relaxed |
| `zoo` | wrong Lagrangians and models, with the law that each breaks |
| `zoo_parts` | wrong synapses, networks and models, with the law that each breaks |
| `accuracy` | the exact values, and the errors in ulps |
| `compiling` | programs with XLA's full optimization, and what devices exchange in one |
| `counting` | how often a run evaluates ∂E/∂g |
| `solutions` | the saved states and times of a solution |
| `devices` | what `test_devices` runs on eight devices |
| `two_processes` | what `test_devices` runs in two processes |
| `wrong_script` | a script with wrong synapses that can't be imported, for `test_pickles` |
| `wrong_calls` | calls that pyright must flag; `.ci/check_wrong_calls.py` checks that it does |
"""
