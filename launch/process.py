"""The process of a launcher: its command line, its logs, its hosts, and how its errors read."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence

import jax
from absl import app
from absl import logging as absl_logging

from nasjax.core.errors import NasjaxError
from nasjax.train.errors import Stopped


@contextlib.contextmanager
def one_sentence() -> Iterator[None]:
    """Turn errors a user can act on into one sentence and an exit status, without a traceback."""
    try:
        yield
    except Stopped as stopped:
        print(f"\n{stopped}", file=sys.stderr)
        sys.exit(130)
    except (NasjaxError, ImportError) as error:
        print(f"\nerror: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:  # a full disk, a missing file: the last line says it
        print(f"\nerror: {str(error).strip().splitlines()[-1].strip()}", file=sys.stderr)
        sys.exit(2)


def _set_up_logs() -> None:
    """Show what nasjax says, and of its dependencies only errors."""
    absl_logging.set_verbosity(absl_logging.ERROR)
    # Orbax logs the traceback of a save that failed; the error that follows says it in words.
    absl_logging.get_absl_logger().addFilter(lambda record: "orbax" not in record.pathname)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    ours = logging.getLogger("nasjax")
    ours.addHandler(handler)
    ours.setLevel(logging.INFO)
    ours.propagate = False


def join_hosts() -> None:
    """Join the other processes of the run, where the environment says that there are some.

    ``NASJAX_DISTRIBUTED=1`` says so; JAX finds the hosts of a TPU pod or a Slurm job by itself, and
    otherwise reads ``JAX_COORDINATOR_ADDRESS``, ``JAX_NUM_PROCESSES`` and ``JAX_PROCESS_ID``.

    Raises:
      NasjaxError: if one of these is no number.
    """
    if os.environ.get("NASJAX_DISTRIBUTED") != "1":
        return
    given = {"num_processes": "JAX_NUM_PROCESSES", "process_id": "JAX_PROCESS_ID"}
    found = {
        name: os.environ[variable] for name, variable in given.items() if variable in os.environ
    }
    for name, text in found.items():
        if not text.isdigit():
            raise NasjaxError(f"{given[name]} is {text!r}; a number was expected.")
    jax.distributed.initialize(**{name: int(text) for name, text in found.items()})


def one_lapack_thread() -> None:
    """Let LAPACK, which is loaded with the first decomposition, leave the cores to XLA.

    Threads of both disturb one another: singular values on a CPU take several times as long.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def cores_as_devices() -> None:
    """Make a JAX device of each core, for work whose parts need not wait for one another.

    Scoring networks is. Other backends do not mind; nor does a number that the user gave.
    """
    if not os.environ.get("JAX_NUM_CPU_DEVICES"):
        jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)


def launch(main: Callable[[list[str]], None], commands: Sequence[str] = ()) -> None:
    """Run ``main`` under absl, with readable errors.

    Args:
      main: receives the arguments that are no flags, after the name of the program.
      commands: of which one may be given without dashes.
    """

    def parse(argv: list[str]) -> list[str]:
        try:
            return app.parse_flags_with_usage(argv)
        except (AttributeError, KeyError, TypeError, ValueError, OSError) as error:
            # What ml_collections raises for a bad override, and a config file for its own faults.
            text = " ".join(str(error).strip("'\"").replace("\\n", " ").split())
            if isinstance(error, AttributeError | KeyError) and text.isidentifier():
                text = f"it has no key {text!r}; the file lists the keys that can be overridden"
            print(f"error: the configuration cannot be read: {text}", file=sys.stderr)
            sys.exit(2)

    one_lapack_thread()

    def guarded(argv: list[str]) -> None:
        if len(argv) > 1 and (len(argv) > 2 or argv[1] not in commands):
            also = f" but {' or '.join(commands)}" if commands else ""
            print(
                f"error: unexpected arguments {argv[1:]}; every option{also} begins with --.",
                file=sys.stderr,
            )
            sys.exit(2)
        _set_up_logs()
        with one_sentence():
            join_hosts()
            main(argv)

    app.run(guarded, flags_parser=parse)


if __name__ == "__main__":
    sys.exit("process.py only helps the launchers; run search.py, train.py or evaluate.py.")
