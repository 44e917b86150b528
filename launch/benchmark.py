"""Benchmarks. Each ends with one JSON line: its figures, the device and the versions.

    python launch/benchmark.py superposition
    python launch/benchmark.py quickstart --seeds 5 --workdir runs/quickstart_seeds
    python launch/benchmark.py sharing --space nas_bench_201
    python launch/benchmark.py oracle --space toy_cell --data idx:FOLDER --table TABLE.csv
    python launch/benchmark.py single_vs_two_stage
    python launch/benchmark.py population
    python launch/benchmark.py searchers --space toy_conv_macro --table TABLE.csv
    python launch/benchmark.py latency
    python launch/benchmark.py proxies
    python launch/benchmark.py step --config CONFIG
    python launch/benchmark.py scaling --config CONFIG
    python launch/benchmark.py input --config CONFIG
    python launch/benchmark.py compile --config CONFIG
    python launch/benchmark.py roofline --config CONFIG --device tpu-v5p

``superposition`` compares the search step (loss, gradients of weights and alphas) with the plain
largest network of the same module, interleaved in one process. ``quickstart`` runs the quickstart
with several seeds, beside random architectures retrained in the same way. ``sharing`` compares
entangled weights with plain weight sharing; ``oracle`` searches with both and judges what is found
by a table of true accuracies. ``single_vs_two_stage`` compares searches by gradient with training
by sampling and then searching. ``population`` evaluates architectures in one program, beside a loop
over extracted networks; ``searchers`` runs searchers on a table alone; ``latency`` measures
sub-networks on this machine and fits a predictor. ``conflict`` is the ablation of NASViT's training
by the sandwich rule, and ``sandwich`` measures a step of it. ``proxies`` scores untrained networks.
``step``, ``scaling``, ``input`` and ``compile`` measure the speed of a configuration; ``roofline``
says what it would be on devices that are not at hand.
Stopped, those that search continue where they were.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import benchmark_compile
import benchmark_conflict
import benchmark_input
import benchmark_oracle
import benchmark_proxies
import benchmark_roofline
import benchmark_searchers
import benchmark_speed
import benchmark_two_stage
import jax
import jax.numpy as jnp
import numpy as np
from process import one_lapack_thread, one_sentence

import nasjax
from nasjax import relax, spaces
from nasjax.core import architecture, mixture
from nasjax.core.program import Program
from nasjax.train.losses import cross_entropy

LAUNCH = pathlib.Path(__file__).parent


def superposition(options: argparse.Namespace) -> dict[str, Any]:
    """Cost of superposition: the search step against the plain largest network."""
    supernet = spaces.autoformer(
        options.variant,
        image_size=options.image_size,
        patch_size=options.patch_size,
        num_classes=10,
        drop_path=0.0,
    )
    images = jax.random.normal(jax.random.key(1), (options.batch, *supernet.input_shape))
    labels = jax.nn.one_hot(jnp.arange(options.batch) % 10, 10)
    weights = supernet.init(jax.random.key(0))["params"]
    alphas = relax.init_alphas(supernet.space, jax.random.key(2))

    @jax.jit
    def plain(weights: Any) -> Any:
        def loss(weights: Any) -> jax.Array:
            logits = supernet.module.apply({"params": weights}, images, train=True)
            return cross_entropy(logits, labels)

        return jax.value_and_grad(loss)(weights)

    @Program
    def search(weights: Any, alphas: Any, temperature: jax.Array) -> Any:
        def loss(weights: Any, alphas: Any) -> jax.Array:
            mixed = {n: jax.nn.softmax(a / temperature) for n, a in alphas.items()}
            variables = supernet.masked({"params": weights}, mixed)
            return cross_entropy(supernet.module.apply(variables, images, train=True), labels)

        return jax.value_and_grad(loss, (0, 1))(weights, alphas)

    one = jnp.ones(())
    memory = [
        f.lower(*a).compile().memory_analysis().temp_size_in_bytes
        for f, a in ((plain, (weights,)), (search, (weights, alphas, one)))
    ]
    times: list[tuple[float, float]] = []
    for pair in range(options.pairs + 1):
        # Another temperature and other alphas each time: nothing may compile again.
        given = (weights, jax.tree.map(lambda a: a + 0.1 * pair, alphas), one + pair)  # noqa: B023
        seconds = (_seconds(plain, weights), _seconds(search, *given))
        if pair:  # the first pair compiles
            times.append(seconds)
            print(
                f"pair {pair}: plain {seconds[0]:.3f} s, search {seconds[1]:.3f} s, "
                f"ratio {seconds[1] / seconds[0]:.3f}",
                flush=True,
            )
    for seed in range(3):
        arch = architecture.sample(supernet.space, jax.random.key(seed))
        hot = mixture.one_hot(supernet.space, arch)
        jax.block_until_ready(search(weights, jax.tree.map(lambda m: 50.0 * m, hot), one))
    ratios = [s / p for p, s in times]
    return {
        "space": supernet.space.name,
        "batch": options.batch,
        "pairs": options.pairs,
        "time_ratio": float(np.median(ratios)),
        "memory_ratio": memory[1] / memory[0],
        "step_seconds": float(np.median([s for _, s in times])),
        "plain_seconds": float(np.median([p for p, _ in times])),
        "step_bytes": memory[1],
        "plain_bytes": memory[0],
        "compiles": search.compiles,
    }


def quickstart(options: argparse.Namespace) -> dict[str, Any]:
    """The quickstart with several seeds, found networks beside random ones."""
    found: list[float] = []
    inherited: list[float] = []
    random: list[float] = []
    seconds: list[float] = []
    for seed in range(options.seeds):
        workdir = pathlib.Path(options.workdir) / f"seed_{seed}"
        began = time.perf_counter()
        # A process of its own for each seed: what a user runs, and it resumes by itself.
        subprocess.run(
            [
                sys.executable,
                str(LAUNCH / "search.py"),
                "--config",
                str(LAUNCH.parent / "configs" / "quickstart.py"),
                "--workdir",
                str(workdir),
                f"--config.seed={seed}",
                "--config.compare.retrain_largest=False",
                f"--config.compare.retrain_random={options.random}",
            ],
            check=True,
        )
        seconds.append(time.perf_counter() - began)
        rows = {r["network"].split()[0]: r for r in _read(workdir / "result.json")["rows"]}
        found.append(rows["found"]["retrained"])
        inherited.append(rows["found"]["inherited"])
        random.append(rows["random"]["retrained"])
        print(f"seed {seed}: found {found[-1]:.4f}, random {random[-1]:.4f}", flush=True)
    return {
        "seeds": options.seeds,
        "random_per_seed": options.random,
        "found_retrained": found,
        "found_retrained_mean": float(np.mean(found)),
        "found_retrained_std": float(np.std(found)),
        "found_inherited_mean": float(np.mean(inherited)),
        "random_retrained": random,
        "random_retrained_mean": float(np.mean(random)),
        "seconds": seconds,
    }


def _seconds(function: Callable[..., Any], *arguments: Any) -> float:
    began = time.perf_counter()
    jax.block_until_ready(function(*arguments))
    return time.perf_counter() - began


def _read(path: pathlib.Path) -> Any:
    return json.loads(path.read_text())


def main() -> None:
    """Run one benchmark and print its JSON line."""
    one_lapack_thread()
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("superposition", help=superposition.__doc__)
    command.add_argument("--variant", default="T", choices=["T", "S", "B"])
    command.add_argument("--image-size", type=int, default=32)
    command.add_argument("--patch-size", type=int, default=4)
    command.add_argument("--batch", type=int, default=32)
    command.add_argument("--pairs", type=int, default=9)
    command.set_defaults(run=superposition)
    command = commands.add_parser("quickstart", help=quickstart.__doc__)
    command.add_argument("--seeds", type=int, default=5)
    command.add_argument("--random", type=int, default=5, help="random architectures per seed")
    command.add_argument("--workdir", default="runs/quickstart_seeds")
    command.set_defaults(run=quickstart)
    benchmark_oracle.add_commands(commands)
    benchmark_two_stage.add_commands(commands)
    benchmark_proxies.add_commands(commands)
    benchmark_searchers.add_commands(commands)
    benchmark_conflict.add_commands(commands)
    benchmark_speed.add_commands(commands)
    benchmark_input.add_commands(commands)
    benchmark_compile.add_commands(commands)
    benchmark_roofline.add_commands(commands)
    options = parser.parse_args()
    with one_sentence():
        result = options.run(options)
    device = jax.devices()[0]
    result = {
        "benchmark": options.command,
        **result,
        "device": f"{jax.device_count()} x {device.device_kind}",
        "versions": {"nasjax": nasjax.__version__, "jax": jax.__version__},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
