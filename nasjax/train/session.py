"""A session: the working directory of a run, and the devices it runs on."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from nasjax.train import sharding
from nasjax.train.checkpoint import Checkpointer
from nasjax.train.errors import CheckpointError
from nasjax.train.metrics import JsonlWriter, MetricWriter, TensorBoardWriter
from nasjax.train.rng import stream
from nasjax.version import __version__


@dataclasses.dataclass(frozen=True)
class Session:
    """Where a run reads and writes, and on which devices.

    Attributes:
      workdir: the working directory.
      config: what the run is, JSON-able.
      mesh: the devices.
      rules: mesh axes of parameters by axis name.
      seed: of every random stream of the run.
      writers: where metrics go.
      keep: checkpoints kept of each phase.
      profile: calls of each phase's step that are traced.
    """

    workdir: pathlib.Path
    config: Mapping[str, Any]
    mesh: Mesh
    rules: sharding.Rules
    seed: int
    writers: Sequence[MetricWriter]
    keep: int = 2
    profile: int = 0

    def key(self, purpose: str) -> jax.Array:
        """The root key of a phase."""
        return stream(jax.random.key(self.seed), purpose)

    def checkpointer(self, phase: str, **identity: Any) -> Checkpointer:
        """The checkpoints of ``phase``, recognised by ``identity`` and the configuration."""
        identity = {"phase": phase, "version": __version__, **identity}
        return Checkpointer(self.workdir / "checkpoints" / phase, identity, self.keep)

    def write_json(self, name: str, content: Any) -> None:
        """Write a file of the working directory, all of it or nothing."""
        if jax.process_index() == 0:
            write_json(self.workdir / name, content)


def open_session(
    workdir: pathlib.Path | str,
    config: Mapping[str, Any],
    *,
    mesh: Mesh | None = None,
    rules: sharding.Rules = sharding.REPLICATED,
    seed: int = 0,
    tensorboard: bool = False,
    keep: int = 2,
    profile: int = 0,
) -> Session:
    """Open ``workdir`` for a run of ``config``, new or to be continued.

    Raises:
      CheckpointError: if the directory holds a run of another configuration, or cannot be written.
    """
    workdir = pathlib.Path(workdir).absolute()
    plain = json.loads(json.dumps(config))
    path = workdir / "config.json"
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        # A directory in which nothing has been trained yet may still change its mind.
        begun = any((workdir / name).exists() for name in ("checkpoints", "history.jsonl"))
        if path.exists() and begun:
            _check_same(path, plain)
        elif jax.process_index() == 0:
            write_json(path, plain)
    except OSError as error:
        raise CheckpointError(
            f"{workdir} cannot be used as a working directory: {error.strerror or error}; "
            "choose another --workdir."
        ) from None
    writers: list[MetricWriter] = []
    if jax.process_index() == 0:
        writers.append(JsonlWriter(workdir / "metrics.jsonl"))
        if tensorboard:
            writers.append(TensorBoardWriter(workdir / "tensorboard"))
    mesh = sharding.make_mesh() if mesh is None else mesh
    return Session(workdir, plain, mesh, rules, seed, tuple(writers), keep, profile)


def write_json(path: pathlib.Path, content: Any) -> None:
    """Write ``content`` to ``path`` atomically."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.write_text(json.dumps(content, indent=2) + "\n")
        os.replace(temporary, path)
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be written ({error.strerror}); free space, then run the same command "
            "again: it continues from the last good checkpoint."
        ) from None


def _check_same(path: pathlib.Path, config: Mapping[str, Any]) -> None:
    try:
        found = json.loads(path.read_text())
    except json.JSONDecodeError:
        raise CheckpointError(
            f"{path} is not readable as JSON; restore it or choose another --workdir."
        ) from None
    ours, theirs = _flatten(config), _flatten(found)
    changed = [k for k in sorted({*ours, *theirs}) if ours.get(k) != theirs.get(k)]
    if changed:
        listed = "; ".join(f"{k} was {theirs.get(k)!r}, is {ours.get(k)!r}" for k in changed[:3])
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise CheckpointError(
            f"{path.parent} holds a run of another configuration ({listed}{more}); use another "
            "--workdir, or the same configuration to continue it."
        )


def _flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, Mapping) or not tree:
        return {prefix: tree}
    return {
        k: v for n, t in tree.items() for k, v in _flatten(t, f"{prefix}.{n}".strip(".")).items()
    }
