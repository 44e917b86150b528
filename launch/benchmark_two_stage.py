"""Benchmarks of searching without gradients: evaluating populations, two stages, latency."""

from __future__ import annotations

import argparse
import json
import pathlib
import runpy
import sys
import tempfile
import time
from typing import Any

import benchmark_oracle
import jax
import jax.numpy as jnp
import numpy as np
from benchmark_oracle import SEARCHES

from nasjax import data, report, search, spaces
from nasjax.core import architecture
from nasjax.core.architecture import Arch
from nasjax.core.supernet import Supernet
from nasjax.train.evaluate import Evaluator
from nasjax.train.session import open_session

CONFIGS = pathlib.Path(__file__).parent.parent / "configs"


def population(options: argparse.Namespace) -> dict[str, Any]:
    """Evaluating architectures in one program, beside a loop over extracted networks."""
    supernet = spaces.autoformer(
        "T", image_size=options.image_size, patch_size=options.patch_size, num_classes=10
    )
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (options.batch, *supernet.input_shape), np.uint8)
    source = data.Source(images, np.arange(options.batch, dtype=np.int32) % 10)
    dataset = data.Dataset("noise", source, source, 10, supernet.input_shape)
    weights = supernet.init(jax.random.key(0))["params"]
    archs = [
        architecture.sample(supernet.space, jax.random.key(i)) for i in range(options.architectures)
    ]
    with tempfile.TemporaryDirectory() as scratch:
        evaluator = Evaluator(
            open_session(scratch, {}), dataset, options.batch, chunk=options.chunk or None
        )
        chunk = evaluator.chunk
        evaluator.architecture(supernet, weights, archs[0])  # compiles
        pairs, compiling = [], []
        # Side by side: a chunk of architectures in the one program, then the same ones extracted.
        few = archs[: max(options.loop // chunk, 1) * chunk]
        for start in range(0, len(few), chunk):
            part = few[start : start + chunk]
            networks = [_extracted(supernet, weights, a, dataset, options.batch) for a in part]
            compiling += [seconds for _, seconds in networks]
            together = _seconds(lambda part=part: evaluator.architectures(supernet, weights, part))
            alone = sum(_seconds(network) for network, _ in networks)
            pairs.append((together, alone))
            print(f"{start + len(part)} of {len(few)}: {together:.2f} s, {alone:.2f} s", flush=True)
        whole = _seconds(lambda: evaluator.architectures(supernet, weights, archs))
        compiles = evaluator.compiles
    together, alone = (float(np.sum([p[i] for p in pairs])) for i in (0, 1))
    return {
        "space": supernet.space.name,
        "batch": options.batch,
        "architectures": len(archs),
        "chunk": chunk,
        "archs_per_second": len(archs) / whole,
        "ratio_to_compiled_loop": alone / together,
        "ratio_to_compiling_loop": (alone + float(np.sum(compiling))) / together,
        "compiles": compiles,
    }


def single_vs_two_stage(options: argparse.Namespace) -> dict[str, Any]:
    """Gradient searches beside SPOS with random search and with evolution (TangleNAS 4.3, 5).

    Seconds are those of the steps and of the evaluations, without compiling or what comes after.
    """
    rows, curves = [], {}
    options.own = _own(options.config)
    for fraction in options.fractions or [options.own["weights_fraction"]]:
        for method in options.method:
            runs = [_compared(options, method, fraction, seed) for seed in range(options.seeds)]
            name = f"{method} ({fraction:g})" if len(options.fractions or ()) > 1 else method
            rows.append({"method": method, "weights_fraction": fraction, **_mean(runs)})
            curves[name] = [_curve(run) for run in runs]
    folder = pathlib.Path(options.workdir)
    measures = ("inherited", "fine_tuned", "retrained")
    lines = [
        (
            row["method"],
            f"{row['weights_fraction']:g}",
            *(report.format_accuracy(row[m], row[f"{m}_std"]) for m in measures),
            report.format_params(row["params"]),
            report.format_flops(row["flops"]),
            f"{row['seconds']:.0f}",
        )
        for row in rows
    ]
    header = (
        "method", "fraction", "inherited", "fine-tuned", "retrained", "params", "FLOPs", "seconds",
    )  # fmt: skip
    table = report.format_columns(header, lines)
    (folder / "single_vs_two_stage.txt").write_text(table + "\n")
    (folder / "single_vs_two_stage.svg").write_text(report.anytime_plot(curves))
    print(f"{table}\n\nFigure: {folder / 'single_vs_two_stage.svg'}")
    return {"config": options.config, "seeds": options.seeds, "methods": rows}


def _compared(
    options: argparse.Namespace, method: str, fraction: float, seed: int
) -> dict[str, Any]:
    """One search, in a process of its own that resumes by itself."""
    folder = pathlib.Path(options.workdir)
    workdir = folder / f"{method}_{fraction:g}_{seed}"
    trained: list[str] = []
    if method in SEARCHES:
        sampler, _ = SEARCHES[method]
        # One super-network serves all searchers, and its training counts for each.
        first = next(m for m in options.method if SEARCHES.get(m, ("",))[0] == sampler)
        if first != method:
            other = folder / f"{first}_{fraction:g}_{seed}"
            trained = [f"--trained={other}"]
    values = [
        f"seed={seed}",
        *benchmark_oracle.method_settings(method),
        f"search.weights_fraction={fraction}",
        # About as many steps, however many of the images train the weights.
        f"search.recipe.epochs={_epochs(options, fraction)}",
        *options.set,
    ]
    arguments = [f"--config={options.config}", *(f"--config.{value}" for value in values)]
    arguments += trained
    benchmark_oracle.searched(workdir, arguments)
    result = json.loads((workdir / "result.json").read_text())
    (row,) = (row for row in result["rows"] if row["network"] == "found")
    lines = report.Run.load(workdir).lines("evaluations")
    training = report.search_seconds(report.Run.load(other if trained else workdir))
    return {
        **row,
        "seconds": training + (lines[-1]["seconds"] if lines else 0.0),
        "trained_seconds": training if trained else 0.0,
        "best_score": lines[-1]["accuracy"] if lines else None,
        "workdir": str(workdir),
    }


def _own(config: str) -> dict[str, Any]:
    """The section ``search`` of a configuration, FILE or FILE:VARIANT."""
    path, _, variant = config.partition(":")
    if not pathlib.Path(path).is_file():
        sys.exit(f"error: there is no configuration {path}; give FILE or FILE:VARIANT.")
    get_config = runpy.run_path(path)["get_config"]
    return (get_config(variant) if variant else get_config())["search"].to_dict()


def _epochs(options: argparse.Namespace, fraction: float) -> float:
    """Epochs of ``fraction`` of the images that are as many steps as those of the first one."""
    first = options.fractions[0] if options.fractions else fraction
    epochs = options.epochs or options.own["recipe"]["epochs"]
    return epochs * first / fraction


def _curve(run: dict[str, Any]) -> tuple[list[float], list[float]]:
    """Any-time accuracy over seconds, those of a training that another run made included."""
    at, values = report.anytime_accuracy(report.Run.load(run["workdir"]))
    return [run["trained_seconds"] + seconds for seconds in at], values


def _mean(runs: list[dict[str, Any]]) -> dict[str, Any]:
    every: dict[str, Any] = {}
    # The score is on held-out training images: what a searcher of a super-network has made best.
    for name in ("inherited", "fine_tuned", "retrained", "best_score"):
        values = [run[name] for run in runs]
        known = all(value is not None for value in values)
        every[name] = float(np.mean(values)) if known else None
        every[f"{name}_std"] = float(np.std(values)) if known else None
        every[f"{name}_all"] = values
    means = {n: float(np.mean([run[n] for run in runs])) for n in ("params", "flops", "seconds")}
    return {**every, **means}


def latency(options: argparse.Namespace) -> dict[str, Any]:
    """Measure random sub-networks here and fit a latency predictor for searches."""
    folder = pathlib.Path(options.workdir)
    folder.mkdir(parents=True, exist_ok=True)
    supernet = spaces.make(options.space, **dict(_argument(text) for text in options.arguments))
    archs = [
        architecture.sample(supernet.space, jax.random.key(i)) for i in range(options.networks)
    ]
    measured = search.measure_architectures(
        supernet,
        archs,
        path=folder / "latencies.jsonl",
        batch_size=options.batch,
        repeats=options.repeats,
    )
    predictor = search.LatencyPredictor.fit(supernet, archs, measured)
    (folder / "latency.json").write_text(json.dumps(predictor.to_json()) + "\n")
    print(f"{predictor}\nPredictor: {folder / 'latency.json'}")
    error = predictor.error
    return {
        "space": supernet.space.name,
        "batch": options.batch,
        "networks": len(archs),
        "median_ms": [float(np.min([m.median for m in measured])),
                      float(np.max([m.median for m in measured]))],
        "held_out": {"mape": error.mape, "rmse_ms": error.rmse, "kendall_tau": error.tau},
    }  # fmt: skip


def _argument(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _extracted(
    supernet: Supernet, weights: Any, arch: Arch, dataset: data.Dataset, batch: int
) -> tuple[Any, float]:
    """A call that counts what the extracted network gets right, and the seconds to make it."""
    images, labels = jnp.asarray(dataset.test.images), jnp.asarray(dataset.test.labels)
    began = time.perf_counter()
    module = supernet.network(arch)
    own = supernet.extract({"params": weights}, arch)

    @jax.jit
    def correct(own: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
        scaled = data.normalize(images, dataset.mean, dataset.std)
        return jnp.sum(jnp.argmax(module.apply(own, scaled, train=False), -1) == labels)

    compiled = correct.lower(own, images, labels).compile()
    seconds = time.perf_counter() - began
    jax.block_until_ready(compiled(own, images, labels))
    return lambda: int(compiled(own, images, labels)), seconds


def _seconds(call: Any) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def add_commands(commands: Any) -> None:
    """Add these benchmarks to the command line of ``benchmark.py``."""
    command = commands.add_parser("population", help=population.__doc__)
    command.add_argument("--image-size", type=int, default=32)
    command.add_argument("--patch-size", type=int, default=4)
    command.add_argument("--batch", type=int, default=64)
    command.add_argument("--architectures", type=int, default=64)
    command.add_argument("--loop", type=int, default=8, help="architectures extracted")
    command.add_argument("--chunk", type=int, default=0, help="at once; 0 for the default")
    command.set_defaults(run=population)
    command = commands.add_parser(
        "single_vs_two_stage", help="gradient searches beside two stages (TangleNAS)"
    )
    command.add_argument("--config", default=str(CONFIGS / "two_stage.py"), help="FILE:VARIANT")
    command.add_argument(
        "--method", nargs="+", default=["darts", "drnas", "spos+rs", "spos+es"],
        help=f"relaxations, or {', '.join(SEARCHES)}",
    )  # fmt: skip
    command.add_argument(
        "--fractions", nargs="+", type=float,
        help="parts of the training images that train the weights [the configuration's]",
    )  # fmt: skip
    command.add_argument(
        "--epochs", type=float, help="of the first fraction; others as many steps [its own]"
    )
    command.add_argument("--seeds", type=int, default=3)
    command.add_argument("--workdir", default="runs/single_vs_two_stage")
    command.add_argument(
        "--set", nargs="+", default=[], metavar="NAME=VALUE", help="overrides of the configuration"
    )
    command.set_defaults(run=single_vs_two_stage)
    command = commands.add_parser("latency", help=latency.__doc__)
    command.add_argument("--space", default="quickstart", choices=sorted(spaces.SPACES))
    command.add_argument(
        "--arguments", nargs="+", default=[], metavar="NAME=VALUE", help="of the space, as JSON"
    )
    command.add_argument("--networks", type=int, default=60)
    command.add_argument("--batch", type=int, default=64)
    command.add_argument("--repeats", type=int, default=50)
    command.add_argument("--workdir", default="runs/latency")
    command.set_defaults(run=latency)
