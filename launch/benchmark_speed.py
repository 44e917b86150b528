"""Benchmarks of a step: search beside plain training, and both on more and more devices."""

from __future__ import annotations

import argparse
import contextlib
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from measuring import interleaved, medians, memory, mib, percent, published_peak, ratio, utilisation
from workbench import (
    BATCHES,
    BILEVEL,
    ONE_SHOT,
    PLAIN,
    SECOND_ORDER,
    Running,
    Workbench,
    add_arguments,
    open_workbench,
    submesh,
)

from nasjax import report
from nasjax.core.errors import NasjaxError
from nasjax.core.masked import Masked
from nasjax.train import sharding

MASKS, MATMUL, SIDE = "masks", "matmul", 2048  # of the square matrices that a CPU's peak is read by


def step(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds, images/s, utilisation and memory of search and training steps, on one device."""
    bench = open_workbench(options)
    together = bench.recipe.together  # as training does them
    mesh, device = submesh(1), jax.devices()[0]
    kinds = [PLAIN, ONE_SHOT]
    if bench.mixes:
        kinds += [BILEVEL, SECOND_ORDER] if options.second_order else [BILEVEL]
    programs: dict[str, Any] = {}
    taken = {}
    for kind in kinds:
        programs[kind], taken[kind] = _running(bench, kind, mesh, sharding.REPLICATED, together)
    searched = BILEVEL if BILEVEL in kinds else ONE_SHOT
    programs[MASKS] = _masks(bench, levels=BATCHES[searched], times=together)
    peak, source = published_peak(device.device_kind, bench.dtype), "published"
    if device.platform == "cpu":
        source = f"fastest product of {SIDE} x {SIDE} matrices in this run"
        square = jnp.ones((SIDE, SIDE), bench.dtype)
        product = jax.jit(jnp.matmul)
        programs[MATMUL] = lambda: product(square, square)
    found = {
        name: [reading / (1 if name == MATMUL else together) for reading in readings]
        for name, readings in interleaved(programs, options.pairs).items()
    }
    if MATMUL in found:
        peak = 2.0 * SIDE**3 / min(found[MATMUL])
    spent = medians(found)
    images = {kind: BATCHES[kind] * bench.recipe.batch_size for kind in kinds}
    used = {kind: utilisation(bench.flops(kind), spent[kind], peak) for kind in kinds}
    ratios = {
        "bilevel_to_plain": ratio(found, BILEVEL, PLAIN),
        "second_order_to_plain": ratio(found, SECOND_ORDER, PLAIN),
        "one_shot_to_plain": ratio(found, ONE_SHOT, PLAIN),
        "masks_share": ratio(found, MASKS, searched),
    }
    lines = [
        (
            kind,
            f"{spent[kind]:.4g}",
            str(images[kind]),
            f"{images[kind] / spent[kind]:,.4g}",
            percent(used[kind]),
            mib(taken[kind]["temporary"]),
            mib(taken[kind]["arguments"]),
            f"{ratio(found, kind, PLAIN):.3f}",
        )
        for kind in kinds
    ]
    head = ("step", "seconds", "images", "images/s", "of peak", "temporary", "arguments", "/ plain")
    print(report.format_columns(head, lines))
    print(f"Superposed weights are {percent(ratios['masks_share'])} of the {searched} step.")
    if not bench.mixes:
        print("This space has a static choice, so there is no search by gradient.")
    return {
        "config": options.config,
        **bench.sizes,
        "devices": 1,
        "together": together,
        "pairs": options.pairs,
        "images": images,
        "seconds": spent,
        "seconds_all": found,
        "images_per_second": {kind: images[kind] / spent[kind] for kind in kinds},
        "model_flops": {kind: bench.flops(kind) for kind in kinds},
        "utilisation": used,
        "peak_flops_per_second": peak,
        "peak_source": None if peak is None else source,
        "bytes": taken,
        "ratios": ratios,
    }


def _running(
    bench: Workbench, kind: str, mesh: Any, rules: sharding.Rules, together: int = 1
) -> tuple[Running, dict[str, int]]:
    """A step, or several, that goes on from itself, and the bytes that it takes on each device."""
    jitted, shapes = bench.program(kind, mesh, rules, together)
    with bench.computing(mesh, rules):
        compiled = jitted.lower(*shapes).compile()
    return Running(compiled, *bench.arrays(kind, shapes)), memory(compiled)


def _masks(bench: Workbench, levels: int, times: int) -> Any:
    """What search steps do to superpose their weights, layer by layer, and the ways back.

    Args:
      bench: the configuration.
      levels: 1 for the way back to the weights; 2 for another superposition before it, with the way
        back to the mixture.
      times: steps.
    """
    mixture = bench.method().mean(bench.method().init(bench.supernet.space, jax.random.key(1)))

    @jax.checkpoint
    def squares(boxes: Any) -> jax.Array:  # whose gradient is what was superposed: a read
        return sum(jnp.sum(jnp.square(array)) for array in jax.tree.leaves(nn.unbox(boxes)))

    def layer(total: jax.Array, boxes: Any) -> tuple[jax.Array, None]:
        return total + squares(nn.meta.remove_axis(boxes, 0, {})), None

    def total(weights: Any, mixture: Any) -> jax.Array:
        boxes: dict[int, list[Masked]] = {}
        for box in jax.tree.leaves(
            bench.supernet.masked({"params": weights}, mixture), is_leaf=nn.meta.is_axis_metadata
        ):
            if isinstance(box, Masked):
                boxes.setdefault(len(box.value) if box.scanned else 0, []).append(box)
        found = squares(boxes.pop(0, []))
        for stack in boxes.values():
            found, _ = jax.lax.scan(layer, found, stack)
        return found

    def moved(given: tuple[Any, Any], argument: int) -> Any:
        # So little that nothing changes, and that nothing can be left out.
        gradient = jax.grad(total, argument)(*given)
        return jax.tree.map(lambda x, g: x - 1e-12 * g, given[argument], gradient)

    def once(given: tuple[Any, Any], _: None) -> tuple[tuple[Any, Any], None]:
        weights, mixture = given
        if levels == 2:
            mixture = moved(given, 1)
        return (moved((weights, mixture), 0), mixture), None

    program = jax.jit(lambda *given: jax.lax.scan(once, given, None, times)[0])
    return lambda: program(bench.weights, mixture)


def scaling(options: argparse.Namespace) -> dict[str, Any]:
    """Images/s of the search step on more and more devices, by sharding rules."""
    counts = sorted({int(count) for count in options.devices.split(",")})
    _require_devices(counts[-1])
    bench = open_workbench(options)
    shared = jax.default_backend() == "cpu"
    programs, rows = {}, []
    for rules in options.rules:
        for count in counts:
            batch = bench.recipe.batch_size * (1 if options.strong else count)
            model = min(options.model, count) if _divides_model(rules) else 1
            if count % model or batch % (count // model):
                raise NasjaxError(
                    f"{batch} images do not divide over {count} devices, {model} of them along the "
                    "parameters; choose another --batch, --devices or --model."
                )
            # On one device all rules are the same program.
            name = f"{rules}, {count}" if count > 1 else "one device"
            if name not in programs:
                mesh, chosen = submesh(count, model), sharding.RULES[rules]
                programs[name] = _running(bench.sized(batch), bench.searched, mesh, chosen)
            images = BATCHES[bench.searched] * batch
            rows.append({"rules": rules, "devices": count, "model": model, "images": images})
            rows[-1] |= {"program": name, "bytes": programs[name][1]}
    found = interleaved({name: call for name, (call, _) in programs.items()}, options.pairs)
    spent = medians(found)
    for row in rows:
        first = next(r for r in rows if r["rules"] == row["rules"])
        faster = row["images"] / first["images"] / ratio(found, row["program"], first["program"])
        row |= {
            "seconds": spent[row["program"]],
            "images_per_second": row["images"] / spent[row["program"]],
            "speedup": faster,
            "efficiency": faster * first["devices"] / row["devices"],
        }
    lines = [
        (
            row["rules"],
            str(row["devices"]),
            f"{row['devices'] // row['model']} x {row['model']}",
            str(row["images"]),
            f"{row['seconds']:.4g}",
            f"{row['images_per_second']:,.4g}",
            f"{row['speedup']:.3f}",
            percent(row["efficiency"]),
            mib(row["bytes"]["arguments"]),
            mib(row["bytes"]["temporary"]),
        )
        for row in rows
    ]
    head = ("rules", "devices", "mesh", "images", "seconds", "images/s", "speed-up", "efficiency")
    print(report.format_columns((*head, "arguments", "temporary"), lines))
    if shared:
        print(
            "These are virtual devices that share the cores of one CPU: a speed-up of 1 is all "
            "there can be, and what is missing to it is the overhead of partitioning."
        )
    return {
        "config": options.config,
        **bench.sizes,
        "step": bench.searched,
        "kind": "strong" if options.strong else "weak",
        "shared_cores": shared,
        "pairs": options.pairs,
        "rows": rows,
        "seconds_all": found,
    }


def _require_devices(count: int) -> None:
    """Have so many devices: virtual ones on a CPU, if JAX has not started yet."""
    with contextlib.suppress(RuntimeError):  # it has
        if jax.config.jax_num_cpu_devices < count:  # which other backends do not mind
            jax.config.update("jax_num_cpu_devices", count)
    if jax.device_count() < count:
        raise NasjaxError(
            f"{count} devices are asked for, but there are {jax.device_count()}; give --devices "
            "that exist."
        )


def _divides_model(rules: str) -> bool:
    chosen = sharding.RULES[rules]
    return "model" in (*chosen.names.values(), chosen.spread)


def add_commands(commands: Any) -> None:
    """Add these benchmarks to the command line of ``benchmark.py``."""
    command = commands.add_parser("step", help=step.__doc__)
    add_arguments(command)
    command.add_argument("--second-order", action="store_true", help="measure that one too")
    command.set_defaults(run=step)
    command = commands.add_parser("scaling", help=scaling.__doc__)
    add_arguments(command)
    command.add_argument("--devices", default="1,2,4,8", help="how many, with commas")
    command.add_argument("--rules", nargs="+", default=["replicated"], choices=list(sharding.RULES))
    text = "devices along the parameters, for rules that divide them so"
    command.add_argument("--model", type=int, default=2, help=text)
    text = "the same batch on all devices together, rather than on each"
    command.add_argument("--strong", action="store_true", help=text)
    command.set_defaults(run=scaling)
