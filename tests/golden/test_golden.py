"""nasjax agrees with the authors' numbers; and the checker can tell when it does not."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from tests.golden import writing
from tests.golden.fixture import draw
from tests.golden.outcome import Case, Quantity, relative_error
from tests.golden.run import check_files

ROOT = pathlib.Path(__file__).parents[2]


# Some cases of each kind are enough for every day; with ``-m slow``, and by the command, all are
# checked. Gradients and networks of plain sharing take minutes to trace.
VITAS = ("largest", "mid_patch_7", "with_identity", "shared_qkv_mid", "standalone_mid")
DARTS = {"net_aux", "net_DARTS_V2", "we2_soft1_train", "we2_onehot_DARTS_V2_train"}
DARTS |= {"net_g0_eval", "we2_soft0_eval", "we2_onehot_g0_eval"}
NASVIT = ("random_1", "train_mode_random_2")


def plain_or_argmax(case):
    return "count_only" not in case and (case.get("model") in ("ws", "we1") or "path" in case)


LEFT_OUT = {
    "autoformer": lambda case: not case["name"].startswith(("mid", "no_", "smallest")),
    "darts": lambda case: plain_or_argmax(case) or not DARTS.isdisjoint(map(str, case.values())),
    "nasvit": lambda case: case["name"] != "table13_A1",
    "nasvit_small": lambda case: case["name"] not in NASVIT,
    "nb201": plain_or_argmax,
    "pit": lambda case: case["name"].startswith(("TF_TAS", "PiT-XS", "PiT-S")),
    "tanglenas_vit": lambda case: case["name"].startswith(("s2_", "outmix_")),
    "toy_cell": plain_or_argmax,
    "toy_conv_macro": lambda case: case.get("output", "0")[-1] != "0" or "ws" in str(case),
    "vitas": lambda case: case["name"] not in VITAS,
}
SMALL = [
    "autoformer_counts",
    "nasvit_counts",
    "nasvit_losses",
    "nasvit_units",
    "relaxations",
    "vitas_counts",
]


def check(path, capsys, left_out=lambda case: False):
    cases = json.loads(path.read_text())["cases"]
    status = check_files([path], lambda case: not left_out(case))
    lines = capsys.readouterr().out.splitlines()
    assert status == 0, "\n".join(line for line in lines if line.endswith("FAIL"))
    assert len(lines) >= sum(not left_out(case) for case in cases) > 0
    assert all(line.endswith(("  ok", "  info")) for line in lines)
    assert any(line.endswith("  ok") for line in lines)


# The parts of "nasvit" are those of "nasvit_small", at full size.
@pytest.mark.parametrize("stem", sorted({*SMALL, *LEFT_OUT} - {"nasvit"}))
def test_the_authors_numbers(shared, stem, capsys):
    left_out = LEFT_OUT.get(stem, lambda case: False)
    check(shared / "golden" / f"{stem}.json", capsys, left_out)


@pytest.mark.slow
@pytest.mark.parametrize("stem", LEFT_OUT)
def test_all_of_the_authors_numbers(shared, stem, capsys):
    check(shared / "golden" / f"{stem}.json", capsys)


@pytest.mark.parametrize(
    "part", ["small", pytest.param("small_ten_classes", marks=pytest.mark.slow)]
)
def test_the_authors_scores(shared, tmp_path, part, capsys):
    """One architecture; the command checks all, and those of full size."""
    document = json.loads((shared / "golden" / "proxies.json").read_text())
    for name in ("small", "small_ten_classes", "autoformer_tiny"):
        document[name]["cases"] = document[name]["cases"][:1] if name == part else []
    path = tmp_path / "proxies.json"
    path.write_text(json.dumps(document))
    path.with_suffix(".npz").symlink_to(shared / "golden" / "proxies.npz")
    assert check_files([path]) == 0, capsys.readouterr().out
    assert capsys.readouterr().out.count("  ok\n") == 1


def test_other_sizes_seeds_and_variants(tmp_path, capsys):
    files = [writing.autoformer_file(tmp_path), writing.tanglenas_file(tmp_path)]
    assert check_files(files) == 0, capsys.readouterr().out
    assert capsys.readouterr().out.count("  ok\n") == 5


def test_another_seed_fails(tmp_path, capsys):
    assert check_files([writing.autoformer_file(tmp_path, seed=13)]) == 1
    assert capsys.readouterr().out.count("  FAIL\n") == 4


def test_a_perturbed_output_or_count_fails(tmp_path, capsys):
    path = writing.autoformer_file(tmp_path)
    with np.load(path.with_suffix(".npz")) as stored:
        arrays = dict(stored)
    arrays["main_wide"][0, 0] += 1e-3 * np.max(np.abs(arrays["main_wide"]))
    np.savez(path.with_suffix(".npz"), **arrays)
    document = json.loads(path.read_text())
    document["cases"] = document["cases"][:2]
    document["cases"][0]["flops"] += 1
    path.write_text(json.dumps(document))
    assert check_files([path]) == 1
    narrow, wide = capsys.readouterr().out.splitlines()
    assert narrow.endswith("FAIL") and wide.endswith("FAIL")
    document["cases"][0]["bar"] = document["cases"][1]["bar"] = "none"
    path.write_text(json.dumps(document))
    assert check_files([path]) == 0
    assert all(line.endswith("info") for line in capsys.readouterr().out.splitlines())


def test_a_wrong_count_or_genotype_of_cells_fails(tmp_path, capsys):
    path = writing.cells_file(tmp_path)
    assert check_files([path]) == 0, capsys.readouterr().out
    assert capsys.readouterr().out.count("  ok\n") == 2
    document = json.loads(path.read_text())
    document["cases"][0]["num_params"] += 1
    document["cases"][1]["genotype"]["reduce"][0][0] = "avg_pool_3x3"
    path.write_text(json.dumps(document))
    assert check_files([path]) == 1
    assert capsys.readouterr().out.count("  FAIL\n") == 2


@pytest.mark.parametrize(
    "content, message",
    [
        ('{"constructor": {"brand": "new"}, "cases": []}', "no golden file of a known kind: auto"),
        ("[]", "holds no json object"),
        ("{", "cannot be read as json"),
    ],
)
def test_files_that_cannot_be_handled(tmp_path, capsys, content, message):
    path = tmp_path / "autoformer.json"
    path.write_text(content)
    assert check_files([path]) == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(str(path)) and message in line


def test_what_a_file_lacks_is_named(tmp_path, capsys):
    path = writing.autoformer_file(tmp_path)
    path.with_suffix(".npz").unlink()
    assert check_files([path]) == 1
    assert "small.npz lacks the array 'main_narrow'" in capsys.readouterr().out


def test_the_command(tmp_path):
    path = tmp_path / "odd.json"
    path.write_text('{"cases": []}')
    command = [sys.executable, "-m", "tests.golden", str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ)
    assert done.returncode == 1 and "no golden file of a known kind" in done.stdout


def test_drawing_follows_name_and_seed():
    z = draw(0, "a", (3,))
    assert z.dtype == np.float32
    np.testing.assert_array_equal(draw(0, "a", [3], 0.5, 1.0, "abs"), 1 + 0.5 * abs(z))
    assert not np.array_equal(z, draw(0, "b", (3,)))
    assert not np.array_equal(z, draw(1, "a", (3,)))


def test_relative_error():
    assert relative_error([1.0, 2.0], [1.0, 4.0]) == 0.5
    assert relative_error([1e-3], [0.0]) == 1e-3
    assert relative_error(np.ones((1, 2)), np.ones(2)) == np.inf


def test_what_counts():
    loss, output = Quantity("loss", "loss", 1.0), Quantity("output", "output", 1e-5)
    assert Case("a", "all", (loss, output)).status == "FAIL"
    assert Case("a", "outputs", (loss, output)).status == "ok"
    assert Case("a", "none", (loss, output)).status == "info"
    assert "(loss 1.0e+00)  output 1.0e-05" in Case("a", "outputs", (loss, output)).line("stem")
    assert not Quantity("output", "output", float("nan")).within
    assert Quantity.of("n", "count", 2**53 + 1, 2**53).error > 0
