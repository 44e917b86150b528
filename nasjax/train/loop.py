"""The loop: steps, progress, logs, checkpoints, and stopping without losing anything."""

from __future__ import annotations

import pathlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from nasjax.train.checkpoint import Checkpointer
from nasjax.train.errors import NonFiniteError, Stopped
from nasjax.train.interrupt import Interrupt
from nasjax.train.metrics import JsonlWriter, MetricWriter
from nasjax.train.profile import Profiler
from nasjax.train.state import State

Describe = Callable[[State], Mapping[str, Any]]
PATIENCE = 10  # steps in a row without a finite gradient before a run is given up


@dataclass(frozen=True)
class Schedule:
    """When the loop does what, in steps.

    Attributes:
      steps: length of the phase.
      log: between lines of metrics.
      save: between checkpoints.
      epoch: steps in one pass over the training data, for the log.
      together: steps in one call of the program.
    """

    steps: int
    log: int
    save: int
    epoch: int
    together: int = 1

    def at_once(self, number: int) -> int:
        """How many steps are done at once after ``number`` of them: one, or ``together``.

        The state is looked at between calls alone, so none goes past a line or a checkpoint. It
        depends on the number alone, so that a resumed run is divided as one that was not stopped.
        """
        ahead = min(self.steps - number, *(n - number % n for n in (self.log, self.save)))
        aligned = number % self.together == 0
        return self.together if aligned and self.together <= ahead else 1


def run(
    phase: str,
    state: State,
    step: Any,
    loaders: Sequence[Any],
    schedule: Schedule,
    checkpointer: Checkpointer,
    writers: Sequence[MetricWriter],
    describe: Describe | None = None,
    profiler: Profiler | None = None,
) -> State:
    """Run ``phase`` to its end from wherever its checkpoints say it is.

    Args:
      phase: name of the phase, for logs.
      state: the state before the first step.
      step: compiled ``(state, *batches) -> (state, metrics)``; it may donate the state. Where the
        schedule does several steps together, its method ``many`` takes batches of them.
      loaders: one for each batch of the step.
      schedule: how many steps, and when to log and save.
      checkpointer: of this phase.
      writers: where metrics go.
      describe: further metrics of a state, computed when a line is logged.
      profiler: traces some of the calls.

    Returns:
      The state after the last step, which is saved.

    Raises:
      Stopped: after SIGINT or SIGTERM; the state is saved.
      NonFiniteError: if gradients stay non-finite; the last good state stays on disk.
    """
    state = _resume(phase, state, loaders, checkpointer, writers)
    done = int(state.step)
    if done >= schedule.steps:
        return state
    interrupt = Interrupt()
    bar = tqdm(
        total=schedule.steps,
        initial=done,
        desc=phase,
        unit="step",
        dynamic_ncols=True,
        disable=jax.process_index() != 0,
        file=sys.stderr,
        mininterval=0.5,
    )
    profiler = profiler or Profiler(pathlib.Path())
    with interrupt.watch(), profiler.watch(), bar:
        clock, counted = time.perf_counter(), done
        while done < schedule.steps:
            at_once = schedule.at_once(done)
            if at_once > 1:
                several = (loader.batches(done, at_once) for loader in loaders)
                state, metrics = step.many(state, *several)
            else:
                state, metrics = step(state, *(loader.batch(done) for loader in loaders))
            done += at_once
            profiler.called((state, metrics))
            bar.update(at_once)
            last = done == schedule.steps
            stop = interrupt.stops()
            if last or stop or done % schedule.log == 0:
                line = _line(phase, state, metrics, describe)
                seconds = time.perf_counter() - clock
                line["epoch"] = done // schedule.epoch
                line["steps_per_second"] = round((done - counted) / seconds, 3)
                clock, counted = time.perf_counter(), done
                bar.set_postfix_str(_summary(line), refresh=True)
                if last or done % schedule.log == 0:
                    for writer in writers:
                        writer.write(phase, done, line)
            if last or stop or done % schedule.save == 0:
                _check(phase, state, metrics)
                checkpointer.save(state, _positions(loaders), wait=last or stop is not None)
            if stop and not last:
                raise Stopped(
                    f"{stop}: stopped and saved after step {done} of "
                    f"{schedule.steps} of {phase}; run the same command again to continue."
                )
    return state


def _resume(
    phase: str,
    state: State,
    loaders: Sequence[Any],
    checkpointer: Checkpointer,
    writers: Sequence[MetricWriter],
) -> State:
    restored = checkpointer.restore(state)
    if restored is not None:
        state, positions = restored
        for i, loader in enumerate(loaders):
            loader.restore(positions[str(i)])
    for writer in writers:
        if isinstance(writer, JsonlWriter):
            writer.rewind(phase, int(state.step))
    return state


def _positions(loaders: Sequence[Any]) -> dict[str, Any]:
    return {str(i): loader.state() for i, loader in enumerate(loaders)}


def _line(
    phase: str, state: State, metrics: Mapping[str, jax.Array], describe: Describe | None
) -> dict[str, Any]:
    _check(phase, state, metrics)
    line = {k: float(v) for k, v in metrics.items() if not k.startswith("finite/")}
    return {**line, **(describe(state) if describe else {})}


def _check(phase: str, state: State, metrics: Mapping[str, jax.Array]) -> None:
    """Raise if the last steps were all skipped, naming what is not finite."""
    skipped = int(state.skipped)
    if skipped < PATIENCE:
        return
    names = [n for n in ("train_loss", "val_loss") if n in metrics and not np.isfinite(metrics[n])]
    for partition, tree in state.trained.items():
        each = metrics.get(f"finite/{partition}")
        if each is not None:
            paths = [
                jax.tree_util.keystr(p, simple=True, separator="/")
                for p, _ in jax.tree_util.tree_leaves_with_path(tree)
            ]
            bad = [p for p, ok in zip(paths, np.asarray(each), strict=True) if not ok]
            names += [f"the gradient of {partition}/{bad[0]}"] if bad else []
            names += [f"{len(bad) - 1} gradients more"] if len(bad) > 1 else []
    raise NonFiniteError(
        f"{phase} is not finite any more: for {skipped} steps, up to step {int(state.step)}, "
        f"{', '.join(names) or 'a gradient'} overflowed and the update was skipped; lower the "
        "learning rate or clip gradients. The last good checkpoint is kept."
    )


def _summary(line: Mapping[str, Any]) -> str:
    parts = [f"loss {line['train_loss']:.3f}", f"acc {line['train_accuracy']:.1%}"]
    if np.isfinite(line.get("val_accuracy", np.nan)):
        parts.append(f"val {line['val_accuracy']:.1%}")
    if "entropy" in line:
        parts.append(f"entropy {line['entropy']:.2f}")
    if "expected_params" in line:
        parts.append(f"size {line['expected_params'] / 1e6:.3g}M")
    return ", ".join(parts)
