"""The roofline on paper: limits of its formulas, its counts against the exact ones, its command."""

import dataclasses
import json
import pathlib
import sys

import benchmark
import jax
import jax.numpy as jnp
import pytest
from benchmark_roofline import DEVICES, RULES, predict
from experiment import plain
from roofline_work import Work, multiplied, of_config

import nasjax
from nasjax import spaces
from nasjax.core import architecture
from nasjax.core.errors import NasjaxError
from nasjax.models.convolution import convolve, depthwise_conv

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
# Of the size of AutoFormer-B in bfloat16.
WORK = Work(
    passes=2, flops=1.9e11, executed=2.1e11, traffic=8e8, kept=1.4e8, params=77_000_000,
    dtype="bfloat16", levels=2, state=16, update=32, masks=32, mask_flops=2.8e9, layers=17,
    divided=0.9, stream=3.9e6,
)  # fmt: skip


def exact(found):
    return sum(p.times * p.batch * p.rows * p.columns * p.depth for p in found)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("rules", RULES)
def test_limits_of_the_formulas(device, rules):
    device = DEVICES[device]
    alone = predict(WORK, device, 1, 32, rules=rules)
    assert alone.collectives == alone.latency == 0
    assert alone.useful / alone.compute == pytest.approx(WORK.flops / WORK.executed)
    eight, twice = (predict(WORK, device, 8, batch, rules=rules) for batch in (512, 1024))
    assert twice.compute == pytest.approx(2 * eight.compute)
    assert (twice.masks, twice.update) == (eight.masks, eight.update)
    assert twice.memory < 2 * eight.memory
    assert 0 < eight.latency < eight.collectives
    for one in (alone, eight, twice):
        assert one.terms[one.binds] == max(one.compute, one.memory, one.collectives)
        assert one.step[0] == one.terms[one.binds] <= one.step[1] <= 3 * one.step[0]
        assert 0 < one.utilisation[1] <= one.utilisation[0] < 1
        assert one.rate[0] == pytest.approx(one.batch / one.step[0])
    assert twice.batch == 2 * 1024  # of both levels


def test_what_sharding_divides():
    device = DEVICES["tpu-v5p"]
    whole, sharded, tensor = (predict(WORK, device, 64, 1024, rules=r) for r in RULES)
    assert sharded.masks == pytest.approx(whole.masks / 64)  # before they are gathered
    assert sharded.update == pytest.approx(whole.update / 64)
    assert sharded.bytes < whole.bytes
    # Two devices share 32 images: as much work as alone on 16, and sums of activations besides.
    assert tensor.compute == pytest.approx(whole.compute)
    assert tensor.images == 2 * whole.images
    assert tensor.masks == pytest.approx(whole.masks * (1 - 0.9 / 2))
    assert tensor.collectives > whole.collectives
    # A pass reads its weights twice and writes their gradients; its activations pass by once.
    moved = 16 * WORK.traffic + 3 * 2 * 2 * WORK.params
    assert whole.memory - whole.masks - whole.update == pytest.approx(moved / device.bandwidth)


def test_more_devices_than_images():
    found = predict(WORK, DEVICES["tpu-v5p"], 4096, 1024)
    assert (found.busy, found.images) == (1024, 1)
    assert found.utilisation[0] <= 1024 / 4096
    alone = predict(WORK, DEVICES["tpu-v5p"], 1024, 1024)
    assert found.compute == alone.compute and found.step[0] >= alone.step[0]
    uneven = predict(WORK, DEVICES["tpu-v5p"], 8, 9)
    assert (uneven.busy, uneven.images) == (8, 2)


def test_links_end_somewhere():
    inside, outside = (predict(WORK, DEVICES["h200"], n, 16 * n) for n in (8, 16))
    size = WORK.passes * WORK.params * 2
    ring = 2 * 7 / 8 * size / 450e9
    assert inside.collectives - inside.latency == pytest.approx(ring)
    between = 2 * 1 / 2 * (size / 8) / 50e9
    assert outside.collectives - outside.latency == pytest.approx(ring + between)
    # A torus that is not closed has half of its links.
    small, large = (predict(WORK, DEVICES["tpu-v5e"], n, n) for n in (128, 256))
    times = [p.collectives - p.latency for p in (small, large)]
    assert times[0] == pytest.approx(2 * times[1], rel=0.01)


def test_memory_that_does_not_fit():
    fits, parts = (predict(WORK, DEVICES["tpu-v5e"], 1, batch) for batch in (16, 1024))
    assert fits.micro_batches == 1 and fits.bytes < 16e9
    assert parts.micro_batches > 1 and parts.bytes > 16e9
    huge = dataclasses.replace(WORK, params=10**9)
    assert predict(huge, DEVICES["tpu-v5e"], 1, 16).micro_batches == 0


def test_what_cannot_be_predicted_is_said():
    with pytest.raises(NasjaxError, match="no rules are called 'tensors'; did you mean 'tensor'"):
        predict(WORK, DEVICES["h200"], 8, 64, rules="tensors")
    with pytest.raises(NasjaxError, match="no axes called heads and mlp"):
        predict(dataclasses.replace(WORK, stream=0.0), DEVICES["h200"], 8, 64, rules="tensor")
    with pytest.raises(NasjaxError, match="cannot be divided into groups of 3"):
        predict(WORK, DEVICES["h200"], 8, 64, rules="tensor", model=3)
    with pytest.raises(NasjaxError, match="more than the 4096 that their links join"):
        predict(WORK, DEVICES["tpu-v4"], 8192, 8192)


def test_products_are_counted_exactly():
    def network(x, kernel, depthwise, matrix):
        x = jax.nn.swish(convolve(x, kernel, 2, 1))
        x = depthwise_conv(x, depthwise, 1, 1)
        x = jax.lax.scan(lambda x, _: (x @ matrix, None), x, None, length=3)[0]
        return jnp.einsum("bhwc,bhwd->bcd", x, x).sum()

    shapes = ((2, 12, 12, 3), (3, 3, 3, 8), (3, 3, 1, 8), (8, 8))
    given = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    gradient = jax.grad(network, (1, 2, 3))
    found = multiplied(jax.make_jaxpr(gradient)(*given).jaxpr)
    assert exact(found) == nasjax.count_multiply_adds(gradient, *given)
    (one,) = multiplied(jax.make_jaxpr(jnp.dot)(jnp.ones((100, 70)), jnp.ones((70, 3))).jaxpr)
    assert (one.rows, one.columns, one.depth) == (100, 3, 70)
    assert one.bytes == 4 * (7000 + 210 + 300)
    assert one.executed((1, 1, 1)) == exact([one])
    # Fewer tiles with the narrow matrix's columns as rows: 8 x 128 x 128 against 104 x 128 x 128.
    assert one.executed((8, 128, 128)) == 8 * 128 * 128
    vector = dataclasses.replace(one, columns=1)
    assert vector.executed((8, 128, 128)) == 0


def test_work_of_a_search_by_gradient():
    values = plain(_config("quickstart"))
    work = of_config(values, "float32", (1, 1, 1))
    supernet = spaces.make(**values["space"])
    largest = architecture.largest(supernet.space)
    assert (work.passes, work.levels, work.statistics, work.bytes) == (2, 2, 0, 4)
    assert work.flops == 2 * 6 * supernet.count("flops", largest)
    assert work.params == supernet.count("params", largest)
    # Images have no gradient, so a little less than three times the forward pass.
    assert 0.8 * work.flops < work.executed < work.flops
    # At least what each block reads and writes of the stream.
    assert work.kept > supernet.module.depth * 17 * 48 * 4
    assert work.mask_flops > 2 * 2 * 0.9 * work.params
    assert work.layers == 1 + supernet.module.depth
    half = of_config(values, "bfloat16", (1, 1, 1))
    assert half.masks < work.masks and half.kept < work.kept
    values["search"]["second_order"] = True
    with pytest.raises(NasjaxError, match="exact second order are not modelled"):
        of_config(values, "float32", (1, 1, 1))


def test_command_prints_table_and_json(capsys, monkeypatch):
    config = f"{CONFIGS / 'nasvit.py'}:digits"
    arguments = ["--config", config, "--device", "h200", "--devices", "1,8,256"]
    run(monkeypatch, *arguments, "--rules", "fully_sharded", "--measured", "8=1234")
    text = capsys.readouterr().out.splitlines()
    result = json.loads(text[-1])
    assert {"benchmark", "modelled_device", "work", "predictions", "device", "versions"} <= set(
        result
    )
    # Largest, smallest and two random ones, with sums of batch statistics.
    assert result["work"]["passes"] == 4 and result["work"]["levels"] == 1
    assert result["work"]["statistics"] > 0
    rows = {row["devices"]: row for row in result["predictions"]}
    assert list(rows) == [1, 8, 256]
    assert rows[1]["collectives"] == 0 and rows[256]["busy"] == 64
    assert rows[8]["measured_images_per_second"] == 1234
    assert rows[1]["measured_images_per_second"] is None
    lines = {line.split()[0]: line for line in text if line and line.split()[0] in ("1", "8")}
    assert lines["1"].endswith("not measured") and lines["8"].endswith("1,234")


def test_an_unknown_device_is_one_sentence(capsys, monkeypatch):
    with pytest.raises(SystemExit):
        run(monkeypatch, "--device", "h300")
    said = capsys.readouterr().err
    assert "no device is called 'h300'; these are known: tpu-v4, tpu-v5e," in said
    assert "Traceback" not in said


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "roofline", *arguments])
    benchmark.main()


def _config(name):
    return benchmark.benchmark_roofline.read_config(str(CONFIGS / f"{name}.py"))
