"""Multiply-adds of any JAX function, counted from its jaxpr.

XLA's own estimate sees the body of a loop once and counts every element-wise operation; this
counter multiplies loops out and counts what the field counts: matrix products and convolutions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from jax.extend import core as jex

_UNCOUNTED = "uncounted"


def uncounted(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """``function`` under ``jit``, with products that are not counted: the means of a norm."""

    def named(*args: jax.Array) -> jax.Array:
        return function(*args)

    named.__name__ = _UNCOUNTED  # which jaxprs carry, those of gradients too
    return jax.jit(named)


def count_multiply_adds(function: Callable[..., Any], *args: Any, **kwargs: Any) -> int:
    """Exact multiply-adds of the matrix products and convolutions in one call of ``function``.

    Args:
      function: anything JAX can trace.
      *args: its arguments, arrays or ``jax.ShapeDtypeStruct``.
      **kwargs: likewise.

    Example:
      >>> import jax.numpy as jnp
      >>> count_multiply_adds(lambda a, b: a @ b, jnp.ones((2, 3)), jnp.ones((3, 5)))
      30
    """
    return _count(jax.make_jaxpr(function)(*args, **kwargs).jaxpr)


def _count(jaxpr: Any) -> int:
    return sum(times * multiply_adds(equation) for equation, times in products(jaxpr))


def multiply_adds(equation: Any) -> int:
    """Multiply-adds of one matrix product or convolution."""
    params, out = equation.params, math.prod(equation.outvars[0].aval.shape)
    if equation.primitive.name == "dot_general":
        ((contract, _), _) = params["dimension_numbers"]
        left = equation.invars[0].aval.shape
        return out * math.prod(left[d] for d in contract)
    kernel = equation.invars[1].aval.shape
    return out * math.prod(kernel) // kernel[params["dimension_numbers"].rhs_spec[0]]


def products(jaxpr: Any, times: int = 1) -> Iterator[tuple[Any, int]]:
    """The matrix products and convolutions of a jaxpr, each with how many times it is done.

    Of several branches those of the dearest; of code written for several platforms the default,
    which says what is computed and not how.
    """
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if params.get("name") == _UNCOUNTED:
            continue
        if name in ("dot_general", "conv_general_dilated"):
            yield equation, times
        elif name == "cond":
            yield from products(_counted_branch(params).jaxpr, times)
        else:
            repeats = params["length"] if name == "scan" else 1
            for inner in inner_jaxprs(params):
                yield from products(inner, times * repeats)


def _counted_branch(params: dict[str, Any]) -> Any:
    branches, platforms = params["branches"], params.get("branches_platforms")
    if platforms and None in platforms:
        return branches[platforms.index(None)]
    return max(branches, key=lambda branch: _count(branch.jaxpr))


def inner_jaxprs(params: Mapping[str, Any]) -> Iterator[Any]:
    """The jaxprs among the parameters of an equation: of a call, a loop, a branch."""
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, jex.ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, jex.Jaxpr):
                yield item
