"""Packaging of nasjax; ``pip install .`` reads it."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = next(
    line.split('"')[1]
    for line in (HERE / "nasjax" / "version.py").read_text().splitlines()
    if line.startswith("__version__")
)

EXTRAS = {
    "digits": ["scikit-learn>=1.3"],
    "report": ["matplotlib>=3.8"],
    "images": ["pillow>=10"],
    "grain": ["grain>=0.2.16"],
    "tensorboard": ["tensorboardX>=2.6"],
    "torch": ["torch>=2.5"],
    "safetensors": ["safetensors>=0.4"],
    "search": ["pymoo>=0.6.2", "scikit-learn>=1.3"],
    "prepare": ["tensorflow-cpu>=2.16", "importlib_resources>=6"],
    "tpu": ["jax[tpu]>=0.10"],
    "cuda13": ["jax[cuda13]>=0.10"],
}
EXTRAS["quickstart"] = EXTRAS["digits"] + EXTRAS["report"]
EXTRAS["test"] = [
    *EXTRAS["quickstart"],
    *EXTRAS["images"],
    *EXTRAS["grain"],
    *EXTRAS["tensorboard"],
    *EXTRAS["safetensors"],
    *EXTRAS["search"],
    "importlib_resources>=6",
    "pytest>=8",
    "pytest-xdist>=3.6",
]
EXTRAS["dev"] = [*EXTRAS["test"], "ruff>=0.6", "mypy>=1.11"]

setup(
    name="nasjax",
    version=VERSION,
    description="Architecture search in weight-entangled super-networks, in JAX and Flax.",
    long_description=(HERE / "README.md").read_text() if (HERE / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    packages=find_packages(include=["nasjax", "nasjax.*"]),
    package_data={"nasjax": ["py.typed"]},
    python_requires=">=3.11",
    install_requires=[
        "jax>=0.10",
        "flax>=0.12",
        "optax>=0.2.7",
        "orbax-checkpoint>=0.11.30",
        "tensorflow-datasets>=4.9.9",
        "ml-collections>=1.0",
        "chex>=0.1.90",
        "absl-py>=2.1",
        "numpy>=2.0",
        "tqdm>=4.66",
    ],
    extras_require=EXTRAS,
    classifiers=[
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
