"""AutoFormer's network in NumPy, from its description: an oracle that shares no code with nasjax.

Weights are by PyTorch names and layouts. ``settings`` are the constructor's arguments.
"""

from __future__ import annotations

import numpy as np
from scipy.special import erf, softmax

SETTINGS = {
    "img_size": 8,
    "patch_size": 2,
    "in_chans": 3,
    "num_classes": 5,
    "embed_dim": 128,
    "depth": 3,
    "num_heads": 2,
    "mlp_ratio": 2.0,
    "qkv_bias": True,
    "gp": True,
    "relative_position": True,
    "change_qkv": True,
    "abs_pos": True,
    "max_relative_position": 2,
}
HEAD = 64


def tokens(settings):
    return (settings["img_size"] // settings["patch_size"]) ** 2


def shapes(settings):
    """Shape of every tensor of the super-network, by name."""
    width, heads = settings["embed_dim"], settings["num_heads"]
    inner = HEAD * heads if settings["change_qkv"] else width
    hidden, patch = int(width * settings["mlp_ratio"]), settings["patch_size"]
    found = {"cls_token": (1, 1, width)}
    if settings["abs_pos"]:
        found["pos_embed"] = (1, tokens(settings) + 1, width)
    found["patch_embed_super.proj.weight"] = (width, settings["in_chans"], patch, patch)
    found["patch_embed_super.proj.bias"] = (width,)
    for i in range(settings["depth"]):
        block = {"attn.qkv.weight": (3 * inner, width)}
        if settings["qkv_bias"]:
            block["attn.qkv.bias"] = (3 * inner,)
        if settings["relative_position"]:
            rows = 2 * settings["max_relative_position"] + 2
            for table in (
                "k.embeddings_table_v",
                "k.embeddings_table_h",
                "v.embeddings_table_v",
                "v.embeddings_table_h",
            ):
                block[f"attn.rel_pos_embed_{table}"] = (rows, HEAD)
        block |= {"attn.proj.weight": (width, inner), "attn.proj.bias": (width,)}
        for norm in ("attn_layer_norm", "ffn_layer_norm"):
            block |= {f"{norm}.weight": (width,), f"{norm}.bias": (width,)}
        block |= {"fc1.weight": (hidden, width), "fc1.bias": (hidden,)}
        block |= {"fc2.weight": (width, hidden), "fc2.bias": (width,)}
        found |= {f"blocks.{i}.{name}": shape for name, shape in block.items()}
    found |= {"norm.weight": (width,), "norm.bias": (width,)}
    return found | {
        "head.weight": (settings["num_classes"], width),
        "head.bias": (settings["num_classes"],),
    }


def draw(settings, seed=0):
    """Random weights of the super-network."""
    rng = np.random.default_rng(seed)
    return {
        name: rng.normal(
            0.0, np.prod(shape[1:]) ** -0.5 if len(shape) in (2, 4) else 0.3, shape
        ).astype(np.float32)
        for name, shape in shapes(settings).items()
    }


def forward(weights, arch, images, settings):
    """Logits (batch, classes) of ``images`` (batch, channels, height, width) in float64."""
    weights = {name: np.asarray(w, np.float64) for name, w in weights.items()}
    width, patch = arch["embed_dim"], settings["patch_size"]
    batch, channels, height, _ = images.shape
    side = height // patch
    x = images.astype(np.float64).reshape(batch, channels, side, patch, side, patch)
    x = x.transpose(0, 2, 4, 1, 3, 5).reshape(batch, side * side, -1)
    kernel = weights["patch_embed_super.proj.weight"][:width].reshape(width, -1)
    x = x @ kernel.T + weights["patch_embed_super.proj.bias"][:width]
    token = np.broadcast_to(weights["cls_token"][..., :width], (batch, 1, width))
    x = np.concatenate([token, x], 1)
    if settings["abs_pos"]:
        x = x + weights["pos_embed"][..., :width]
    for i in range(arch["depth"]):
        own = {
            n.removeprefix(f"blocks.{i}."): w
            for n, w in weights.items()
            if n.startswith(f"blocks.{i}.")
        }
        heads, hidden = arch["num_heads"][i], int(width * arch["mlp_ratio"][i])
        x = x + _attention(_norm(x, own, "attn_layer_norm"), own, width, heads, side, settings)
        y = _norm(x, own, "ffn_layer_norm")
        y = y @ own["fc1.weight"][:hidden, :width].T + own["fc1.bias"][:hidden]
        y = y * 0.5 * (1 + erf(y / np.sqrt(2)))
        x = x + y @ own["fc2.weight"][:width, :hidden].T + own["fc2.bias"][:width]
    x = _norm(x, weights, "norm")
    x = x[:, 1:].mean(1) if settings["gp"] else x[:, 0]
    return x @ weights["head.weight"][:, :width].T + weights["head.bias"]


def _norm(x, weights, name):
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    width = x.shape[-1]
    return scaled * weights[f"{name}.weight"][:width] + weights[f"{name}.bias"][:width]


def _attention(x, own, width, heads, side, settings):
    batch, count, _ = x.shape
    if settings["change_qkv"]:
        out = 3 * HEAD * heads
        rows = own["attn.qkv.weight"][:out, :width]
        kernel, scale = np.concatenate([rows[0::3], rows[1::3], rows[2::3]]), HEAD**-0.5
    else:
        kernel = own["attn.qkv.weight"][:, :width]
        out, scale = kernel.shape[0], (width // heads) ** -0.5
    qkv = x @ kernel.T
    if settings["qkv_bias"]:
        qkv = qkv + own["attn.qkv.bias"][:out]
    query, key, value = qkv.reshape(batch, count, 3, heads, -1).transpose(2, 0, 3, 1, 4)
    logits = query @ key.swapaxes(-1, -2)
    if settings["relative_position"]:
        to_keys, to_values = (_relative(own, which, side, settings) for which in "kv")
        logits = logits + np.einsum("bhqd,qkd->bhqk", query, to_keys)
    attention = softmax(logits * scale, -1)
    mixed = attention @ value
    if settings["relative_position"]:
        mixed = mixed + np.einsum("bhqk,qkd->bhqd", attention, to_values)
    mixed = mixed.transpose(0, 2, 1, 3).reshape(batch, count, out // 3)
    return mixed @ own["attn.proj.weight"][:width, : out // 3].T + own["attn.proj.bias"][:width]


def _relative(own, which, side, settings):
    reach, table = settings["max_relative_position"], f"attn.rel_pos_embed_{which}.embeddings_table"
    total = 0
    for suffix, place in (("v", np.arange(side**2) // side), ("h", np.arange(side**2) % side)):
        index = np.clip(place[None] - place[:, None], -reach, reach) + reach + 1
        total = total + own[f"{table}_{suffix}"][np.pad(index, ((1, 0), (1, 0)))]
    return total


def num_params(arch, settings):
    """The authors' count of parameters: absolute positions always counted."""
    width, count = arch["embed_dim"], tokens(settings)
    total = width * settings["in_chans"] * settings["patch_size"] ** 2 + width
    for heads, ratio in zip(arch["num_heads"], arch["mlp_ratio"], strict=True):
        inner = HEAD * heads if settings["change_qkv"] else settings["embed_dim"]
        total += 3 * inner * (width + settings["qkv_bias"]) + inner * width + width + 4 * width
        hidden = int(width * ratio)
        total += 2 * width * hidden + hidden + width
        rows = 2 * settings["max_relative_position"] + 2
        total += 4 * rows * HEAD * settings["relative_position"]
    return total + 2 * width + (width + 1) * settings["num_classes"] + width * (2 + count)


def flops(arch, settings):
    """The authors' count of multiply-adds."""
    width, count, reach = arch["embed_dim"], tokens(settings), settings["max_relative_position"]
    pixels, inside = settings["in_chans"] * settings["patch_size"] ** 2, count + 2
    total = width + count * width * pixels + (count + 1) * width / 2
    for heads, ratio in zip(arch["num_heads"], arch["mlp_ratio"], strict=True):
        inner = HEAD * heads if settings["change_qkv"] else settings["embed_dim"]
        total += inside * (2 * width + 4 * width * inner + 2 * width * int(width * ratio))
        total += 2 * inside**2 * inner
        if settings["relative_position"]:
            total += 2 * reach * inside**2 + inside**2 / 2 + inside * inner / 2
    return total + (count + 1) * width * settings["num_classes"]
