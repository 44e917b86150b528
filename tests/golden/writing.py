"""Writes golden files of sizes of its own, with the NumPy network in place of the authors' code."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np

from nasjax.interop.autoformer import name_table
from tests.golden.fixture import draw
from tests.interop import numpy_vit

SEED = 12
SETTINGS = {
    **numpy_vit.SETTINGS,
    "img_size": 12,
    "patch_size": 4,
    "in_chans": 2,
    "num_classes": 3,
    "embed_dim": 80,
    "depth": 2,
    "num_heads": 3,
    "max_relative_position": 1,
}
ARCHS = {
    "narrow": {"embed_dim": 40, "depth": 2, "num_heads": [2, 1], "mlp_ratio": [1.1, 2.0]},
    "wide": {"embed_dim": 72, "depth": 1, "num_heads": [2], "mlp_ratio": [0.5]},
}
VARIANTS = {"plain": {"gp": False, "abs_pos": False, "relative_position": False}}


def autoformer_file(folder: pathlib.Path, **change: Any) -> pathlib.Path:
    """A file of the kind ``autoformer`` with two variants; ``change`` replaces parts of it."""
    document, arrays = _header(SETTINGS), {}
    names = set(numpy_vit.shapes(SETTINGS))
    document["variants"] = {
        name: {
            "overrides": overrides,
            "params_absent": sorted(names - set(numpy_vit.shapes(SETTINGS | overrides))),
            "params_changed": [],
        }
        for name, overrides in VARIANTS.items()
    }
    for variant, overrides in {"main": {}, **VARIANTS}.items():
        settings = SETTINGS | overrides
        for name, arch in ARCHS.items():
            case = {"name": f"{variant}_{name}", "variant": variant, "arch": _theirs(arch)}
            case |= {"input": "x", "output": case["name"], "bar": "all"}
            case["num_params"] = numpy_vit.num_params(arch, settings)
            case["flops"] = numpy_vit.flops(arch, settings)
            document["cases"].append(case)
            arrays[case["output"]] = _output(settings, arch)
    return _save(folder / "small.json", document | change, arrays)


def tanglenas_file(folder: pathlib.Path) -> pathlib.Path:
    """A file of the kind ``tanglenas_vit`` with a one-hot case."""
    config = {"embed_dim": [40, 72], "layer_num": [1, 2], "num_heads": [2, 1]}
    config["mlp_ratio"] = [2.0, 1.1, 0.5]
    settings = SETTINGS | {"embed_dim": 72, "num_heads": 2}
    document = _header(settings, tanglenas=True)
    document["constructor"]["config"] = config
    document["variants"] = {"search": "use_we_v2=True"}
    document["target"] = {"tag": "target:x", "shape": [4, settings["num_classes"]]}
    arch, arrays = ARCHS["narrow"], {}
    for choice, options in config.items():
        key = {"layer_num": "depth"}.get(choice, choice)
        arrays[choice] = np.stack([np.equal(options, v) for v in np.ravel(arch[key])])
    arrays = {key: value.astype(np.float32) for key, value in arrays.items()}
    arrays["out"] = _output(settings, arch, tanglenas=True)
    loss = float(np.sum(arrays["out"] * draw(SEED, **_drawn(document["target"], "tag"))))
    case = {"name": "narrow", "variant": "search", "given": "mixture weights", "loss": loss}
    case |= {"mixture": {c: c for c in config}, "input": "x", "output": "out", "bar": "all"}
    document["cases"].append(case)
    return _save(folder / "tangled.json", document, arrays)


def cells_file(folder: pathlib.Path) -> pathlib.Path:
    """A file of the kind ``darts`` with a network that pools alone, and alphas to decode."""
    operations = ["skip_connect", "dil_conv_5x5", "dil_conv_3x3", "sep_conv_5x5", "sep_conv_3x3"]
    operations += ["avg_pool_3x3", "max_pool_3x3", "none"]
    pools = [["max_pool_3x3", begin] for begin in (0, 1) * 4]
    network = {"genotype": {"normal": pools, "reduce": pools}, "num_classes": 3, "bar": "all"}
    network |= {"count_only": True, "C": 4, "layers": 1, "auxiliary": False}
    # Stem and its norm; two 1x1 convolutions with norms, as the only cell reduces; the head.
    network["num_params"] = 27 * 12 + 2 * 12 + 2 * (12 * 8 + 2 * 8) + (4 * 8 + 1) * 3
    names = {"normal": "alpha:n", "reduce": "alpha:r"}
    genotype = {kind: _decode(draw(SEED, n, (14, 8)), operations) for kind, n in names.items()}
    decoded = {"decode": True, "alphas_recipe": list(names.values()), "genotype": genotype}
    document = {"ops": operations, "seed": SEED, "models": {}, "cases": [network, decoded]}
    return _save(folder / "cells.json", document, {})


def _decode(alphas: np.ndarray, operations: list[str]) -> list[list[Any]]:
    weights = np.exp(alphas) / np.exp(alphas).sum(-1, keepdims=True)
    weights[:, operations.index("none")] = 0
    pairs: list[list[Any]] = []
    for node in range(4):
        first = sum(range(2, 2 + node))
        rows = weights[first : first + 2 + node]
        for begin in np.argsort(-rows.max(-1))[:2]:
            pairs.append([operations[rows[begin].argmax()], int(begin)])
    return pairs


def _header(settings: dict[str, Any], tanglenas: bool = False) -> dict[str, Any]:
    params = [
        {"name": _renamed(name) if tanglenas else name, "shape": shape, "scale": 0.1}
        | ({"kind": "abs", "offset": 0.5} if "norm.weight" in name else {})
        for name, shape in numpy_vit.shapes(settings).items()
    ]
    size = settings["img_size"]
    shape = [4, settings["in_chans"], size, size]
    return {
        "constructor": dict(settings),
        "seed": SEED,
        "params": params,
        "input": [{"tag": "x", "shape": shape}],
        "cases": [],
    }


def _renamed(name: str) -> str:
    path, layer = name_table().locate(name)
    return name_table().entry(path).names[:2][-1].format(layer)


def _output(settings: dict[str, Any], arch: Any, tanglenas: bool = False) -> np.ndarray:
    header = _header(settings, tanglenas)
    names = numpy_vit.shapes(settings)
    entries = zip(names, header["params"], strict=True)
    weights = {name: draw(SEED, **entry) for name, entry in entries}
    images = draw(SEED, "input:x", header["input"][0]["shape"])
    return numpy_vit.forward(weights, arch, images, settings).astype(np.float32)


def _drawn(entry: dict[str, Any], key: str) -> dict[str, Any]:
    return {"name": entry[key], "shape": entry["shape"]}


def _theirs(arch: dict[str, Any]) -> dict[str, Any]:
    depth = arch["depth"]
    return {**arch, "layer_num": depth, "embed_dim": [arch["embed_dim"]] * depth}


def _save(path: pathlib.Path, document: Any, arrays: dict[str, np.ndarray]) -> pathlib.Path:
    path.write_text(json.dumps(document))
    np.savez(path.with_suffix(".npz"), **arrays)
    return path
