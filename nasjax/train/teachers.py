"""External teachers: what the largest network learns from in place of labels."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from nasjax.core.errors import NasjaxError
from nasjax.train.distillation import FACTOR, soft_target

Target = Callable[[Any, jax.Array, Mapping[str, jax.Array]], jax.Array]


@dataclass(frozen=True)
class Teacher:
    """Something that says which probabilities a batch should have.

    Attributes:
      target: ``(variables, images, batch) -> probabilities (batch, classes)``; ``images`` are what
        the student sees, augmented and normalised.
      variables: arrays that ``target`` reads. They are an argument of the compiled step, so that it
        holds no copy of them.
      stored: whether ``target`` reads ``batch["index"]``, the positions of the examples in the
        training data, and ``variables`` has a row for each of them.
    """

    target: Target
    variables: Any
    stored: bool = False

    def of(self, rows: np.ndarray) -> Teacher:
        """The teacher of these training examples alone; itself where it stores nothing."""
        if not self.stored:
            return self
        if len(self.variables) <= np.max(rows):
            raise NasjaxError(
                f"the stored logits are of {len(self.variables):,} examples, but there are more "
                f"training examples, up to number {np.max(rows):,}; store one row for each, in "
                "their order."
            )
        return Teacher(self.target, self.variables[rows], True)


def network_teacher(
    *networks: tuple[nn.Module, Mapping[str, Any]], factor: float = FACTOR
) -> Teacher:
    """Trained networks as one teacher: the mean of their sharpened probabilities.

    Args:
      *networks: pairs of a Flax module, called as ``module.apply(variables, images)``, and its
        variables; a module that takes ``train`` should default to evaluation.
      factor: that logits are multiplied by, 5 in the released code.
    """
    modules = [module for module, _ in networks]

    def target(variables: Any, images: jax.Array, batch: Mapping[str, jax.Array]) -> jax.Array:
        del batch
        pairs = zip(modules, variables, strict=True)
        logits: list[Any] = [module.apply(given, images) for module, given in pairs]
        return soft_target(logits, factor)

    return Teacher(target, [dict(variables) for _, variables in networks])


def stored_teacher(logits: np.ndarray, *, factor: float = FACTOR) -> Teacher:
    """Logits that a network gave for each training image, not augmented.

    Sound where augmentation is weak: the teacher has not seen what the student sees. Mixing images
    is refused, since the logits are of single ones.

    Args:
      logits: ``(examples, classes)`` in the order of the training data; float16 will do.
      factor: that they are multiplied by.

    Raises:
      NasjaxError: if they have another shape, or are not finite.
    """
    logits = np.asarray(logits)
    if logits.ndim != 2 or not np.issubdtype(logits.dtype, np.floating):
        raise NasjaxError(
            f"stored logits have shape {logits.shape} and type {logits.dtype}; floating-point "
            "(examples, classes) were expected."
        )
    if not np.all(np.isfinite(logits)):
        raise NasjaxError("some stored logits are not finite; store the network's output anew.")

    def target(variables: Any, images: jax.Array, batch: Mapping[str, jax.Array]) -> jax.Array:
        del images
        return soft_target([jnp.asarray(variables)[batch["index"]]], factor)

    return Teacher(target, logits, True)


def read_logits(path: str | pathlib.Path, classes: int, examples: int) -> np.ndarray:
    """The logits in a .npy file, or in a .npz file with one array.

    Args:
      path: of the file.
      classes: of the data.
      examples: training examples of the data.

    Raises:
      NasjaxError: if the file holds none, or of other data.
    """
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise NasjaxError(
            f"the teacher's logits {path} cannot be read ({error}); give a .npy or .npz file of "
            "an array (examples, classes)."
        ) from None
    if isinstance(found, np.lib.npyio.NpzFile):
        with found:
            names = found.files
            if len(names) != 1:
                raise NasjaxError(f"{path} holds {len(names)} arrays; one of logits was expected.")
            found = found[names[0]]
    if found.shape != (examples, classes):
        raise NasjaxError(
            f"the teacher's logits {path} have shape {found.shape}, but the data have {examples:,} "
            f"training examples of {classes} classes; store a row for each, in their order."
        )
    return found


class Numbered:
    """A loader whose batches carry ``"index"`` too: the positions of their examples in the source.

    Args:
      loader: with a method ``indices(step)``, as :class:`nasjax.data.ArrayLoader` has it.
      sharding: of a batch over its first axis.

    Raises:
      NasjaxError: if the loader does not know them.
    """

    def __init__(self, loader: Any, sharding: NamedSharding) -> None:
        if not hasattr(loader, "indices"):
            raise NasjaxError(
                "stored logits need data in memory, whose examples are known by their number; use "
                "a network as the teacher."
            )
        self._loader = loader
        self._sharding = sharding
        self.batch_size = loader.batch_size
        self.steps_per_epoch = loader.steps_per_epoch

    def batch(self, step: int) -> dict[str, jax.Array]:
        """Batch number ``step`` with ``"index" (batch,)``, int32."""
        rows = self._loader.indices(step)
        place = self._sharding
        index = jax.make_array_from_callback(rows.shape, place, lambda part: rows[part])
        return {**self._loader.batch(step), "index": index}

    def batches(self, start: int, count: int) -> dict[str, jax.Array]:
        """Several batches, stacked along a new first axis."""
        rows = np.stack([self._loader.indices(start + i) for i in range(count)])
        place = NamedSharding(self._sharding.mesh, PartitionSpec(None, *self._sharding.spec))
        index = jax.make_array_from_callback(rows.shape, place, lambda part: rows[part])
        return {**self._loader.batches(start, count), "index": index}

    def state(self) -> dict[str, Any]:
        """The loader's."""
        found: dict[str, Any] = self._loader.state()
        return found

    def restore(self, state: Mapping[str, Any]) -> None:
        """The loader's."""
        self._loader.restore(state)
