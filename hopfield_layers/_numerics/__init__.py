"""The kernels behind the definitions: pure functions of arrays in float32 or wider."""
