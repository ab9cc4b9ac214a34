"""The demon of chapter 2 as a widget: choose a neuron, nudge its z, watch C."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import imports, pictures, validation
from ..arrays import to_numpy
from ..engines.passes import quiet
from ..files import write_whole
from ..gradient_check import NudgedPass
from ..network import Network

if TYPE_CHECKING:
    import anywidget
    import traitlets
    from matplotlib.axes import Axes
else:
    anywidget = imports.optional("anywidget", "widget", "backprop_gpu.widgets")
    traitlets = imports.optional("traitlets", "widget", "backprop_gpu.widgets")

#: Neurons shown of a layer, and of all layers together: their curves travel with the widget.
SHOWN_OF_LAYER, SHOWN = 30, 60

#: Nudges of a curve on either side of 0. demon.js has the number too.
STEPS = 40

#: A page by itself. The policy lets it fetch nothing, whatever it holds.
_PAGE = """<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; \
script-src 'unsafe-inline'; style-src 'unsafe-inline'">
<link rel="icon" href="data:,">
<title>The demon in a network of {sizes}</title>
<style>
:root {{ color-scheme: light dark; font-family: system-ui, sans-serif; }}
body {{ max-width: 60rem; margin: 1rem auto; padding: 0 1rem; }}
{css}</style>
<main id="demon"></main>
<script type="application/json" id="state">{state}</script>
<script type="module">
{module}
page(document.getElementById("demon"), JSON.parse(document.getElementById("state").textContent));
</script>
</html>
"""


class Demon(anywidget.AnyWidget):
    """A demon that sits at neuron j of layer l and adds Δz to its weighted input z_j^l.

    C then changes by about ∂C/∂z_j^l Δz = δ_j^l Δz (Nielsen, *Neural Networks and Deep Learning*,
    chapter 2). In a notebook the network is shown, its neurons coloured by δ: choose one, nudge its
    z, and watch C leave its tangent. Without one the attributes tell the same.

    Parameters
    ----------
    network : Network
        As it is now: training it further does not change the demon.
    x : (n_0,) array
        One row.
    y : number or (n_L,) array
        Its target: an integer may be a label, as in `Network.fit`.
    span : float, default 2.0
        The largest |Δz|, in (0, 1e100].

    Attributes
    ----------
    layer : int
        l, from 1 to L. Assign to move the demon; it takes the layer's neuron of largest |δ| where
        the layer has no neuron of the present number.
    neuron : int
        j, from 0 to n_l - 1. Assign to move the demon.
    nudge : float
        Δz, in [-span, span]. Assign to nudge.

    Raises
    ------
    TypeError, ValueError
        For a network, x, y or span that is none; also if an output is at the edge of what the cost
        is defined for, where C has no slope that could be told.
    traitlets.TraitError
        If layer, neuron or nudge are assigned what they cannot be; they stay what they were.

    Notes
    -----
    At first the demon sits where |δ| is largest and nudges z downhill by a quarter of `span`: it is
    a good demon. All is computed in float64, as by `Network.check_gradients`. Of a wide layer the
    neurons of largest |δ| are shown, at most 30, and 60 in all.

    Examples
    --------
    >>> from backprop_gpu import Network
    >>> from backprop_gpu.widgets import Demon
    >>> net = Network([2, 3, 1], seed=1, backend="numpy")
    >>> demon = Demon(net, x=[0.0, 1.0], y=1)
    >>> demon.layer, demon.neuron, demon.nudge = 1, 2, 0.1
    >>> abs(demon.change - demon.delta * demon.nudge) < 1e-3
    True
    """

    # `validation` says better than a trait's type what was expected, and takes NumPy's numbers.
    layer: traitlets.TraitType[Any, Any] = traitlets.TraitType(help="l").tag(sync=True)
    neuron: traitlets.TraitType[Any, Any] = traitlets.TraitType(help="j").tag(sync=True)
    nudge: traitlets.TraitType[Any, Any] = traitlets.TraitType(help="Δz").tag(sync=True)
    span = traitlets.Float(help="the largest |Δz|", read_only=True).tag(sync=True)

    # What the front end draws. Arrays travel as bytes of little-endian float64, since JSON has no
    # NaN. A row each for the neurons of `_layers`:
    _layers: traitlets.List[Any] = traitlets.List(help="sizes, σ and neurons, input first").tag(
        sync=True
    )
    _numbers = traitlets.Bytes(help="z, a and δ").tag(sync=True)
    _curves = traitlets.Bytes(help="C after each nudge of the grid").tag(sync=True)
    _cost_after = traitlets.Bytes(help="C after `nudge`, which the grid may lack").tag(sync=True)
    # Assigned, and not anywidget's defaults, which `ipywidgets.embed` leaves out of a page.
    _esm = traitlets.Unicode(help="demon.js").tag(sync=True)
    _css = traitlets.Unicode(help="demon.css").tag(sync=True)

    def __init__(self, network: Network, x: Any, y: Any, *, span: float = 2.0) -> None:
        if not isinstance(network, Network):
            raise TypeError(f"network must be a backprop_gpu.Network, got {network!r}")
        x, y = to_numpy("x", x), to_numpy("y", y)
        if x.ndim != 1:
            n = network.sizes[0]
            raise ValueError(f"x must be one row of shape ({n},), got shape {x.shape}")
        if y.ndim > 1:
            raise ValueError(
                f"y must be one target, a number or a row of them, got shape {y.shape}"
            )
        span = validation.number("span", span, "(0, 1e100]")
        X, Y = network.model.check_data(x[np.newaxis], y[np.newaxis], names=("x", "y"))
        model = network.model
        with np.errstate(all="ignore"):
            self._pass = NudgedPass(model, model.read(network.parameters), X, Y, name="x")
        self._sizes = network.sizes
        self._grid = span * np.arange(-STEPS, STEPS + 1) / STEPS
        self._costs: dict[tuple[int, int], np.ndarray] = {}
        layers = range(1, len(self._sizes))
        most = next(
            n
            for n in range(SHOWN_OF_LAYER, 0, -1)
            if n == 1 or sum(min(n, size) for size in self._sizes[1:]) <= SHOWN
        )
        #: Of each layer, by |δ|, the largest first.
        self._ranked = {l: np.argsort(-self._size_of_delta(l), kind="stable") for l in layers}
        self._shown = {l: sorted(ranked[:most].tolist()) for l, ranked in self._ranked.items()}
        #: Those, and the chosen one.
        self._drawn: dict[int, list[int]] = {}
        l = max(layers, key=lambda l: self._size_of_delta(l).max())
        j = int(self._ranked[l][0])
        downhill = -STEPS // 4 if self._delta(l)[j] > 0 else STEPS // 4
        self.set_trait("span", span)
        super().__init__(
            layer=l, neuron=j, nudge=float(self._grid[STEPS + downhill]),
            _esm=_text("demon.js"), _css=_text("demon.css"),
        )  # fmt: skip

    def __repr__(self) -> str:
        return (
            f"<Demon at neuron {self.neuron} of layer {self.layer}: Δz = {self.nudge:g}, "
            f"ΔC = {self.change:.4g}, δΔz = {self.delta * self.nudge + 0.0:.4g}>"
        )

    # -- what it sees -----------------------------------------------------------------

    @property
    def z(self) -> float:
        """The weighted input z_j^l before the nudge."""
        return self._numbers_of(self.layer, self.neuron)[0]

    @property
    def a(self) -> float:
        """The activation a_j^l before the nudge."""
        return self._numbers_of(self.layer, self.neuron)[1]

    @property
    def delta(self) -> float:
        """The error δ_j^l = ∂C/∂z_j^l, by backpropagation."""
        return self._numbers_of(self.layer, self.neuron)[2]

    @property
    def cost(self) -> float:
        """C before the nudge."""
        return float(self._curve_of(self.layer, self.neuron)[STEPS])

    @property
    def change(self) -> float:
        """ΔC = C(Δz) - C, which δΔz is about."""
        return self._after() - self.cost

    @property
    def curve(self) -> tuple[np.ndarray, np.ndarray]:
        """(Δz, C(Δz)), each (k,): from -span to span in steps of span / 40, and `nudge`."""
        h, costs = self._grid, self._curve_of(self.layer, self.neuron)
        if self.nudge in h:
            return h.copy(), costs.copy()
        i = int(np.searchsorted(h, self.nudge))
        return np.insert(h, i, self.nudge), np.insert(costs, i, self._after())

    def plot(self, ax: Any = None) -> Axes | np.ndarray:
        """Draw C(Δz), its tangent and the nudge with Matplotlib.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
            By default that of a new figure.

        Returns
        -------
        matplotlib.axes.Axes
            What was drawn into.
        """
        return pictures.nudges(
            ax, *self.curve, cost=self.cost, delta=self.delta, nudge=self.nudge,
            after=self._after(), title=f"neuron {self.neuron} of layer {self.layer}",
        )  # fmt: skip

    def save_html(self, path: str | os.PathLike[str]) -> None:
        """Write the widget as it is to a page that needs neither Python nor a network.

        Parameters
        ----------
        path : path
            A file that is there is replaced in one step.
        """
        state = self.get_state(
            ["layer", "neuron", "nudge", "span", "_layers", "_numbers", "_curves", "_cost_after"]
        )
        for name, value in state.items():
            if isinstance(value, bytes):
                state[name] = base64.b64encode(value).decode()
        page = _PAGE.format(
            sizes=", ".join(map(str, self._sizes)),
            css=self._css,
            module=self._esm,
            state=json.dumps(state).replace("<", "\\u003c"),  # no name may end the element
        )
        write_whole(path, page.encode())

    # -- how it follows -----------------------------------------------------------------

    def _delta(self, l: int) -> np.ndarray:
        delta: np.ndarray = np.asarray(self._pass.batch.delta[l])[0]
        return delta

    def _size_of_delta(self, l: int) -> np.ndarray:
        """|δ^l|, (n_l,), where a NaN counts as 0."""
        size: np.ndarray = np.nan_to_num(np.abs(self._delta(l)), nan=0.0)
        return size

    def _numbers_of(self, l: int, j: int) -> tuple[float, float, float]:
        """(z, a, δ)."""
        batch = self._pass.batch
        z, a, delta = (float(np.asarray(of[l])[0, j]) for of in (batch.z, batch.a, batch.delta))
        return z, a, delta

    @quiet
    def _curve_of(self, l: int, j: int) -> np.ndarray:
        """C after each nudge of the grid, in one pass."""
        found = self._costs.get((l, j))
        if found is None:
            found = self._costs[l, j] = self._pass.costs_after(l, j, self._grid)
        return found

    @quiet
    def _after(self) -> float:
        """C after `nudge`."""
        found = np.flatnonzero(self._grid == self.nudge)
        if found.size:
            return float(self._curve_of(self.layer, self.neuron)[found[0]])
        return float(self._pass.costs_after(self.layer, self.neuron, np.array([self.nudge]))[0])

    @traitlets.validate("layer", "neuron", "nudge")
    def _check(self, proposal: Any) -> Any:
        name, value = proposal["trait"].name, proposal["value"]
        try:
            if name == "nudge":
                return validation.number(name, value, f"[{-self.span}, {self.span}]")
            depth = len(self._sizes) - 1
            l = validation.integer("layer", value if name == "layer" else self.layer, 1, depth)
            if name == "layer":
                return l
            return validation.integer(f"neuron of layer {l}", value, 0, self._sizes[l] - 1)
        except (TypeError, ValueError) as error:
            raise traitlets.TraitError(str(error)) from error

    @traitlets.observe("layer", "neuron", "nudge")
    def _follow(self, _: Any) -> None:
        if self.neuron >= self._sizes[self.layer]:
            self.neuron = int(self._ranked[self.layer][0])  # which comes here again
            return
        if self.neuron not in self._drawn.get(self.layer, ()):
            self._drawn = dict(self._shown)
            if self.neuron not in self._shown[self.layer]:
                self._drawn[self.layer] = sorted([*self._shown[self.layer], self.neuron])
            self._draw()
        self._cost_after = _bytes([self._after()])

    def _draw(self) -> None:
        """Tell the front end of the neurons that are drawn, in one message."""
        places = [(l, j) for l, neurons in self._drawn.items() for j in neurons]
        with self.hold_sync():
            self._layers = [{"size": self._sizes[0]}] + [
                {
                    "size": self._sizes[l],
                    "activation": self._pass.activations[l - 1].name,
                    "neurons": neurons,
                }
                for l, neurons in self._drawn.items()
            ]
            self._numbers = _bytes([self._numbers_of(l, j) for l, j in places])
            self._curves = _bytes([self._curve_of(l, j) for l, j in places])


def _text(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _bytes(numbers: Any) -> bytes:
    return np.asarray(numbers, "<f8").tobytes()
