"""How single programs are compiled as users do, where the flags of the tests don't optimize."""

import os


OPTIMIZED = {}
if "xla_cpu_use_fusion_emitters" in os.environ.get("XLA_FLAGS", ""):
    OPTIMIZED = {"xla_backend_optimization_level": 3, "xla_cpu_use_fusion_emitters": True}
