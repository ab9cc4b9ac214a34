"""The libraries that are compared, each in a file of its own, written as its users would."""

from __future__ import annotations

import importlib.util
from typing import Literal, Protocol

from ..workloads import Arrays, ProblemInstance, Workload

DeviceType = Literal["cpu", "cuda"]


class PeerTrainer(Protocol):
    """One library at work on one problem, with everything prepared."""

    def run(self) -> None:
        """Train all steps of the problem, in order, from the parameters as they are. Returns when
        the device is done."""

    def parameters(self) -> tuple[Arrays, Arrays]:
        """Weights and biases, shaped as the problem's."""


class Peer(Protocol):
    """A way to train."""

    #: As ``bench --against`` takes it, such as "torch".
    name: str
    #: As tables show it, such as "PyTorch eager".
    label: str

    def obstacle(self, workload: Workload, device: DeviceType) -> str | None:
        """Why it cannot train this here: not installed, no such device, no way to say it."""

    def start(self, problem: ProblemInstance, device: DeviceType) -> PeerTrainer: ...


def absent(module: str, package: str) -> str | None:
    """Why a library cannot be used, without importing it; None where it is installed."""
    return None if importlib.util.find_spec(module) else f"{package} is not installed"


def cpu_only(device: DeviceType) -> str | None:
    return None if device == "cpu" else "it runs on the CPU only"
