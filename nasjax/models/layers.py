"""Layers with named axes, shared by the networks of ``nasjax.models``.

They are ordinary Flax modules. Two things are particular to them: parameters carry the names of
their axes as logical-partitioning metadata, and normalisation reads from the optional collection
``"active"`` how much of each channel is there (absent: all of it).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from nasjax.core.errors import SpaceError
from nasjax.core.flops import uncounted
from nasjax.core.masked import opened
from nasjax.core.precision import at_least_float32

Dtype = Any
Initializer = jax.nn.initializers.Initializer
Names = tuple[str | None, ...]

truncated_normal = nn.initializers.truncated_normal(0.02)


@functools.cache
def uniform(gain: float = 1.0) -> Initializer:
    """Uniform with bound ``gain / sqrt(inputs)``; 1 is PyTorch's default for its layers."""
    return nn.initializers.variance_scaling(gain**2 / 3, "fan_in", "uniform")


def kernel_initializer(std: float | None) -> Initializer | None:
    """Truncated normal of deviation ``std``; None, for 1 / sqrt(inputs), stays None."""
    return None if std is None else nn.initializers.truncated_normal(std)


def fan_in_normal(inputs: int) -> Initializer:
    """Truncated normal of deviation 1 / sqrt(inputs)."""
    return nn.initializers.truncated_normal(inputs**-0.5)


def named(init: Initializer, names: Names) -> Any:
    """``init`` for a parameter whose axes are called ``names``."""
    return nn.with_logical_partitioning(init, names)


def ask(
    module: nn.Module, declares: bool, name: str, shape: tuple[int, ...] = (), axes: Names = ()
) -> Any:
    """A variable of the collection ``"active"`` that ``module`` asks for; None where it is absent.

    Its metadata names the axes whose expected mask is asked for, and gains the stack's where
    layers are scanned; without axes it is the mass of the operations that the module is part of.
    """
    if module.is_initializing():
        if declares:
            ones: Any = functools.partial(jnp.ones, shape)
            module.variable("active", name, named(ones, axes))
        return None
    return module.get_variable("active", name)


def writes(arrays: Iterable[jax.Array]) -> jax.Array:
    """Whether a layer adds anything: any entry of the ``arrays`` that make its output is not zero.

    It does not where it is beyond the depth of a sub-network at maximal shapes.
    """
    return jnp.any(jnp.stack([jnp.any(array != 0) for array in arrays]))


class Linear(nn.Module):
    """A linear map of the last axis onto one or several axes, as one 2-D matrix product.

    Tokens are flattened into rows, which a CPU multiplies faster than a batch of 3-D operands.

    Attributes:
      features: sizes of the axes put in place of the contracted ones.
      kernel_axes: names of the kernel's axes, contracted ones first.
      bias_axes: names of the bias's axes.
      contract: how many trailing axes of the input are contracted [1].
      bias_shape: shape in which the bias is stored, where not that of ``features``.
      use_bias: whether to add a bias [True].
      dtype: of the computation (None: that of the input).
      param_dtype: of the parameters.
      kernel_init: initialiser of the kernel; None for a truncated normal of standard deviation
        1 / sqrt(inputs) [truncated normal of 0.02].
      bias_init: initialiser of the bias [zeros].
    """

    features: tuple[int, ...]
    kernel_axes: Names
    bias_axes: Names = ()
    contract: int = 1
    bias_shape: tuple[int, ...] | None = None
    use_bias: bool = True
    dtype: Dtype = None
    param_dtype: Dtype = jnp.float32
    kernel_init: Initializer | None = truncated_normal
    bias_init: Initializer = nn.initializers.zeros_init()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map ``(..., inputs)`` to ``(..., *features)``."""
        inputs = x.shape[x.ndim - self.contract :]
        init = fan_in_normal(math.prod(inputs)) if self.kernel_init is None else self.kernel_init
        kernel = self.param(
            "kernel",
            named(init, self.kernel_axes),
            (*inputs, *self.features),
            self.param_dtype,
            unbox=False,
        )
        bias = None
        if self.use_bias:
            shape = self.bias_shape or self.features
            bias = self.param(
                "bias", named(self.bias_init, self.bias_axes), shape, self.param_dtype
            )
        lead = x.shape[: x.ndim - self.contract]

        # The superposed kernel is made again in the backward pass: kept, it would be a copy of
        # the weights of all layers.
        @functools.partial(jax.checkpoint, prevent_cse=False)
        def product(x: jax.Array, kernel: Any) -> jax.Array:
            stored = getattr(kernel, "value", kernel).dtype  # in a box or not
            dtype = self.dtype or jnp.promote_types(x.dtype, stored)
            rows = x.astype(dtype).reshape(math.prod(lead), math.prod(inputs))
            return rows @ opened(kernel, dtype).reshape(math.prod(inputs), -1)

        y = kept(product(x, kernel))
        if bias is not None:
            y = y + bias.astype(y.dtype).reshape(1, -1)
        return y.reshape(*lead, *self.features)


def dense(
    features: int, name: str, names: Names = (), bias: str | None = None, gain: float = 1.0
) -> Linear:
    """A linear map whose kernel begins uniform with bound ``gain / sqrt(inputs)``, its bias zero.

    Args:
      features: outputs.
      name: of the module.
      names: of the kernel's axes.
      bias: name of the bias's axis.
      gain: 1 is PyTorch's default.
    """
    return Linear((features,), names, (bias,), kernel_init=uniform(gain), name=name)


def layer_norm(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    active: jax.Array | None,
    epsilon: float,
    whole: bool = False,
) -> jax.Array:
    """Normalise the last axis of ``x (..., channels)`` in float32, channels weighed by ``active``.

    Args:
      x: the input.
      scale: factor of each channel (channels,).
      bias: offset of each channel (channels,).
      active: how much of each channel is there (channels,); None for all of all.
      epsilon: added to the variance.
      whole: whether mean and variance are those of a whole example, all but the first axis.
    """
    return _layer_norm(x, scale, bias, active, epsilon, whole)


@uncounted
def _weighted_sum(values: jax.Array, weight: jax.Array) -> jax.Array:
    # A product with a vector: its gradient in the weights is another, not a pass of its own.
    return jnp.matmul(values, weight, precision=jax.lax.Precision.HIGHEST)[..., None]


# Recomputed in the backward pass: the gradient of the active channels would otherwise keep four
# more activations per block.
@functools.partial(jax.checkpoint, static_argnums=(4, 5), prevent_cse=False)
def _layer_norm(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    active: jax.Array | None,
    epsilon: float,
    whole: bool,
) -> jax.Array:
    def mean(values: jax.Array) -> jax.Array:
        per_token = _weighted_sum(values, weight)
        tokens = tuple(range(1, x.ndim - 1))
        return jnp.mean(per_token, tokens, keepdims=True) if whole else per_token

    x = at_least_float32(x)
    if active is None:
        weight = jnp.full(x.shape[-1:], 1.0 / x.shape[-1], x.dtype)
    else:  # normalised once for all tokens, so that each statistic is one weighted sum
        active = at_least_float32(active)
        weight = active / jnp.maximum(jnp.sum(active), 1e-6)
    centred = x - mean(x)
    variance = mean(jnp.square(centred))
    return centred * (jax.lax.rsqrt(variance + epsilon) * scale) + bias


class LayerNorm(nn.Module):
    """Layer normalisation over the channels that are active.

    Mean and variance weigh each channel by the expected mask of its axis, read from
    ``active/.../scale``. Under a one-hot mixture they are exactly those of the sub-network; where
    the collection is absent this is plain layer normalisation.

    Attributes:
      axis: name of the normalised axis.
      epsilon: added to the variance [1e-5].
      dtype: of the result (None: that of the input); statistics are float32.
      param_dtype: of the parameters.
      whole: whether mean and variance are those of a whole example, all but the first axis,
        rather than of each token [False].
    """

    axis: str = "embed"
    epsilon: float = 1e-5
    dtype: Dtype = None
    param_dtype: Dtype = jnp.float32
    whole: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalise the last axis of ``(..., channels)``."""
        shape = (x.shape[-1],)
        init = nn.initializers
        scale = self.param("scale", named(init.ones_init(), (self.axis,)), shape, self.param_dtype)
        bias = self.param("bias", named(init.zeros_init(), (self.axis,)), shape, self.param_dtype)
        active: Any = None
        if self.has_variable("active", "scale"):
            active = self.get_variable("active", "scale")
        y = layer_norm(x, scale, bias, active, self.epsilon, self.whole)
        return y.astype(self.dtype or x.dtype)

    def active_fraction(self) -> jax.Array | float:
        """The part of the channels that is active: 1 in a network of its own."""
        if not self.has_variable("active", "scale"):
            return 1.0
        return jnp.mean(self.get_variable("active", "scale"))


# Recomputed in the backward pass, for which more than its input would be kept otherwise.
@functools.partial(jax.checkpoint, prevent_cse=False)
def gelu(x: jax.Array) -> jax.Array:
    """The exact GELU, in float32: ``x / 2 (1 + erf(x / sqrt(2)))``, as Torch has it.

    ``jax.nn.gelu`` has ``erfc``, which takes twice the time on a CPU.
    """
    y = at_least_float32(x)
    return (y * (0.5 * jax.lax.erf(y * 0.5**0.5) + 0.5)).astype(x.dtype)


class ScaledDropout(nn.Module):
    """Dropout whose rate may be traced: ``rate`` times the active fraction of the width.

    AutoFormer drops in proportion to the width of the sampled sub-network.
    """

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, fraction: jax.Array | float, train: bool) -> jax.Array:
        """Drop entries of ``x`` with probability ``rate * fraction`` when training."""
        if not train or self.rate == 0.0:
            return x
        keep = 1.0 - self.rate * jnp.asarray(fraction)
        kept = jax.random.bernoulli(self.make_rng("dropout"), keep, x.shape)
        return jnp.where(kept, x / keep, 0).astype(x.dtype)


class DropPath(nn.Module):
    """Stochastic depth: drop a residual branch for whole examples (Huang et al. 2016)."""

    @nn.compact
    def __call__(self, x: jax.Array, rate: jax.Array | float, train: bool) -> jax.Array:
        """Zero ``x (batch, ...)`` for an example with probability ``rate`` when training."""
        if not train:
            return x
        keep = 1.0 - jnp.asarray(rate, jnp.float32)
        shape = (x.shape[0],) + (1,) * (x.ndim - 1)
        kept = jax.random.bernoulli(self.make_rng("dropout"), keep, shape)
        return jnp.where(kept, x / keep.astype(x.dtype), 0)


def active_statistics(
    next_fun: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext
) -> Any:
    """Interceptor that gives Flax's own ``nn.LayerNorm`` statistics over the active channels.

    For models that cannot be edited::

        with nn.intercept_methods(nasjax.active_statistics):
            logits = model.apply(supernet_variables, x)

    It changes nothing where the collection ``"active"`` is absent. Only normalisation of the
    last axis with a ``scale`` is understood; anything else is left to Flax.
    """
    module = context.module
    plain = (
        isinstance(module, nn.LayerNorm)
        and context.method_name == "__call__"
        and module.has_variable("active", "scale")
        and module.reduction_axes in (-1, (-1,))
        and len(args) == 1
        and not kwargs
    )
    if not plain:
        return next_fun(*args, **kwargs)
    (x,) = args
    params = nn.unbox(module.variables["params"])
    bias = params.get("bias", jnp.zeros_like(params["scale"]))
    active: Any = module.get_variable("active", "scale")
    dtype = nn.dtypes.canonicalize_dtype(x, params["scale"], bias, dtype=module.dtype)
    return layer_norm(x, params["scale"], bias, active, module.epsilon).astype(dtype)


_KEPT, _MAP = "kept", "map"


def kept(x: jax.Array) -> jax.Array:
    """What a dense layer gives, or attention: small for what it costs, so that ``"dots"`` keeps it.

    Not kept are other products: maps of pairs of tokens are as large as what they are made of.
    """
    return checkpoint_name(x, _KEPT)


def attention_map(logits: jax.Array) -> jax.Array:
    """The softmax over the last axis, in float32 or more; ``"maps"`` keeps it."""
    return _softmax(at_least_float32(logits)).astype(logits.dtype)


@jax.custom_jvp
def _softmax(logits: jax.Array) -> jax.Array:
    return jax.nn.softmax(logits)


@_softmax.defjvp
def _softmax_derivative(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    # JAX's own, but for the name: what it reads in the backward pass has none from outside.
    (logits,), (change,) = primals, tangents
    weights = checkpoint_name(jax.nn.softmax(logits), _MAP)
    return weights, weights * (change - jnp.sum(weights * change, -1, keepdims=True))


REMAT: Mapping[str, Any] = {
    "maps": jax.checkpoint_policies.save_only_these_names(_KEPT, _MAP),
    "dots": jax.checkpoint_policies.save_only_these_names(_KEPT),
    "full": jax.checkpoint_policies.nothing_saveable,
}


def rematerialized(block: Any, remat: str, **options: Any) -> Any:
    """``block`` (a module or a lifted function) computed again in the backward pass, or not.

    Args:
      block: what is repeated over the layers.
      remat: ``"none"`` keeps all that the backward pass reads, ``"dots"`` the results of dense
        layers and of attention and computes what is between them again, ``"maps"`` the weights of
        pairs of tokens besides (where they are from :func:`attention_map`), ``"full"`` only the
        input.
      **options: of ``nn.remat``.

    Raises:
      SpaceError: if ``remat`` is none of them.
    """
    if remat == "none":
        return block
    if remat not in REMAT:
        raise SpaceError(f'remat is {remat!r}; "none", "maps", "dots" or "full" was expected.')
    return nn.remat(block, policy=REMAT[remat], prevent_cse=False, **options)


def per_layer(value: int | Sequence[int], layers: int) -> tuple[int, ...]:
    """``value`` for each of ``layers`` layers: itself if a sequence, repeated if a number."""
    return (value,) * layers if isinstance(value, int) else tuple(value)
