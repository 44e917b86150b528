"""A ViTAS network in NumPy, from the equations of the paper: nothing to compile."""

import math
from typing import Any

import numpy as np

erf = np.vectorize(math.erf)


def norm(p: Any, x: np.ndarray, epsilon: float) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    return (
        centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon) * p["scale"] + p["bias"]
    )


def linear(p: Any, x: np.ndarray) -> np.ndarray:
    return x @ p["kernel"] + p["bias"]


def queries_keys_values(p: Any, own: Any, x: np.ndarray) -> np.ndarray:
    maps = {**p, **own}
    if "query_key_value" in maps:
        return linear(maps["query_key_value"], x)
    return np.concatenate([linear(maps["query_key"], x), linear(maps["value"], x)], -1)


def attention(p: Any, heads: int, x: np.ndarray) -> np.ndarray:
    batch, tokens, _ = x.shape
    qkv = queries_keys_values(p, p.get(f"heads_{heads}", {}), x)
    q, k, v = np.moveaxis(qkv.reshape(batch, tokens, 3, heads, -1), (2, 3), (0, 2))
    logits = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    mixed = weights / weights.sum(-1, keepdims=True) @ v
    return linear(p["proj"], np.moveaxis(mixed, 1, 2).reshape(batch, tokens, -1))


def forward(variables: Any, arch: Any, images: np.ndarray) -> np.ndarray:
    """Logits of a network on its own, of ``arch`` chosen per block."""
    tree, size = variables["params"], arch["patch_size"]
    p = tree[f"patch_{size}"]
    batch, height, width, channels = images.shape
    x = images.astype(np.float64).reshape(
        batch, height // size, size, width // size, size, channels
    )
    x = np.swapaxes(x, 2, 3).reshape(batch, -1, size * size * channels)
    kernel = np.asarray(p["patches"]["kernel"])
    x = x @ kernel.reshape(-1, kernel.shape[-1]) + p["patches"]["bias"]
    token = np.broadcast_to(p["class_token"], (batch, 1, x.shape[-1]))
    x = np.concatenate([token, x], 1) + p["positions"]
    for layer, heads in enumerate(arch["heads"]):
        if heads:
            block = tree[f"blocks_{layer}"]["block"]
            y = norm(block["norm_attention"], x, 1e-6)
            x = x + attention(block["attention"], heads, y)
            y = linear(block["fc1"], norm(block["norm_mlp"], x, 1e-6))
            x = x + linear(block["fc2"], y * (1 + erf(y / np.sqrt(2))) / 2)
    return linear(tree["head"], norm(tree["norm"], x[:, 0], 1e-5))
