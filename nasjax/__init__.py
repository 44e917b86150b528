"""nasjax: architecture search in weight-entangled super-networks, in JAX and Flax.

The idea is two tables and one product. Parameters have named axes; a space says how long each
axis is for given choices; a super-network is its maximal parameters times the expected mask.
"""

from nasjax.core.architecture import (
    crossover,
    decode,
    encode,
    largest,
    mutate,
    sample,
    smallest,
    validate,
)
from nasjax.core.errors import ArchitectureError, NasjaxError, SpaceError
from nasjax.core.flops import count_multiply_adds
from nasjax.core.mixture import argmax, entropy, one_hot, uniform
from nasjax.core.names import axis_names, name_axes
from nasjax.core.space import Axis, Choice, SearchSpace, centred, private
from nasjax.core.supernet import Supernet
from nasjax.core.superpose import extract, masked, superpose
from nasjax.models.layers import active_statistics
from nasjax.train.calibrate import calibrate_batch_stats
from nasjax.version import __version__

__all__ = [
    "ArchitectureError",
    "Axis",
    "Choice",
    "NasjaxError",
    "SearchSpace",
    "SpaceError",
    "Supernet",
    "__version__",
    "active_statistics",
    "argmax",
    "axis_names",
    "calibrate_batch_stats",
    "centred",
    "count_multiply_adds",
    "crossover",
    "decode",
    "encode",
    "entropy",
    "extract",
    "largest",
    "masked",
    "mutate",
    "name_axes",
    "one_hot",
    "private",
    "sample",
    "smallest",
    "superpose",
    "uniform",
    "validate",
]
