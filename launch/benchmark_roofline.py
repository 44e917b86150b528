"""A roofline on paper: what a search step would cost on devices that are not at hand.

    python launch/benchmark.py roofline --config configs/autoformer_imagenet.py:B --device tpu-v5p

Work is counted from a trace of the step (``roofline_work.py``), devices are what their vendors
publish. Nothing is run, and nothing here was fitted to a measurement: docs/performance.md has the
assumptions.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from benchmark_conflict import read_config
from measuring import published_peak
from roofline_work import Work, of_config

from nasjax import report
from nasjax.core.errors import NasjaxError, did_you_mean

RULES = ("replicated", "fully_sharded", "tensor")
# Seconds for the first byte of a message to its neighbour; no vendor publishes it. The figure is
# that of "How to Scale Your Model" (jax-ml.github.io/scaling-book/sharding) for TPUs.
HOP = 1e-6


@dataclasses.dataclass(frozen=True)
class Device:
    """An accelerator as its vendor describes it, one chip or one GPU.

    Attributes:
      kind: what JAX calls it, by which its peak is known.
      capacity: bytes of HBM.
      bandwidth: of HBM, bytes a second.
      link: bytes a second that it sends to its neighbours, over all its links.
      domain: devices that these links join.
      network: bytes a second that it sends out of its domain; 0 where nothing was published.
      dimensions: of the torus that the links form; 1 for a switch.
      closed: devices from which on the torus is closed. A smaller one has half of its links.
      tile: rows, columns and depth that a matrix product is rounded up to.
      touches: how often a number between two products passes through HBM, in relation to the
        products' own reads and writes. XLA fuses element-wise work into its products on a TPU; on
        a GPU products are calls of a library, with a loop of its own between them.
    """

    kind: str
    capacity: float
    bandwidth: float
    link: float
    domain: int
    network: float
    tile: tuple[int, int, int]
    dimensions: int = 1
    closed: int = 1
    touches: int = 1


_MXU, _WIDE_MXU, _WGMMA = (8, 128, 128), (8, 256, 256), (64, 8, 16)
# TPUs: cloud.google.com/tpu/docs/v4, /v5e, /v5p, /v6e (system architecture). The documents give
# links in both directions, of which one is taken here; that of v4 is its all-reduce bandwidth per
# pod, divided by its chips. GPUs: nvidia.com/en-us/data-center/h100 and /h200; NVLink in one
# direction, and beyond the eight of a DGX one 400 Gb/s ConnectX-7 each (DGX user guides).
DEVICES: Mapping[str, Device] = {
    "tpu-v4": Device("TPU v4", 32 * 2**30, 1.2e12, 270e9, 4096, 0.0, _MXU, dimensions=3, closed=64),
    "tpu-v5e": Device("TPU v5e", 16e9, 819e9, 200e9, 256, 25e9 / 8, _MXU, dimensions=2, closed=256),
    "tpu-v5p": Device(
        "TPU v5p", 95e9, 2.765e12, 600e9, 6144, 50e9 / 8, _MXU, dimensions=3, closed=64
    ),
    "tpu-v6e": Device(
        "TPU v6e", 32e9, 1.6e12, 400e9, 256, 100e9 / 8, _WIDE_MXU, dimensions=2, closed=256
    ),
    "h100": Device("NVIDIA H100 80GB HBM3", 80e9, 3.35e12, 450e9, 8, 400e9 / 8, _WGMMA, touches=2),
    "h200": Device("NVIDIA H200", 141e9, 4.8e12, 450e9, 8, 400e9 / 8, _WGMMA, touches=2),
}


@dataclasses.dataclass(frozen=True)
class Prediction:
    """A step on some devices, in seconds and bytes of one of them.

    Attributes:
      devices: in all.
      busy: of them, those that have an image.
      images: of each that is busy, of all that share them where tensors are divided.
      compute: time of the matrix products, in tiles.
      memory: time of all traffic with HBM, of which ``masks`` and ``update`` are parts.
      collectives: time of the links, of which ``latency`` is a part.
      masks: time of superposition.
      update: time of the optimizer.
      latency: time of the hops.
      bytes: of HBM that are taken.
      micro_batches: that the images must be divided into to fit; 0 if not even one image fits.
      useful: time of the FLOPs alone, all devices at their peak.
      batch: images of the step over all devices, at all its levels.
    """

    devices: int
    busy: int
    images: int
    compute: float
    memory: float
    collectives: float
    masks: float
    update: float
    latency: float
    bytes: float
    micro_batches: int
    useful: float
    batch: int

    @property
    def terms(self) -> dict[str, float]:
        """The three times that may overlap."""
        return {name: getattr(self, name) for name in ("compute", "memory", "collectives")}

    @property
    def binds(self) -> str:
        """The largest of them."""
        return max(self.terms, key=lambda name: self.terms[name])

    @property
    def step(self) -> tuple[float, float]:
        """Seconds of a step: if the three overlap without a gap, and if they do not at all."""
        return max(self.terms.values()), sum(self.terms.values())

    @property
    def utilisation(self) -> tuple[float, float]:
        """FLOPs of the networks by those of the peak, for either."""
        return self.useful / self.step[0], self.useful / self.step[1]

    @property
    def rate(self) -> tuple[float, float]:
        """Images a second, of all levels, each once however many networks see it."""
        return self.batch / self.step[0], self.batch / self.step[1]


def predict(
    work: Work,
    device: Device,
    devices: int,
    batch: int,
    *,
    rules: str = "replicated",
    model: int = 2,
) -> Prediction:
    """What a step takes.

    Args:
      work: of the step.
      device: of which there are ``devices``.
      devices: how many.
      batch: images of the step, over all of them.
      rules: how parameters are placed, one of ``RULES``.
      model: devices that share the images where tensors are divided.

    Raises:
      NasjaxError: if there are no such rules, or they do not fit the network or the devices.
    """
    if rules not in RULES:
        raise NasjaxError(f"no rules are called {rules!r}; {did_you_mean(rules, RULES)}")
    share = min(model, devices) if rules == "tensor" else 1
    if rules == "tensor" and not work.stream:
        raise NasjaxError(
            "this network has no axes called heads and mlp to divide; choose replicated or "
            "fully_sharded."
        )
    if devices % share:
        raise NasjaxError(
            f"{devices} devices cannot be divided into groups of {share}; give another --model."
        )
    groups = devices // share
    busy = min(groups, batch)
    images = math.ceil(batch / busy)
    peak = published_peak(device.kind, work.dtype)
    if peak is None:
        raise NasjaxError(
            f"no peak of {device.kind} was published for products of {work.dtype} at JAX's matmul "
            "precision in use; leave jax_default_matmul_precision alone."
        )
    # What of a parameter is on a device: what is divided over its group, and the rest.
    whole = (1 - work.divided * (1 - 1 / share)) * work.params
    kept = whole / devices if rules == "fully_sharded" else whole
    masks = kept * work.masks / device.bandwidth  # they are masked before they are gathered
    update = kept * work.update / device.bandwidth
    read = 3 * work.passes * whole * work.bytes
    moved = images * device.touches * work.traffic / share + read
    collectives, latency = _collectives(work, device, groups, share, images, whole, rules)
    state = kept * work.state + whole / work.layers * work.bytes  # one layer's, masked
    activations = images * work.kept / share
    room = device.capacity - state
    fits = room >= activations / images
    return Prediction(
        devices=devices,
        busy=busy * share,
        images=images,
        compute=images * work.executed / share / peak,
        memory=masks + update + moved / device.bandwidth,
        collectives=collectives,
        masks=masks,
        update=update,
        latency=latency,
        bytes=state + activations,
        micro_batches=math.ceil(activations / room) if fits else 0,
        useful=batch * work.flops / (devices * peak),
        batch=work.levels * batch,
    )


def _collectives(
    work: Work, device: Device, groups: int, share: int, images: int, whole: float, rules: str
) -> tuple[float, float]:
    """Seconds of all collectives of a step, and how many of them are spent on hops."""
    gradients = work.passes * whole * work.bytes
    hops = work.passes * (2 * work.layers + 2 * work.statistics) * _hops(device, groups)
    if rules == "fully_sharded":
        # Layer by layer, forward and back, weights are gathered; sums of gradients are scattered.
        time = 3 * _gather(device, groups, gradients)
        hops = work.passes * (3 * work.layers + 2 * work.statistics) * _hops(device, groups)
    else:
        time = 2 * _gather(device, groups, gradients)
    if rules == "tensor":
        # Four sums of the stream a layer: after attention and perceptron, and their gradients.
        time += 2 * 4 * work.passes * _gather(device, share, images * work.stream)
        hops += 2 * 4 * work.passes * (work.layers - 1) * _hops(device, share)
    latency = hops * HOP
    return time + latency, latency


def _gather(device: Device, devices: int, size: float) -> float:
    """Seconds to gather, or to sum and scatter, ``size`` bytes; an all-reduce takes it twice."""
    inside = min(devices, device.domain)
    across = math.ceil(devices / device.domain)
    if across > 1 and not device.network:
        raise NasjaxError(
            f"{devices} of these devices are more than the {device.domain} that their links join, "
            "and how fast the network between them is was not published; give fewer."
        )
    link = device.link if inside >= device.closed else device.link / 2
    time = (inside - 1) / inside * size / link
    if across > 1:
        time += (across - 1) / across * size / inside / device.network
    return time


def _hops(device: Device, devices: int) -> float:
    """Hops of the same: half way round each ring of the torus, and a tree of the domains."""
    inside = min(devices, device.domain)
    across = math.ceil(devices / device.domain)
    ring = device.dimensions * inside ** (1 / device.dimensions) / 2 if inside > 1 else 0.0
    return ring + math.log2(across)


def table(predictions: Sequence[Prediction], measured: Mapping[int, float]) -> str:
    """The predictions as aligned columns; ``measured`` are images a second by devices."""
    header = (
        "devices", "each", "compute", "memory", "collectives", "binds", "utilisation", "images/s",
        "GB", "measured",
    )  # fmt: skip
    rows = []
    for p in predictions:
        each = f"{p.images:,}" if p.busy == p.devices else f"{p.images} on {p.busy:,}"
        low, high = (f"{100 * u:.2g}" for u in reversed(p.utilisation))
        slow, fast = (report.format_params(r) for r in reversed(p.rate))
        split = {0: " (too large)", 1: ""}.get(p.micro_batches, f" ({p.micro_batches} parts)")
        rows.append(
            (
                f"{p.devices:,}",
                each,
                *(f"{1e3 * t:.3g}" for t in p.terms.values()),
                p.binds,
                f"{low} to {high}%",
                f"{slow} to {fast}",
                f"{p.bytes / 1e9:.3g}{split}",
                f"{measured[p.devices]:,.0f}" if p.devices in measured else "not measured",
            )
        )
    return report.format_columns(header, rows)


def roofline(options: argparse.Namespace) -> dict[str, Any]:
    """Roofline of a configuration's search step, on paper."""
    if options.device not in DEVICES:
        raise NasjaxError(
            f"no device is called {options.device!r}; these are known: {', '.join(DEVICES)}."
        )
    device = DEVICES[options.device]
    values = read_config(options.config)
    work = of_config(values, options.dtype, device.tile)
    total = options.batch or values["search"]["recipe"]["batch_size"]
    placed = {"rules": options.rules, "model": options.model}
    predictions = [
        predict(work, device, n, options.per_device * n or total, **placed) for n in options.devices
    ]
    first = predictions[0]
    print(
        f"{values['space']['name']}, {options.dtype}, {options.rules}, on {options.device}: "
        f"{work.params / 1e6:.1f}M parameters, {work.passes} passes a step.\n"
        f"An image: {work.flops / 1e9:.1f} GFLOP, {100 * work.flops / work.executed:.0f}% of what "
        f"the tiles do; {device.touches * work.traffic / 1e6:,.0f} MB of traffic, "
        f"{work.kept / 1e6:,.0f} MB kept for a backward pass.\n"
        f"Superposition, whatever the batch: {work.params * work.masks / 1e9:.2f} GB and "
        f"{work.mask_flops / 1e9:.2f} GFLOP a step, {1e3 * first.masks:.2g} ms on {first.devices}; "
        f"optimizer: {work.params * work.update / 1e9:.2f} GB, {1e3 * first.update:.2g} ms.\n"
        "Images of each device, milliseconds of a step, GB of a device, measured images/s.\n\n"
        f"{table(predictions, dict(options.measured))}"
    )
    rows = [
        {
            **dataclasses.asdict(p),
            "binds": p.binds,
            "step_seconds": p.step,
            "utilisation": p.utilisation,
            "images_per_second": p.rate,
            "measured_images_per_second": dict(options.measured).get(p.devices),
        }
        for p in predictions
    ]
    return {
        "config": options.config,
        "space": values["space"]["name"],
        "modelled_device": options.device,
        "dtype": options.dtype,
        "rules": options.rules,
        "work": dataclasses.asdict(work),
        "predictions": rows,
    }


def _numbers(text: str) -> list[int]:
    found = [int(part) for part in text.split(",")]
    if min(found) < 1:
        raise ValueError
    return found


def _pair(text: str) -> tuple[int, float]:
    devices, _, rate = text.partition("=")
    return int(devices), float(rate)


def add_commands(commands: Any) -> None:
    """Add this benchmark to the command line of ``benchmark.py``."""
    command = commands.add_parser("roofline", help="a step on devices that are not at hand")
    command.add_argument(
        "--config", default="configs/autoformer_imagenet.py:B", help="FILE or FILE:VARIANT"
    )
    command.add_argument("--device", default="tpu-v5p", help=", ".join(DEVICES))
    command.add_argument("--devices", type=_numbers, default=[1, 8, 256, 4096], metavar="N,N,...")
    command.add_argument("--rules", default="replicated", choices=RULES)
    command.add_argument("--model", type=int, default=2, help="devices that share a tensor")
    command.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    command.add_argument("--batch", type=int, default=0, help="of all devices; 0: the config's")
    command.add_argument("--per-device", type=int, default=0, help="images of each; 0: of --batch")
    command.add_argument(
        "--measured", type=_pair, nargs="+", default=[], metavar="N=RATE",
        help="images a second that were measured on N devices, to stand beside",
    )  # fmt: skip
    command.set_defaults(run=roofline)
