"""Eight virtual CPU devices, new-style keys only, and where the shared fixtures are."""

import atexit
import gc
import os
import pathlib
import shutil
import tempfile

from tests.quick import compile_quickly

os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
os.environ.setdefault("JAX_LEGACY_PRNG_KEY", "error")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
compile_quickly()
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    # Workers and the launchers that tests start compile many programs alike.
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="nasjax-tests-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

import jax  # noqa: E402
import pytest  # noqa: E402

# Tracing makes many small objects, and JAX does work of its own at each collection.
gc.set_threshold(50_000, 20, 50)

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
