"""NASViT's modules alone: blocks of both kinds, rows of positions, resizing, divisible widths."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax import traverse_util

from nasjax.interop.nasvit import CONVOLUTIONAL, TRANSFORMER, tensor_of
from nasjax.models.inverted_residual import (
    BlockSizes,
    InvertedResidual,
    hidden_width,
    make_divisible,
    squeeze_width,
)
from nasjax.models.talking_attention import (
    TransformerBlock,
    TransformerSizes,
    relative_rows,
    resize_cubic,
    resize_position_table,
)
from tests.golden.fixture import Fixture
from tests.golden.outcome import Case, Quantity

_SIDE = 18  # of the map that the tables of positions cover


def matches(fixture: Fixture) -> bool:
    """Cases of NASViT's transformer block."""
    cases = fixture.document.get("cases") or []
    return any(case.get("name") == "transformer_block" and "C" in case for case in cases)


def check(fixture: Fixture) -> Iterator[Case]:
    """Every case, in the file's order."""
    handlers = {
        "transformer_block": _transformer,
        "relative_position_rows": _rows,
        "mbconv_block": _convolutional,
        "bicubic_resize": _bicubic,
        "position_table_resize": _table,
        "make_divisible": _divisible,
    }
    for case in fixture.get("cases"):
        quantities = tuple(handlers[case["name"]](fixture, case))
        about = [str(case[key]) for key in ("output", "size") if key in case][:1]
        yield Case(" ".join([case["name"], *about]), case.get("bar", "all"), quantities)


def _maps(fixture: Fixture, tag: str) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(fixture.input(tag), 1, -1))


def _variables(
    fixture: Fixture,
    module: nn.Module,
    x: np.ndarray,
    names: Mapping[str, str],
    prefix: str,
    rows: Sequence[int] = (0, 0),
) -> Any:
    """Variables of a block: leading slices of the tensors, the centre of kernels, one row."""

    def init() -> Any:
        return module.init(jax.random.key(0), x, False)

    shapes = nn.unbox(jax.eval_shape(init))
    weights, flat = fixture.weights(), {}
    for path, array in traverse_util.flatten_dict(shapes).items():
        own = tensor_of(names, f"{prefix}.", path[1:], path, None, array.ndim)
        tensor = weights[own.name]
        if array.ndim == 3:
            tensor = tensor[rows[0], rows[1]][None, None]
        value = np.moveaxis(tensor, (0, 1), (-1, -2)) if array.ndim in (2, 4) else tensor
        if path[-1] == "positions":
            value = tensor
        crop = (value.shape[0] - array.shape[0]) // 2 if array.ndim == 4 else 0
        value = value[crop : crop + array.shape[0]]
        if array.ndim == 4:
            value = value[:, crop : crop + array.shape[1]]
        flat[path] = value[tuple(slice(n) for n in array.shape)]
        assert flat[path].shape == array.shape
    return traverse_util.unflatten_dict(flat)


def _run(module: nn.Module, variables: Any, x: np.ndarray) -> tuple[np.ndarray, Any]:
    """Output, channels first, and those of the modules within."""

    def apply(variables: Any, x: Any) -> Any:
        return module.apply(variables, x, False, capture_intermediates=True, mutable=True)

    y, changed = jax.jit(apply)(variables, x)
    return np.moveaxis(np.asarray(y), -1, 1), changed["intermediates"]


def _transformer(fixture: Fixture, case: Mapping[str, Any]) -> Iterator[Quantity]:
    x, width = _maps(fixture, case["input"]), case["C"]
    module = TransformerBlock(TransformerSizes(width, width))
    rows = (case["depth_key"], case["token_key"])
    variables = _variables(fixture, module, x, TRANSFORMER, "block", rows)
    y, within = _run(module, variables, x)
    part = y if case["output_of"] == "all" else y[:, :, ::4, ::4]
    yield Quantity.of("output", "output", part, fixture.array(case["output"]))
    parts = {"norm1": "norm_attention", "attention": "attention"}
    for theirs, ours in parts.items():
        if theirs in case:
            tokens = within[ours]["__call__"][0].reshape(len(x), -1, width)
            yield Quantity.of(theirs, "output", tokens, fixture.array(case[theirs]))


def _rows(fixture: Fixture, case: Mapping[str, Any]) -> Iterator[Quantity]:
    found = relative_rows(case["H"], case["H"], _SIDE)
    expected = fixture.array(case["output"])
    yield Quantity.of("rows", "count", int(np.array_equal(found, expected)), 1)


def _convolutional(fixture: Fixture, case: Mapping[str, Any]) -> Iterator[Quantity]:
    x, space = _maps(fixture, case["input"]), case["space"]
    inputs, outputs, expand = case["in_channels"], case["out_channels"], max(space["t"]) != 1
    hidden = hidden_width(inputs, case["expand"]) if expand else inputs
    sizes = BlockSizes(
        outputs,
        hidden,
        case["kernel"],
        space["s"],
        expand,
        squeeze_width(hidden) if space["se"] else 0,
        shortcut=outputs if inputs != outputs else 0,
    )
    module = InvertedResidual(sizes)
    variables = _variables(fixture, module, x, CONVOLUTIONAL, case["params_prefix"])
    y, within = _run(module, variables, x)
    yield Quantity.of("output", "output", y, fixture.array(case["output"]))
    shortcut = np.moveaxis(np.asarray(within["shortcut"]["__call__"][0]), -1, 1)
    yield Quantity.of("shortcut", "output", shortcut, fixture.array(case["shortcut"]))


def _bicubic(fixture: Fixture, case: Mapping[str, Any]) -> Iterator[Quantity]:
    found = resize_cubic(_maps(fixture, case["input"]), (case["size"],) * 2)
    expected = fixture.array(case["output"])
    yield Quantity.of("images", "output", np.moveaxis(np.asarray(found), -1, 1), expected)


def _table(fixture: Fixture, case: Mapping[str, Any]) -> Iterator[Quantity]:
    found = resize_position_table(fixture.input(case["input"]), case["new_window"])
    yield Quantity.of("table", "output", found, fixture.array(case["output"]))


def _divisible(fixture: Fixture, case: Mapping[str, Any]) -> Iterator[Quantity]:
    found = [make_divisible(value, case["divisor"]) for value in case["values"]]
    yield Quantity.of("widths", "count", int(found == case["nasvit"]), 1)
