"""Packages that are large, that need not be there, or that are to know of ours."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Around such an import: Ctrl-C is heard when it is over.

    A KeyboardInterrupt in its midst would leave some of a package's modules without the others
    they need, and no later import in this process mends that.
    """
    handler = signal.getsignal(signal.SIGINT)
    # Only the main thread hears signals; ignored or fatal ones have no handler to be called.
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    heard: list[tuple[int, Any]] = []
    signal.signal(signal.SIGINT, lambda number, frame: heard.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if heard:
            handler(*heard[0])


def optional(module: str, extra: str, purpose: str) -> ModuleType:
    """A module of a package that need not be installed.

    Parameters
    ----------
    module : str
        Such as "mlflow.sklearn".
    extra : str
        Of ours, that installs it.
    purpose : str
        What needs it, for the message: "trials", "Network.plot()".

    Raises
    ------
    ImportError
        That names the package and the extra.
    """
    package = module.partition(".")[0]
    try:
        with uninterrupted():
            return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != package:
            raise  # it is there, and lacks something itself
        raise _missing(package, extra, purpose) from error


def require(package: str, extra: str, purpose: str) -> None:
    """Refuse early what needs a package, as `optional` would, without the time an import takes."""
    if importlib.util.find_spec(package) is None:
        raise _missing(package, extra, purpose)


def _missing(package: str, extra: str, purpose: str) -> ImportError:
    return ImportError(
        f"{purpose}: the package {package} is not installed: pip install 'backprop_gpu[{extra}]'"
    )


class _Loader(importlib.abc.Loader):
    """A module's own loader, and what is to be done when the module is there."""

    def __init__(self, loader: Any, actions: Sequence[Callable[[ModuleType], object]]) -> None:
        self._loader = loader
        self._actions = actions

    def __getattr__(self, name: str) -> Any:  # what else its loader can: get_source, is_package
        return getattr(self._loader, name)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        # From here on it is a module as any other.
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        for action in self._actions:
            action(module)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds what is waited for where all others do."""

    def __init__(self) -> None:
        self.waiting: dict[str, list[Callable[[ModuleType], object]]] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in self.waiting:
            return None
        for finder in sys.meta_path:
            if finder is self or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _Loader(spec.loader, self.waiting[fullname])
                return spec
        return None


_FINDER = _Finder()


def when_imported(name: str, action: Callable[[ModuleType], object]) -> None:
    """Do something with a module once it is imported: now, where it has been.

    For packages that keep a list of the classes they know, and that nobody should have to import
    for our sake, nor tell of ours. It must not raise: somebody else's import would.

    Parameters
    ----------
    name : str
        Of the module, such as "skl2onnx".
    action : callable
        Takes the module.
    """
    module = sys.modules.get(name)
    if module is not None and not getattr(module.__spec__, "_initializing", False):
        action(module)
        return
    if _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)
    _FINDER.waiting.setdefault(name, []).append(action)
