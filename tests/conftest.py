"""Eight virtual CPU devices, new-style keys only, and where the shared fixtures are."""

import os
import pathlib

os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
os.environ.setdefault("JAX_LEGACY_PRNG_KEY", "error")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of a test's time is compilation; nothing here measures speed.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import jax
import pytest

SHARED = pathlib.Path(__file__).parents[2] / "shared"


@pytest.fixture
def key() -> jax.Array:
    return jax.random.key(0)


@pytest.fixture
def shared() -> pathlib.Path:
    """The folder of golden numbers and real data that lies beside a development checkout."""
    if not SHARED.exists():
        pytest.skip(
            "the folder shared/ with golden numbers and real data is not beside the checkout"
        )
    return SHARED
