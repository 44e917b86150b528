"""The benchmark of feeding: images on the device, and images decoded on the way to it."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import multiprocessing
import os
import pathlib
import resource
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from measuring import interleaved, medians, percent, ratio
from workbench import BATCHES, Running, Workbench, add_arguments, open_workbench, submesh

from nasjax import data, report
from nasjax.data import GrainLoader
from nasjax.train import sharding

AUGMENTED, NORMALISED, REPEATED = "augmented", "normalised only", "one batch again and again"
FILES, HEIGHT, WIDTH, CLASSES = 512, 375, 500, 8  # about ImageNet's photographs
DECODED = 64  # images of a batch, at most: what is read ahead is soon a few of them


def feeding(options: argparse.Namespace) -> dict[str, Any]:
    """Whether the step waits for images on the device, and images/s decoded from JPEG."""
    bench = open_workbench(options)
    found = {"config": options.config, **bench.sizes, "step": bench.searched}
    if options.part != "decoded":
        found["on_device"] = _on_device(bench, options.pairs)
    if options.part != "on_device":
        found["decoded"] = _decoded(min(DECODED, bench.recipe.batch_size), options)
    return found


def _on_device(bench: Workbench, pairs: int) -> dict[str, Any]:
    """The search step with its loaders, without augmentation, and without loaders."""
    mesh = submesh(1)
    bare = dataclasses.replace(bench.recipe, augmentation=data.Augmentation())
    source = bench.source(4 * bench.recipe.batch_size)
    waited: list[float] = []  # the host, for a step's batches

    def loaded(number: int) -> list[Any]:
        began = time.perf_counter()
        batches = [loader.batch(number) for loader in loaders]
        waited.append(time.perf_counter() - began)
        return batches

    sizes = {"sharding": sharding.batches(mesh)}
    loaders = [
        data.ArrayLoader(source, bench.recipe.batch_size, seed, **sizes)
        for seed in range(BATCHES[bench.searched])
    ]
    programs: dict[str, Running] = {}
    for name, used in ((AUGMENTED, bench), (NORMALISED, dataclasses.replace(bench, recipe=bare))):
        jitted, shapes = used.program(bench.searched, mesh, sharding.REPLICATED)
        with used.computing(mesh, sharding.REPLICATED):
            compiled = jitted.lower(*shapes).compile()
        state, *rest = used.arrays(bench.searched, shapes)
        others = rest[len(loaders) :]  # what is no batch of images
        programs[name] = Running(compiled, state, lambda n, o=others: (*loaded(n), *o))
        if name == AUGMENTED:
            programs[REPEATED] = Running(compiled, *used.arrays(bench.searched, shapes))
    found = interleaved(programs, pairs)
    spent, images = medians(found), BATCHES[bench.searched] * bench.recipe.batch_size
    lines = [
        (name, f"{spent[name]:.4g}", f"{images / spent[name]:,.4g}", _over(found, name))
        for name in (REPEATED, AUGMENTED, NORMALISED)
    ]
    head = ("images on the device", "seconds", "images/s", f"/ {NORMALISED}")
    print(report.format_columns(head, lines))
    host = float(np.median(waited))
    print(f"Asking for its batches takes the host {percent(host / spent[AUGMENTED])} of a step.")
    return {
        "pairs": pairs,
        "images": images,
        "seconds": spent,
        "seconds_all": found,
        "host_seconds": host,
        "ratios": {
            "augmentation_overhead": ratio(found, AUGMENTED, NORMALISED),
            "loader_overhead": ratio(found, AUGMENTED, REPEATED),
        },
    }


def _over(found: dict[str, list[float]], name: str) -> str:
    return f"{ratio(found, name, NORMALISED):.3f}"


def _decoded(batch_size: int, options: argparse.Namespace) -> dict[str, Any]:
    """Images/s that arrive on the device: by threads, by worker processes; no step is run."""
    cores, image_size = _cores(), options.image_size
    spread = {"mean": (0.5,) * 3, "std": (0.25,) * 3}  # which would be measured otherwise
    with _photographs(max(options.files, batch_size)) as folder:
        name = f"folder:{folder}"
        source = data.load(name, image_size=image_size, in_memory=False, **spread).train
        alone = _one_core(source, image_size)
        rows = [
            {"workers": n, **_rate(source, batch_size, image_size, n, options.seconds)}
            for n in sorted({0, options.workers})
        ]
    for row in rows:
        row["to_cores"] = row["images_per_second"] / (alone * cores)
        row["to_threads"] = row["images_per_second"] / rows[0]["images_per_second"]
    lines = [
        (
            f"{row['workers']} processes" if row["workers"] else "threads",
            f"{row['images_per_second']:,.4g}",
            "" if row["cores_busy"] is None else f"{row['cores_busy']:.2f} of {cores}",
            percent(row["to_cores"]),
            f"{row['to_threads']:.3f}",
        )
        for row in rows
    ]
    head = (f"JPEG to {image_size} px", "images/s", "cores busy", "of cores alone", "/ threads")
    print(report.format_columns(head, lines))
    print(f"One core alone decodes and crops {alone:,.4g} images/s.")
    return {
        "image_size": image_size,
        "batch": batch_size,
        "files": len(source),
        "cores": cores,
        "one_core_images_per_second": alone,
        "rows": rows,
    }


def _rate(
    source: Any, batch_size: int, image_size: int, workers: int, least: float
) -> dict[str, Any]:
    """Images/s and busy cores of a loader in its stride, over at least so many seconds."""
    began = time.perf_counter()
    loader = GrainLoader(source, batch_size, 0, image_size, workers=workers)
    try:
        jax.block_until_ready(loader.batch(0))
        first = time.perf_counter() - began
        step = 1
        for _ in range(workers or min(8, _cores())):  # what was read ahead meanwhile
            loader.batch(step)
            step += 1
        clock, busy, start = time.perf_counter(), _cpu_seconds(), step
        while time.perf_counter() - clock < least or step == start:
            jax.block_until_ready(loader.batch(step))
            step += 1
        wall, spent = time.perf_counter() - clock, _cpu_seconds()
    finally:
        loader.close()
    return {
        "images": (step - start) * batch_size,
        "seconds": wall,
        "images_per_second": (step - start) * batch_size / wall,
        "cores_busy": None if busy is None or spent is None else (spent - busy) / wall,
        "first_batch_seconds": first,
    }


def _one_core(source: Any, image_size: int) -> float:
    """Images/s that reading, decoding and cropping alone take, one after the other."""
    from nasjax.data.grain_loader import _Crop

    crop, chance = _Crop(image_size, source.channels, True), np.random.default_rng(0)
    count = min(len(source), 2 * DECODED)
    began = time.perf_counter()
    for number in range(count):
        crop(source.records[number], chance)
    return count / (time.perf_counter() - began)


def _cpu_seconds() -> float | None:
    """Seconds of CPU of this process and its workers so far; None where Linux's /proc is not."""
    own = resource.getrusage(resource.RUSAGE_SELF)
    total = own.ru_utime + own.ru_stime
    for process in multiprocessing.active_children():
        try:
            text = pathlib.Path(f"/proc/{process.pid}/stat").read_text()
        except OSError:
            return None
        user, system = text.rpartition(")")[2].split()[11:13]
        total += (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
    return total


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextlib.contextmanager
def _photographs(count: int) -> Iterator[pathlib.Path]:
    """A folder dataset of JPEG files: smooth noise of the size of ImageNet's photographs."""
    from PIL import Image

    chance = np.random.default_rng(0)
    with tempfile.TemporaryDirectory(prefix="nasjax-input-") as name:
        folder = pathlib.Path(name)
        for number in range(count + CLASSES):
            part = folder / ("train" if number < count else "test") / str(number % CLASSES)
            part.mkdir(parents=True, exist_ok=True)
            (part / f"{number}.jpg").write_bytes(_photograph(Image, chance))
        yield folder


def _photograph(image: Any, chance: np.random.Generator) -> bytes:
    """A JPEG file of coarse and fine noise: about 100 KB, as ImageNet's are."""
    total = np.zeros((HEIGHT, WIDTH, 3))
    for cells, strength in ((8, 0.6), (64, 0.3), (256, 0.1)):
        noise = chance.integers(256, size=(cells * HEIGHT // WIDTH, cells, 3), dtype=np.uint8)
        scaled = image.fromarray(noise).resize((WIDTH, HEIGHT), image.Resampling.BICUBIC)
        total += strength * np.asarray(scaled)
    file = io.BytesIO()
    image.fromarray(total.astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def add_commands(commands: Any) -> None:
    """Add this benchmark to the command line of ``benchmark.py``."""
    command = commands.add_parser("input", help=feeding.__doc__)
    add_arguments(command)
    command.add_argument("--part", default="both", choices=["both", "on_device", "decoded"])
    text = "processes that decode, beside threads; 0 for none"
    command.add_argument("--workers", type=int, default=_cores(), help=text)
    command.add_argument("--image-size", type=int, default=224, help="that JPEGs are cropped to")
    command.add_argument("--files", type=int, default=FILES, help="JPEGs that are made")
    command.add_argument("--seconds", type=float, default=10.0, help="of each kind of decoding")
    command.set_defaults(run=feeding)
