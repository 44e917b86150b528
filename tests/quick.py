"""Options under which XLA compiles fast rather than to fast code; to be set before JAX starts."""

import os
from importlib import metadata


def compile_quickly() -> None:
    """Most of a test's time is compilation; none measures speed."""
    flags = [
        "--xla_backend_optimization_level=0",
        "--xla_cpu_parallel_codegen_split_count=1",  # a worker has one core, and parts cost time
    ]
    if metadata.version("jaxlib").startswith("0.10."):  # later ones do not know the option
        flags.append("--xla_cpu_use_fusion_emitters=false")  # half the time
    os.environ.setdefault("XLA_FLAGS", " ".join(flags))
