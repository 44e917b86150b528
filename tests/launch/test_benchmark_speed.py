"""The benchmarks of speed on a tiny configuration: what they report, never how fast it was."""

import json
import os
import pathlib
import sys

import benchmark
import benchmark_compile
import benchmark_input
import jax
import measuring
import numpy as np
import pytest
import workbench

from nasjax.core.errors import NasjaxError

TINY = str(pathlib.Path(__file__).with_name("tiny.py"))
# Less to compile: no relative positions, no shifts.
SMALL = ("space.reach=0", "search.recipe.augmentation.shift=0")
SAMPLED = ("search.sampler.kind=uniform",)  # one pass instead of two
BATCH = 8


def run(monkeypatch, capsys, command, *arguments, config=TINY, values=SMALL):
    given = [command, "--config", config, *arguments, "--batch", str(BATCH), "--set", *values]
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *given])
    benchmark.main()
    text = capsys.readouterr().out
    result = json.loads(text.splitlines()[-1])
    assert result["benchmark"] == command and result["config"] == config
    assert result["space"] == "vision_transformer" and result["batch"] == BATCH
    assert result["device"].endswith("x cpu") and set(result["versions"]) == {"nasjax", "jax"}
    return result, text


@pytest.mark.parametrize(
    "second", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["first", "second"]
)
def test_step_compares_search_with_plain_training(monkeypatch, capsys, second):
    more = ["--second-order"] * second
    together = 1 if second else 3
    values = (*SMALL, f"search.recipe.together={together}")
    result, text = run(monkeypatch, capsys, "step", "--pairs", "2", *more, values=values)
    assert result["together"] == together
    kinds = ["plain", "one_shot", "bilevel", "second_order"][: 3 + second]
    assert list(result["images"].values()) == [BATCH, BATCH, 2 * BATCH, 2 * BATCH][: 3 + second]
    seconds, each = result["seconds"], result["seconds_all"]
    for name in (*kinds, "masks", "matmul"):
        assert len(each[name]) == 2 and seconds[name] == pytest.approx(np.median(each[name]))

    def ratio(one, other):
        return pytest.approx(
            np.median([a / b for a, b in zip(each[one], each[other], strict=True)])
        )

    ratios = result["ratios"]
    for kind in kinds[1:]:
        assert ratios[f"{kind}_to_plain"] == ratio(kind, "plain")
    assert ratios["masks_share"] == ratio("masks", "bilevel")
    # Forward and backward of the largest network, of which a bilevel step has two.
    assert result["peak_flops_per_second"] == pytest.approx(2 * 2048**3 / min(each["matmul"]))
    flops = result["model_flops"]
    assert flops["plain"] == flops["one_shot"] == flops["bilevel"] / 2
    assert not second or flops["plain"] == flops["second_order"] / 5
    bench = workbench.open_workbench(options(SMALL))
    assert flops["plain"] == 6 * BATCH * bench.supernet.count("flops", bench.largest)
    for kind in kinds:
        rate = result["images"][kind] / seconds[kind]
        assert result["images_per_second"][kind] == pytest.approx(rate)
        used = flops[kind] / seconds[kind] / result["peak_flops_per_second"]
        assert result["utilisation"][kind] == pytest.approx(used)
        assert result["bytes"][kind]["temporary"] > 0
        assert f"\n{kind} " in text
    # Alphas and their moments.
    assert result["bytes"]["bilevel"]["arguments"] > result["bytes"]["plain"]["arguments"]


def test_scaling_compares_with_one_device(monkeypatch, capsys):
    rules = ("--rules", "replicated", "fully_sharded")
    arguments = ("--pairs", "1", "--devices", "1,2", *rules)
    result, text = run(monkeypatch, capsys, "scaling", *arguments, values=SMALL + SAMPLED)
    assert result["shared_cores"] and "virtual devices" in text
    assert (result["step"], result["kind"]) == ("one_shot", "weak")
    one, two, same, sharded = result["rows"]
    assert [row["images"] for row in result["rows"]] == [BATCH, 2 * BATCH] * 2
    assert {**same, "rules": "replicated"} == one  # one device is measured once
    assert (one["speedup"], one["efficiency"]) == (1, 1)
    for row in (two, sharded):
        faster = row["images_per_second"] / one["images_per_second"]
        assert row["speedup"] == pytest.approx(faster)
        assert row["efficiency"] == pytest.approx(faster / 2)
    # What the optimizer keeps is divided, too.
    assert sharded["bytes"]["arguments"] < two["bytes"]["arguments"]


def test_input_measures_both_ways(monkeypatch, capsys):
    monkeypatch.setattr(benchmark_input, "HEIGHT", 30)
    monkeypatch.setattr(benchmark_input, "WIDTH", 40)
    result, text = run(
        monkeypatch, capsys, "input", "--pairs", "2", "--workers", "1", "--files", "24",
        "--image-size", "16", "--seconds", "0.1",
    )  # fmt: skip
    placed, decoded = result["on_device"], result["decoded"]
    each = {name: np.array(values) for name, values in placed["seconds_all"].items()}
    loaded, bare, repeated = (
        each[n] for n in ("augmented", "normalised only", benchmark_input.REPEATED)
    )
    assert placed["ratios"] == {
        "augmentation_overhead": pytest.approx(np.median(loaded / bare)),
        "loader_overhead": pytest.approx(np.median(loaded / repeated)),
    }
    assert placed["host_seconds"] > 0 and placed["images"] == 2 * BATCH
    threads, workers = decoded["rows"]
    assert (threads["workers"], workers["workers"]) == (0, 1)
    for row in decoded["rows"]:
        assert row["images"] % BATCH == 0
        assert row["images_per_second"] == pytest.approx(row["images"] / row["seconds"])
        rate = row["images_per_second"]
        assert row["to_threads"] == pytest.approx(rate / threads["images_per_second"])
        cores = decoded["cores"] * decoded["one_core_images_per_second"]
        assert row["to_cores"] == pytest.approx(rate / cores)
        assert row["cores_busy"] is None or row["cores_busy"] > 0
    assert decoded["files"] == 24 and decoded["image_size"] == 16
    assert "1 processes" in text and "threads" in text


def test_compile_foresees_memory(monkeypatch, capsys):
    before = jax.config.jax_enable_compilation_cache
    arguments = ("--remat", "none", "full", "--step", "one_shot")
    result, text = run(monkeypatch, capsys, "compile", *arguments)
    assert jax.config.jax_enable_compilation_cache == before
    rows = result["policies"]
    assert [row["remat"] for row in rows] == ["none", "full"]
    assert (result["depth"], result["step"]) == (2, "one_shot")
    for row in rows:
        parts = [row[part] for part in ("trace", "lower", "compile")]
        assert min(parts) > 0 and row["seconds"] == pytest.approx(sum(parts))
        assert row["saved"] == rows[0]["bytes"]["temporary"] - row["bytes"]["temporary"]
        if row is not rows[0]:
            foreseen = rows[0]["predicted"] - row["predicted"]
            assert row["saved_to_predicted"] == pytest.approx(row["saved"] / foreseen)
    assert "predicted" in text


def options(values=(), config=TINY, batch=BATCH, dtype=""):
    return benchmark.argparse.Namespace(config=config, set=values, batch=batch, dtype=dtype)


def test_kept_bytes_are_those_of_the_activations():
    bench = workbench.open_workbench(options(dtype="bfloat16"))
    # Two blocks of width 12, two heads of 4, hidden width 24; 4 patches and a token in 2 x 2 rows.
    whole = 2 * (4 * 12 + 4 * 8 + 2 * 24 + 2 * 6) + (4 + 2) * 2 * 5
    tokens = BATCH * 5
    assert benchmark_compile.kept_bytes(bench, "none") == tokens * 2 * whole
    assert benchmark_compile.kept_bytes(bench, "full") == tokens * (2 * (2 * 12) + whole)
    # Input; queries, keys, values and what is mixed of them; two projections; hidden.
    dots = 2 * (12 + 4 * 8 + 12 + 24 + 12)
    assert benchmark_compile.kept_bytes(bench, "dots") == tokens * (2 * dots + whole)
    maps = dots + 4 * 2 * 5  # a weight for each head and token
    assert benchmark_compile.kept_bytes(bench, "maps") == tokens * (2 * maps + whole)
    assert benchmark_compile.kept_bytes(bench, "another") is None
    single = workbench.open_workbench(options(dtype="float32"))
    whole = 4 * (4 * 12 + 4 * 8 + 2 * 24 + 2 * 6) + 4 * 2 * 5  # its softmax is the float32 one
    assert benchmark_compile.kept_bytes(single, "none") == tokens * 2 * whole
    # JAX's own attention, without relative positions, keeps two and has no name for them.
    plain = workbench.open_workbench(options(["space.reach=0"], dtype="float32"))
    whole = 4 * (4 * 12 + 4 * 8 + 2 * 24) + (4 + 4) * 2 * 5
    assert benchmark_compile.kept_bytes(plain, "none") == tokens * 2 * whole
    maps, dots = (benchmark_compile.kept_bytes(plain, name) for name in ("maps", "dots"))
    assert maps == dots


def test_utilisation_is_a_part_of_the_peak():
    # 50 TFLOP in two seconds, of 100 TFLOP/s each of four devices.
    assert measuring.utilisation(50e12, 2.0, 100e12, 4) == pytest.approx(1 / 16)
    assert measuring.utilisation(None, 2.0, 100e12) is None
    assert measuring.utilisation(50e12, 2.0, None) is None


def test_peaks_are_those_of_the_precision(monkeypatch):
    assert measuring.published_peak("TPU v4", "bfloat16") == 275e12
    assert measuring.published_peak("TPU v4", "float32") == 275e12
    assert measuring.published_peak("NVIDIA H200", "float32") == pytest.approx(494.7e12)
    assert measuring.published_peak("NVIDIA H200 MIG 1g.18gb", "bfloat16") is None
    assert measuring.published_peak("abacus", "bfloat16") is None
    with jax.default_matmul_precision("highest"):
        assert measuring.published_peak("NVIDIA H200", "float32") == pytest.approx(66.9e12)
        assert measuring.published_peak("TPU v4", "float32") is None


def test_cpu_seconds_count_what_is_done():
    before = measured = benchmark_input._cpu_seconds()
    while measured is not None and measured < before + 0.05:
        sum(range(10000))
        measured = benchmark_input._cpu_seconds()
    assert measured is not None or not os.path.exists("/proc/self/stat")


def test_a_space_with_a_static_choice_is_sampled():
    config = str(pathlib.Path(TINY).parents[2] / "configs" / "vitas.py")
    bench = workbench.open_workbench(options(config=config))
    assert not bench.mixes and bench.searched == workbench.ONE_SHOT
    with pytest.raises(NasjaxError, match="static choices"):
        bench.require(workbench.BILEVEL)
    fixed = workbench.open_workbench(options())
    assert fixed.mixes and fixed.searched == workbench.BILEVEL


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("search.recipe.epoch=3", "no 'epoch' there; did you mean 'epochs'"),
        ("serch.recipe.epochs=3", "no 'serch' there; did you mean 'search'"),
        ("space.depth", "no value"),
        ("space.bogus=3", "cannot be built so"),
    ],
)
def test_overrides_that_fit_nothing_are_named(value, message):
    with pytest.raises(NasjaxError, match=message):
        workbench.open_workbench(options([value]))


def test_devices_that_do_not_exist_end_in_one_sentence(monkeypatch, capsys):
    jax.devices()
    given = ["benchmark.py", "scaling", "--config", TINY, "--devices", "1,4096"]
    monkeypatch.setattr(sys, "argv", given)
    with pytest.raises(SystemExit):
        benchmark.main()
    assert "4096 devices are asked for" in capsys.readouterr().err
