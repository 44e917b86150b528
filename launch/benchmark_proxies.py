"""The benchmark of scoring without training: seconds for an architecture, by proxy."""

from __future__ import annotations

import argparse
import time
from typing import Any

import jax
import numpy as np
from process import cores_as_devices

from nasjax import spaces
from nasjax.core import architecture
from nasjax.search import proxies
from nasjax.search.scoring import Scorer
from nasjax.train.sharding import make_mesh


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds for an architecture by proxy, and programs compiled."""
    cores_as_devices()
    space = {"image_size": options.image_size, "num_classes": options.classes}
    if options.space != "vitas":
        space["variant"] = options.variant
    supernet = spaces.make(options.space, **space)
    variables = supernet.init(jax.random.key(0))
    images = jax.random.normal(jax.random.key(1), (options.batch, *supernet.input_shape))
    labels = np.arange(options.batch) % options.classes
    batch = {"image": images, "label": labels}
    seconds, compiles, first = {}, {}, {}
    for name in options.proxy:
        proxy = {name: proxies.proxy(name)}
        scorer = Scorer(supernet, variables, proxy, batch, make_mesh(), options.chunk or None)
        count = options.architectures * jax.device_count() * scorer.chunk
        keys = jax.random.split(jax.random.key(2), 2 * count)
        archs = [architecture.sample(supernet.space, key) for key in keys]
        began = time.perf_counter()
        scorer.scores(archs[: jax.device_count() * scorer.chunk])
        first[name] = time.perf_counter() - began
        began = time.perf_counter()
        scorer.scores(archs[count:])
        seconds[name] = (time.perf_counter() - began) / count
        compiles[name] = scorer.compiles[name]
        print(
            f"{name}: {seconds[name]:.3f} s an architecture ({count} of them), "
            f"{first[name]:.1f} s to compile",
            flush=True,
        )
    return {
        "space": supernet.space.name,
        "image_size": options.image_size,
        "batch": options.batch,
        "devices": jax.device_count(),
        "chunk": options.chunk,
        "architectures": options.architectures,
        "seconds_per_arch": seconds,
        "compiles": compiles,
        "first_seconds": first,
    }


def add_commands(commands: Any) -> None:
    """Add this benchmark to the command line of ``benchmark.py``."""
    command = commands.add_parser("proxies", help=measure.__doc__)
    command.add_argument("--space", default="autoformer", choices=["autoformer", "pit", "vitas"])
    command.add_argument("--variant", default="T")
    command.add_argument("--image-size", type=int, default=224)
    command.add_argument("--classes", type=int, default=1000)
    command.add_argument("--batch", type=int, default=64, help="images; DSS needs none")
    command.add_argument("--proxy", nargs="+", default=["dss", "naswot", "snip"])
    command.add_argument("--architectures", type=int, default=8, help="for each device and chunk")
    command.add_argument("--chunk", type=int, default=0, help="at once; 0 for the default")
    command.set_defaults(run=measure)
