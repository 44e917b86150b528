"""Relaxations made from others: weights of edges (PC-DARTS), options left out (DrNAS).

Each is a function from a relaxation to a relaxation, so they compose with every one and with each
other::

    method = with_edge_weights(pruned(relax.drnas(), masks), {"normal": nodes, "reduce": nodes})
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from nasjax.core import mixture as mixtures
from nasjax.core.errors import NasjaxError, did_you_mean
from nasjax.core.mixture import Alphas
from nasjax.core.space import Option, SearchSpace
from nasjax.relax import Relaxation, draw_alphas

Nodes = Sequence[Sequence[int]]
Masks = Mapping[str, np.ndarray]
Rows = dict[str, jax.Array]

_EDGES = "/edges"
_LOWERED = 1e6  # by which DrNAS lowers the alpha of an option that is out


def edge_weights(weights: jax.Array, nodes: Nodes) -> jax.Array:
    """Softmax of ``weights (edges,)`` among the edges that end in the same node.

    Args:
      weights: one for each edge.
      nodes: indices of the edges that end in each node, as ``nasjax.models.cells.incoming`` gives
        them; every edge ends in one.
    """
    each = [jax.nn.softmax(weights[np.asarray(ends)]) for ends in nodes]
    return jnp.concatenate(each)[np.argsort(np.concatenate([np.asarray(n) for n in nodes]))]


def with_edge_weights(relaxation: Relaxation, nodes: Mapping[str, Nodes]) -> Relaxation:
    """``relaxation`` with a learned weight for every edge (PC-DARTS, Xu et al. 2020, section 3.2).

    The mixture of a choice made per edge, ``(edges, options)``, is that of ``relaxation`` times
    the softmax of the edge's weight among all edges into the same node. Its rows then sum to that
    softmax, not to one: superposition is linear, so an edge's output is scaled by its weight, and
    a rule that ranks edges, as DARTS's does, ranks them by option and edge together. Costs that
    are expected under it are scaled likewise.

    Args:
      relaxation: from alphas to mixtures; it sees its own alphas only.
      nodes: for each choice whose edges are weighed, the edges that end in each node.

    Returns:
      A relaxation whose alphas have an array ``CHOICE/edges (edges,)`` more for each choice; its
      ``init`` draws them. Its mixtures are never one-hot.

    Raises:
      NasjaxError: if ``nodes`` lists an edge twice or leaves one out; and, when alphas are drawn
        or used, if their choices or edges are others.
    """
    own = {choice + _EDGES: ends for choice, ends in nodes.items()}
    for choice, ends in nodes.items():
        edges = sorted(edge for node in ends for edge in node)
        if edges != list(range(len(edges))):
            raise NasjaxError(
                f"the nodes of {choice!r} list the edges {edges}; each from 0 on was expected once."
            )
    count = {choice: sum(map(len, ends)) for choice, ends in nodes.items()}

    def init(space: SearchSpace, key: jax.Array) -> Rows:
        shapes = mixtures.shapes(space)
        for choice, edges in count.items():
            if choice not in shapes:
                raise NasjaxError(
                    f"{choice!r} is no choice of space {space.name!r}; "
                    f"{did_you_mean(choice, shapes)}"
                )
            if shapes[choice][:-1] != (edges,):
                raise NasjaxError(
                    f"the nodes of {choice!r} have {edges} edges, but in space {space.name!r} its "
                    f"mixture has the shape {shapes[choice]}."
                )
        drawn = draw_alphas({c + _EDGES: (edges,) for c, edges in count.items()}, key)
        return {**relaxation.init(space, key), **drawn}

    def without(alphas: Alphas) -> Rows:
        return {name: alpha for name, alpha in alphas.items() if name not in own}

    def weigh(mixture: Rows, alphas: Alphas) -> Rows:
        for name in own:
            if name not in alphas:
                raise NasjaxError(
                    f"the alphas lack {name!r}; draw them with the init of this relaxation."
                )
        each = {c: edge_weights(alphas[c + _EDGES], ends) for c, ends in nodes.items()}
        return {**mixture, **{c: mixture[c] * w[:, None] for c, w in each.items()}}

    return dataclasses.replace(
        relaxation,
        name=f"{relaxation.name}+edges",
        mixture=lambda alphas, key, step: weigh(
            relaxation.mixture(without(alphas), key, step), alphas
        ),
        mean=lambda alphas: weigh(relaxation.mean(without(alphas)), alphas),
        penalty=lambda alphas: relaxation.penalty(without(alphas)),
        hard=False,
        learns=True,
        init=init,
    )


def leave_out(weights: jax.Array, mask: jax.Array | np.ndarray) -> jax.Array:
    """Rows ``weights (..., options)`` without the options where ``mask`` is 0; sums stay.

    What is left is divided by its sum; where nothing is, the options that remain share evenly.
    """
    masked = weights * mask
    left = jnp.sum(masked, -1, keepdims=True)
    scaled = masked / jnp.where(left > 0, left, 1.0)
    even = mask / mask.sum(-1, keepdims=True)
    return jnp.sum(weights, -1, keepdims=True) * jnp.where(left > 0, scaled, even)


def pruned(relaxation: Relaxation, masks: Masks) -> Relaxation:
    """``relaxation`` over the options that are left (DrNAS, Chen et al. 2021, section 4).

    A mixture of all options is masked and divided by the sum of what is left. Beforehand the
    alphas of pruned options are lowered by 1e6: for a softmax or a Dirichlet draw that is the
    same (a sub-vector of a Dirichlet, divided by its sum, is Dirichlet), and a one-hot draw falls
    on an option that is left. Decoding never returns a pruned option of a choice; where a space
    has its own rule, as DARTS has, that rule sees it as infinitely bad.

    Args:
      relaxation: from alphas to mixtures. Its penalty sees all alphas.
      masks: of the shape of a choice's mixture, 1 for the options that are left and 0 for the
        others; a choice that is not named is whole. Made by :func:`prune` or :func:`without`.

    Raises:
      NasjaxError: if a row has no option left, or the relaxation learns no alphas; and, when it is
        used, if a mask belongs to no alpha or has another shape.
    """
    if not relaxation.learns:
        raise NasjaxError(
            f"relaxation {relaxation.name!r} learns nothing, so no option of it can be pruned."
        )
    masks = {name: np.asarray(mask, np.float32) for name, mask in masks.items()}
    masks = {n: m * relaxation.masks.get(n, np.ones_like(m)) for n, m in masks.items()}
    for name, mask in masks.items():
        if not np.all(mask.any(-1)):
            raise NasjaxError(f"a row of {name!r} has no option left; keep at least one.")

    def lower(alphas: Alphas) -> Rows:
        for name, mask in masks.items():
            if name not in alphas or alphas[name].shape != mask.shape:
                found = {n: a.shape for n, a in alphas.items()}
                raise NasjaxError(
                    f"the mask of {name!r} has the shape {mask.shape}; the alphas are {found}."
                )
        low = {n: alphas[n] - _LOWERED * (1.0 - mask) for n, mask in masks.items()}
        return {**alphas, **low}

    def mask_all(mixture: Rows) -> Rows:
        return {**mixture, **{n: leave_out(mixture[n], mask) for n, mask in masks.items()}}

    return dataclasses.replace(
        relaxation,
        name=f"{relaxation.name}+pruned",
        mixture=lambda alphas, key, step: mask_all(relaxation.mixture(lower(alphas), key, step)),
        mean=lambda alphas: mask_all(relaxation.mean(lower(alphas))),
        masks={**relaxation.masks, **masks},
    )


def prune(
    alphas: Alphas, keep: int | Mapping[str, int], masks: Masks | None = None
) -> tuple[Rows, dict[str, np.ndarray]]:
    """Keep the options with the highest alphas of every row (DrNAS's progressive pruning).

    Args:
      alphas: ``(..., options)`` by name.
      keep: how many options of each row are kept, of all choices or by choice. Weights of edges
        are left alone.
      masks: of the options that are still there; all are in a choice that is not named.

    Returns:
      Alphas in which those of pruned options are 0 and the others as they were, and the masks of
      what is kept, for :func:`pruned`.

    Raises:
      NasjaxError: if ``keep`` names no choice, or is less than 1 or more than what is left.
    """
    choices = [name for name in alphas if not name.endswith(_EDGES)]
    numbers = dict.fromkeys(choices, keep) if isinstance(keep, int) else dict(keep)
    new_alphas, new_masks = dict(alphas), dict(masks or {})
    for name, number in numbers.items():
        if name not in choices:
            raise NasjaxError(f"{name!r} is no choice; {did_you_mean(name, choices)}")
        alpha = alphas[name]
        mask = np.asarray(new_masks.get(name, np.ones(alpha.shape)), np.float32)
        left = int(mask.sum(-1).min())
        if not 1 <= number <= left:
            raise NasjaxError(
                f"{number} options of {name!r} cannot be kept; 1 to {left} were expected."
            )
        _, best = jax.lax.top_k(alpha - _LOWERED * (1.0 - mask), number)
        new_masks[name] = np.asarray(jax.nn.one_hot(best, alpha.shape[-1]).sum(-2), np.float32)
        new_alphas[name] = jnp.where(new_masks[name] > 0, alpha, 0.0)
    return new_alphas, new_masks


def without(space: SearchSpace, *options: Option) -> dict[str, np.ndarray]:
    """Masks that leave ``options`` out of every choice that has them, for :func:`pruned`.

    ``without(space, "none")`` makes DrNAS's seven operations of DARTS's eight.

    Raises:
      NasjaxError: if no choice has an option.
    """
    for option in options:
        known = [o for choice in space.choices for o in choice.options]
        if option not in known:
            raise NasjaxError(
                f"no choice of space {space.name!r} has an option {option!r}; "
                f"{did_you_mean(str(option), [str(o) for o in known])}"
            )
    shapes = mixtures.shapes(space)
    masks = {}
    for choice in space.choices:
        row = np.array([o not in options for o in choice.options], np.float32)
        if not row.all():
            masks[choice.name] = np.broadcast_to(row, shapes[choice.name]).copy()
    return masks
