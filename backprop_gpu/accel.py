"""An unchanged script gets this library's perceptrons where it asks for scikit-learn's::

    python -m backprop_gpu.accel [--verbose] [--search] script.py [arguments]
    python -m backprop_gpu.accel [--verbose] [--search] -m module [arguments]
    %load_ext backprop_gpu.accel

The script finds ``sys.path`` and ``sys.argv`` as ``python script.py`` would leave them.

`install` binds ``sklearn.neural_network.MLPClassifier`` and ``MLPRegressor`` to classes of the same
names here; what was imported from there before keeps scikit-learn's. ``isinstance`` takes
scikit-learn's own objects for theirs too, such as come out of older pickles. A subclass that
overrides a private method of scikit-learn's, and a parameter that only a newer scikit-learn knows,
are handed back to scikit-learn.

With ``--search`` `GridSearchCV`, `RandomizedSearchCV` and the two that halve are bound to classes
here, too, that train the candidates of a search over our perceptrons as populations; a search over
another estimator is scikit-learn's own.
"""

from __future__ import annotations

import argparse
import importlib
import os
import pkgutil
import runpy
import sys
import warnings
from abc import ABCMeta
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import sklearn.model_selection
import sklearn.neural_network
from sklearn.model_selection import _search, _search_successive_halving
from sklearn.neural_network import _multilayer_perceptron as genuine

from . import estimators
from .estimators.search import CandidatesTogether, is_ours

NAMES = ("MLPClassifier", "MLPRegressor")
_verbose = False


def _report(line: str) -> None:
    if _verbose:
        print(f"backprop_gpu: {line}", file=sys.stderr)


class _Accelerated(ABCMeta):
    """Decides whether a subclass or an object can be ours."""

    _theirs: Any

    def __new__(mcls, name: str, bases: tuple[type, ...], namespace: dict[str, Any]) -> Any:
        ours = [base for base in bases if isinstance(base, _Accelerated)]
        for base in ours:
            theirs = base._theirs  # noqa: SLF001
            private = [
                method
                for method, value in namespace.items()
                if method.startswith("_") and not method.startswith("__") and callable(value)
                and hasattr(theirs, method)
            ]  # fmt: skip
            if private and base.__module__ != __name__:
                warnings.warn(
                    f"{name} overrides {', '.join(private)}, which only scikit-learn calls, of "
                    f"{base.__name__}, which is this library's: it has no effect. Run this script "
                    "without backprop_gpu.accel",
                    stacklevel=2,
                )
            elif private:
                _report(
                    f"{name} is scikit-learn's {theirs.__name__}: it overrides "
                    f"{', '.join(private)}, which only scikit-learn calls"
                )
                given = tuple(theirs if each in ours else each for each in bases)
                return type(theirs)(name, given, namespace)
        return super().__new__(mcls, name, bases, namespace)

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if cls.__module__ == __name__:  # not one of a user's subclasses
            newer = [name for name in kwargs if name not in _parameters(cls)]
            if newer and all(name in _parameters(cls._theirs) for name in newer):
                _report(
                    f"{cls.__name__} is scikit-learn's: parameter {', '.join(newer)} is newer than "
                    "this library"
                )
                return cls._theirs(*args, **kwargs)
            if not cls._takes(*args, **kwargs):
                return cls._theirs(*args, **kwargs)
        return super().__call__(*args, **kwargs)

    def _takes(cls, *args: Any, **kwargs: Any) -> bool:
        """Whether an object that is made so may be ours."""
        return True

    def __instancecheck__(cls, instance: Any) -> bool:
        if super().__instancecheck__(instance):
            return True
        return cls.__module__ == __name__ and cls._theirs in type(instance).__mro__

    def __subclasscheck__(cls, subclass: type) -> bool:
        if super().__subclasscheck__(subclass):
            return True
        # Not by `issubclass`, which would ask the subclasses of theirs, some of which are here.
        return cls.__module__ == __name__ and cls._theirs in subclass.__mro__


def _parameters(cls: Any) -> set[str]:
    return set(cls._get_param_names())


class _Reporting:
    """Logs what every fit ran on."""

    def _end_fit(self, *args: Any, **kwargs: Any) -> None:
        super()._end_fit(*args, **kwargs)  # type: ignore[misc]
        fitted: Any = self
        units = [w.shape[0] for w in fitted.coefs_] + [fitted.n_outputs_]
        plan = "; ".join(line.strip() for line in fitted.plan_.splitlines())
        _report(f"{type(self).__name__} {units}: {plan}")


class MLPClassifier(_Reporting, estimators.MLPClassifier, metaclass=_Accelerated):
    __doc__ = str(estimators.MLPClassifier.__doc__)
    _theirs = genuine.MLPClassifier


class MLPRegressor(_Reporting, estimators.MLPRegressor, metaclass=_Accelerated):
    __doc__ = str(estimators.MLPRegressor.__doc__)
    _theirs = genuine.MLPRegressor


estimators.announce(MLPClassifier, MLPRegressor)


class _Searching(_Accelerated):
    """Leaves searches over others' estimators to scikit-learn."""

    def _takes(cls, *args: Any, **kwargs: Any) -> bool:
        estimator = args[0] if args else kwargs.get("estimator")
        if is_ours(estimator):
            return True
        _report(f"{cls.__name__} is scikit-learn's: it is not over one of our perceptrons")
        return False


class GridSearchCV(CandidatesTogether, _search.GridSearchCV, metaclass=_Searching):
    __doc__ = str(_search.GridSearchCV.__doc__)
    _theirs = _search.GridSearchCV


class RandomizedSearchCV(CandidatesTogether, _search.RandomizedSearchCV, metaclass=_Searching):
    __doc__ = str(_search.RandomizedSearchCV.__doc__)
    _theirs = _search.RandomizedSearchCV


class HalvingGridSearchCV(
    CandidatesTogether, _search_successive_halving.HalvingGridSearchCV, metaclass=_Searching
):
    __doc__ = str(_search_successive_halving.HalvingGridSearchCV.__doc__)
    _theirs = _search_successive_halving.HalvingGridSearchCV


class HalvingRandomSearchCV(
    CandidatesTogether, _search_successive_halving.HalvingRandomSearchCV, metaclass=_Searching
):
    __doc__ = str(_search_successive_halving.HalvingRandomSearchCV.__doc__)
    _theirs = _search_successive_halving.HalvingRandomSearchCV


SEARCHES = (GridSearchCV, RandomizedSearchCV, HalvingGridSearchCV, HalvingRandomSearchCV)


def install(verbose: bool = False, search: bool = False) -> None:
    """Put our perceptrons into ``sklearn.neural_network``, from now on.

    Parameters
    ----------
    verbose : bool
        Print to stderr what trains each network and why, and what is handed back.
    search : bool
        Put our searches into ``sklearn.model_selection``, too.
    """
    global _verbose
    _verbose = verbose
    for name in NAMES:
        setattr(sklearn.neural_network, name, globals()[name])
    if search:
        # Which binds the two that halve to scikit-learn's, and does so once.
        importlib.import_module("sklearn.experimental.enable_halving_search_cv")
        for kind in SEARCHES:
            setattr(sklearn.model_selection, kind.__name__, kind)


def uninstall() -> None:
    """Put scikit-learn's own back."""
    for name in NAMES:
        setattr(sklearn.neural_network, name, getattr(genuine, name))
    for kind in SEARCHES:
        if vars(sklearn.model_selection).get(kind.__name__) is kind:
            setattr(sklearn.model_selection, kind.__name__, kind._theirs)  # noqa: SLF001


def load_ipython_extension(ipython: Any) -> None:
    """``%load_ext backprop_gpu.accel``"""
    install()


def unload_ipython_extension(ipython: Any) -> None:
    """``%unload_ext backprop_gpu.accel``"""
    uninstall()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m backprop_gpu.accel",
        usage="%(prog)s [-h] [--verbose] [--search] (script.py | -m module) [arguments]",
        description="Run a script with this library's perceptrons in place of scikit-learn's.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--verbose",
        action="store_true",
        help="print what trains each network and why, and what is handed back to scikit-learn",
    )
    parser.add_argument(
        "--search",
        action="store_true",
        help="searches over these train all candidates of a shape at once",
    )
    given = list(sys.argv[1:] if arguments is None else arguments)
    # What follows the script or -m is the script's, whatever it looks like.
    ours = len(list(takewhile(lambda each: each[0:1] == "-" and each[1:2] != "m", given)))
    asked, theirs = parser.parse_args(given[:ours]), given[ours:]
    module = None
    if theirs and theirs[0].startswith("-m"):
        module = theirs.pop(0).removeprefix("-m") or (theirs.pop(0) if theirs else "")
    if not (module or theirs) or module == "":
        parser.error("a script or -m MODULE is needed")
    if module is None and not Path(theirs[0]).exists():
        parser.error(f"no such script: {theirs[0]}")
    install(asked.verbose, asked.search)
    if module is not None:
        if not sys.flags.safe_path:
            sys.path.insert(0, os.getcwd())
        sys.argv = ["-m", *theirs]  # until the module is found, as in Python itself
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    else:
        script = Path(theirs[0])
        # A folder or an archive with a __main__.py is put there by `run_path`, even under -P.
        if not sys.flags.safe_path and pkgutil.get_importer(theirs[0]) is None:
            sys.path.insert(0, str(script.resolve().parent))
        sys.argv = theirs
        runpy.run_path(theirs[0], run_name="__main__")
    return 0


if __name__ == "__main__":
    # Under its own name, so that what a script pickles is found again.
    from backprop_gpu import accel

    sys.exit(accel.main())
