import hypothesis
import jax


jax.config.update("jax_enable_x64", True)

# Compiling falls into the first example, so no deadlines; the same examples in every run.
hypothesis.settings.register_profile("suite", deadline=None, derandomize=True, max_examples=40)
hypothesis.settings.load_profile("suite")
