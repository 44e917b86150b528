"""Errors of the data layer, and lazy imports of its optional packages."""

import importlib
from types import ModuleType

from nasjax.core.errors import NasjaxError


class DataError(NasjaxError):
    """Data, or a request for data, that nasjax cannot serve.

    The message says what is wrong, what was expected and what to do about it.
    """


class DataNotFoundError(DataError, FileNotFoundError):
    """A file, folder or prepared dataset that is not on disk."""

    # FileNotFoundError formats itself from (errno, strerror); the plain sentence is wanted.
    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


def require(module: str, purpose: str, requirement: str) -> ModuleType:
    """Imports an optional package at the moment it is needed.

    Args:
        module: dotted name to import, for example `"PIL.Image"`.
        purpose: what needs it, the subject of the error's sentence.
        requirement: what `pip install` should be given.

    Raises:
        DataError: if the package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        # A broken dependency *of* the package is another problem and keeps its own message.
        if getattr(error, "name", None) not in (module, module.split(".")[0]):
            raise
        raise DataError(
            f"{purpose} needs the package {module.split('.')[0]}, which is not installed: "
            f'run pip install "{requirement}".'
        ) from error
