"""A transformer as anyone would write it with Flax's own layers, knowing nothing of nasjax."""

from typing import Any

import flax.linen as nn
import jax

normal = nn.initializers.lecun_normal()
zeros = nn.initializers.zeros_init()
ones = nn.initializers.ones_init()


def box(named: bool, init: Any, *names: str | None) -> Any:
    """``init`` with Flax's logical names or without."""
    return nn.with_logical_partitioning(init, names) if named else init


def norm(named: bool, name: str) -> nn.Module:
    return nn.LayerNorm(
        name=name, scale_init=box(named, ones, "embed"), bias_init=box(named, zeros, "embed")
    )


def dense(named: bool, name: str, size: int, inputs: str | None, outputs: str | None) -> nn.Module:
    return nn.Dense(
        size,
        name=name,
        kernel_init=box(named, normal, inputs, outputs),
        bias_init=box(named, zeros, outputs),
    )


class Layer(nn.Module):
    heads: int
    head_dim: int
    hidden: int
    named: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = nn.MultiHeadDotProductAttention(
            num_heads=self.heads,
            qkv_features=self.heads * self.head_dim,
            out_features=x.shape[-1],
            kernel_init=box(self.named, normal, "embed", "heads", None),
            out_kernel_init=box(self.named, normal, "heads", None, "residual"),
            bias_init=box(self.named, zeros, "heads", None),
            out_bias_init=box(self.named, zeros, "residual"),
            name="attention",
        )(norm(self.named, "before_attention")(x))
        x = x + y
        y = dense(self.named, "wide", self.hidden, "embed", "hidden")(
            norm(self.named, "before_mlp")(x)
        )
        y = dense(self.named, "narrow", x.shape[-1], "hidden", "residual")(nn.gelu(y))
        return x + y


class Model(nn.Module):
    width: int
    heads: tuple[int, ...]
    hidden: tuple[int, ...]
    head_dim: int = 3
    classes: int = 4
    named: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        del train
        x = dense(self.named, "stem", self.width, None, "embed")(x)
        for i, (heads, hidden) in enumerate(zip(self.heads, self.hidden, strict=True)):
            x = Layer(heads, self.head_dim, hidden, self.named, name=f"layer_{i}")(x)
        x = norm(self.named, "norm")(x)
        return dense(self.named, "head", self.classes, "embed", None)(x.mean(-2))


PATTERNS = {
    r"stem/kernel": (None, "embed"),
    r"stem/bias": ("embed",),
    r"(norm|before_\w+)/(scale|bias)": ("embed",),
    r"(query|key|value)/kernel": ("embed", "heads", None),
    r"(query|key|value)/bias": ("heads", None),
    r"out/kernel": ("heads", None, "residual"),
    r"out/bias": ("residual",),
    r"wide/kernel": ("embed", "hidden"),
    r"wide/bias": ("hidden",),
    r"narrow/kernel": ("hidden", "residual"),
    r"narrow/bias": ("residual",),
    r"head/kernel": ("embed", None),
}
