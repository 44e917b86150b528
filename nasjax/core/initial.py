"""Drawing the variables of a module, and their shapes, from one trace of it."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.extend import core as jex
from jax.interpreters import partial_eval

from nasjax.core.errors import NasjaxError


def draw(module: nn.Module, rngs: Any, input_shape: Sequence[int], **options: Any) -> Any:
    """Draw the variables of ``module``, without boxes; see :func:`draw_boxed`."""
    return nn.unbox(draw_boxed(module, rngs, input_shape, **options))


def draw_boxed(module: nn.Module, rngs: Any, input_shape: Sequence[int], **options: Any) -> Any:
    """Draw the variables of ``module``, in the boxes that name their axes.

    Nothing but the initialisers is run, one by one: as one program, the hundreds of draws of a
    DARTS network take XLA more than a minute to compile.

    Args:
      module: called as ``module(inputs, **options)``.
      rngs: a key, or one for each kind of chance.
      input_shape: shape of one input, without the batch.
      **options: what else the module is called with.

    Raises:
      NasjaxError: if what is drawn depends on the input.
    """
    keys = dict(rngs) if isinstance(rngs, Mapping) else {"params": rngs}
    keys.setdefault("dropout", keys.get("params"))
    kinds = tuple((kind, key.shape, key.dtype) for kind, key in sorted(keys.items()))
    drawing, boxed = _traced(module, tuple(input_shape), kinds, options)
    drawn = jex.jaxpr_as_fun(drawing)(*(keys[kind] for kind, *_ in kinds))
    return jax.tree.unflatten(jax.tree.structure(boxed), drawn)


def shapes_boxed(module: nn.Module, input_shape: Sequence[int], **options: Any) -> Any:
    """Shapes of what :func:`draw_boxed` draws, worked out once for modules that are equal.

    Args:
      module: called as ``module(inputs, **options)``.
      input_shape: shape of one input, without the batch.
      **options: what else the module is called with.
    """
    dtype = jax.eval_shape(lambda: jax.random.key(0)).dtype
    kinds = (("dropout", (), dtype), ("params", (), dtype))
    return _traced(module, tuple(input_shape), kinds, options)[1]


def _traced(
    module: nn.Module,
    input_shape: tuple[int, ...],
    kinds: tuple[tuple[str, tuple[int, ...], Any], ...],
    options: Mapping[str, Any],
) -> tuple[jex.ClosedJaxpr, Any]:
    """The draws of ``module`` as a function of the keys in the order of ``kinds``, and shapes."""
    arguments = module, input_shape, kinds, jnp.result_type(float)
    try:
        hash(module)
    except TypeError:  # Flax compares modules by their attributes, of which one is mutable
        return _trace.__wrapped__(*arguments, **options)
    return _trace(*arguments, **options)


@functools.lru_cache(maxsize=64)  # tracing a network of cells takes seconds
def _trace(
    module: nn.Module,
    input_shape: tuple[int, ...],
    kinds: tuple[tuple[str, tuple[int, ...], Any], ...],
    precision: Any,
    **options: Any,
) -> tuple[jex.ClosedJaxpr, Any]:
    del precision  # a trace without float64 must not serve where it is enabled
    keys = {kind: jax.ShapeDtypeStruct(shape, dtype) for kind, shape, dtype in kinds}
    example = jax.ShapeDtypeStruct((1, *input_shape), jnp.float32)
    init = functools.partial(module.init, **options)
    whole, boxed = jax.make_jaxpr(init, return_shape=True)(keys, example)
    # What follows from the draws but is not among the variables, the network's output, is left out.
    jaxpr, used = partial_eval.dce_jaxpr(
        whole.jaxpr, [True] * len(whole.out_avals), [True] * len(keys) + [False]
    )
    if used[-1]:
        raise NasjaxError(
            f"the variables of {type(module).__name__} depend on its input; nasjax draws them "
            "without one: let its initialisers use the shape of the input alone."
        )
    return jex.ClosedJaxpr(jaxpr, whole.consts), boxed
