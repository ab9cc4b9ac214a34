// The demon of chapter 2 in a browser: neurons to choose from, a slider for Δz, C and its tangent.
//
// All numbers come from Python (demon.py): `_numbers` has z, a and δ of each neuron shown,
// `_curves` its C after the nudges span * i / STEPS, i = -STEPS … STEPS, and `_cost_after` C after
// `nudge`, which need not be one of those. So a page without Python behind it shows the same.

const STEPS = 40;
const ROWS = 10; // neurons on top of each other; a layer of more has several columns

// JupyterLab takes arrows as its own, to go to another cell, but where an element bears this name.
const KEEPS_KEYS = "data-lm-suppress-shortcuts";

function put(parent, tag, attributes = {}, text = null) {
  const svg = parent.namespaceURI.endsWith("svg") || tag === "svg";
  const node = svg
    ? document.createElementNS("http://www.w3.org/2000/svg", tag)
    : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text !== null) node.textContent = text;
  parent.append(node);
  return node;
}

// The float64 numbers of a DataView.
function floats(view) {
  const count = view.byteLength / 8;
  return Array.from({ length: count }, (_, i) => view.getFloat64(8 * i, true));
}

const typeset = (text) => text.replace("e+", "e").replaceAll("-", "−");
const count = (number, noun) => `${number} ${noun}${number === 1 ? "" : "s"}`;

function shown(value, digits = 5) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  const text = !Number.isFinite(value)
    ? String(value).replace("Infinity", "∞")
    : size < 1e-3 || size >= 1e6
      ? value.toExponential(digits - 1)
      : String(Number(value.toPrecision(digits)));
  return typeset(text);
}

// Round numbers, about `count` of them, in [low, high]: [value, text] each.
function ticks(low, high, count) {
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((factor) => factor * power >= rough) * power;
  const decimals = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  const found = [];
  for (let i = Math.ceil(low / step); i * step <= high; i++) {
    const value = i * step;
    const plain = decimals <= 15 && Math.abs(value) < 1e15;
    const text = plain ? value.toFixed(decimals) : String(Number(value.toPrecision(6)));
    found.push([value, typeset(text)]);
  }
  return found;
}

function render({ model, el }) {
  const root = put(el, "div", { class: "backprop-gpu-demon" });
  const title = put(root, "p", { class: "title" });
  const lead = "While Δz is small, C changes by about ∂C/∂z\u00a0Δz = δ\u00a0Δz.";
  put(root, "p", { class: "lead" }, lead);
  const stage = put(root, "div", { class: "stage" });
  const left = put(stage, "div");
  const network = put(left, "div", { class: "network", role: "group" });
  network.setAttribute("aria-label", "Neurons: arrow keys move, Enter chooses");
  const scale = put(left, "div", { class: "scale" });
  const note = put(left, "div", { class: "note" });
  const right = put(stage, "div");
  const legend = put(right, "div", { class: "legend" });
  put(legend, "span", { class: "of-curve" }, "C(Δz)");
  put(legend, "span", { class: "of-tangent" }, "C + δ Δz");
  const plot = put(right, "div", { class: "plot" });
  const label = put(right, "label", { class: "slider" });
  const axis = put(label, "span", {}, "Δz");
  const slider = put(label, "input", { type: "range", min: -STEPS, max: STEPS, step: 1 });
  slider.setAttribute(KEEPS_KEYS, "");
  const list = put(root, "dl", { class: "numbers" });
  const numbers = ["z", "a", "δ", "Δz", "C", "C(Δz)", "ΔC", "δ Δz"].map((name) => {
    const entry = put(list, "div");
    put(entry, "dt", {}, name);
    return put(entry, "dd");
  });

  let neurons = []; // {l, j, z, a, delta, costs, column, row, button}
  const at = (l, j) => neurons.find((neuron) => neuron.l === l && neuron.j === j);
  const focused = () => {
    const active = root.getRootNode().activeElement; // some notebooks draw in a shadow tree
    return neurons.find(({ button }) => button === active);
  };
  const nudgeOf = (i) => (model.get("span") * i) / STEPS;

  function move(changes) {
    for (const [name, value] of Object.entries(changes)) model.set(name, value);
    // One of the slider's, after which C is known for every neuron.
    model.set("nudge", nudgeOf(slider.valueAsNumber));
    model.save_changes();
    draw();
  }

  function focus({ button }) {
    for (const other of neurons) other.button.tabIndex = -1;
    button.tabIndex = 0;
    button.focus();
  }

  slider.addEventListener("input", () => move({}));

  network.addEventListener("keydown", (event) => {
    const from = focused();
    const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (!from || !(event.key in steps)) return;
    event.preventDefault();
    event.stopPropagation();
    const [across, down] = steps[event.key];
    const column = neurons.filter((neuron) => neuron.column === from.column + across);
    const to = column[down ? from.row + down : Math.min(from.row, column.length - 1)];
    if (to) focus(to);
  });

  function build() {
    const values = floats(model.get("_numbers"));
    const curves = floats(model.get("_curves"));
    const points = 2 * STEPS + 1;
    const before = focused();
    let columns = 0;
    neurons = [];
    network.replaceChildren();
    model.get("_layers").forEach(({ size, activation, neurons: drawn }, l) => {
      const place = (name, column, text = null) => {
        const node = put(network, "div", { class: name }, text);
        node.style.gridColumn = column;
        return node;
      };
      if (l === 0) {
        const inputs = place("inputs", 1);
        for (let k = 0; k < Math.min(size, ROWS); k++) put(inputs, "i");
        place("caption", 1, `x, ${count(size, "input")}`);
        return;
      }
      place("arrow", 2 * l, "→").setAttribute("aria-hidden", "true");
      const rows = Math.ceil(drawn.length / Math.ceil(drawn.length / ROWS));
      const cells = place("neurons", 2 * l + 1);
      cells.style.gridTemplateRows = `repeat(${rows}, auto)`;
      drawn.forEach((j, i) => {
        const k = neurons.length;
        const [z, a, delta] = values.slice(3 * k, 3 * k + 3);
        const button = put(cells, "button", { class: "neuron", type: "button" });
        const neuron = { l, j, z, a, delta, button };
        neuron.costs = curves.slice(points * k, points * (k + 1));
        neuron.column = columns + Math.floor(i / rows);
        neuron.row = i % rows;
        button.setAttribute(KEEPS_KEYS, "");
        button.title = `neuron ${j} of layer ${l}, δ = ${shown(delta)}`;
        button.setAttribute("aria-label", button.title);
        button.addEventListener("click", () => move({ layer: l, neuron: j }));
        neurons.push(neuron);
      });
      columns += Math.ceil(drawn.length / rows);
      const caption = place("caption", 2 * l + 1, `layer ${l}, ${activation}`);
      const part = drawn.length < size ? `${drawn.length} of ` : "";
      put(caption, "div", {}, `${part}${count(size, "neuron")}`);
    });

    // Roots tell small δ apart.
    const sizes = neurons.map(({ delta }) => Math.abs(delta));
    const largest = Math.max(0, ...sizes.filter(Number.isFinite));
    for (const { delta, button } of neurons) {
      const strength = Math.min(1, Math.sqrt(Math.abs(delta) / largest)) || 0;
      button.style.setProperty("--colour", delta < 0 ? "var(--negative)" : "var(--positive)");
      button.style.setProperty("--strength", `${Math.round(100 * strength)}%`);
    }
    const wide = model.get("_layers").some(({ size, neurons }) => neurons?.length < size);
    note.textContent = wide ? "Of a wide layer: the neurons of largest |\u2060δ\u2060|" : "";
    scale.replaceChildren();
    put(scale, "span", {}, `δ: ${shown(-largest, 2)}`);
    put(scale, "i");
    put(scale, "span", {}, shown(largest, 2));
    if (before && at(before.l, before.j)) focus(at(before.l, before.j));
  }

  function draw() {
    const here = at(model.get("layer"), model.get("neuron"));
    if (!here) return; // what Python has to say of it is on its way
    const nudge = model.get("nudge");
    const known = here.costs.findIndex((_, i) => nudgeOf(i - STEPS) === nudge);
    const cost = here.costs[STEPS];
    const after = known < 0 ? floats(model.get("_cost_after"))[0] : here.costs[known];
    const { l, j, z, a, delta, button } = here;
    title.textContent = `A demon at neuron ${j} of layer ${l} adds Δz to its weighted input z`;
    const chooses = focused();
    for (const other of neurons) {
      other.button.setAttribute("aria-pressed", other === here);
      if (!chooses) other.button.tabIndex = other === here ? 0 : -1;
    }
    const hidden = button.offsetLeft - network.scrollLeft;
    if (hidden < 0 || hidden > network.clientWidth - button.offsetWidth) {
      network.scrollLeft = button.offsetLeft - network.clientWidth / 2;
    }
    slider.value = Math.round((nudge / model.get("span")) * STEPS);
    slider.setAttribute("aria-valuetext", `Δz = ${shown(nudge)}, ΔC = ${shown(after - cost)}`);
    [z, a, delta, nudge, cost, after, after - cost, delta * nudge].forEach((value, k) => {
      numbers[k].textContent = shown(value, 7);
    });
    plot.replaceChildren();
    if (plot.clientWidth) drawCurve(here, nudge, cost, after);
  }

  function drawCurve({ l, j, costs, delta }, nudge, cost, after) {
    const span = model.get("span");
    const drawable = (c) => Math.abs(c) < 1e300;
    const [least, most] = costs.some(drawable)
      ? [Math.min(...costs.filter(drawable)), Math.max(...costs.filter(drawable))]
      : [0, 1];
    const moves = most - least > 1e-12 * Math.abs(most); // and is not rounding
    const room = (moves ? most - least : Math.abs(most)) / 5 || 1;
    const [low, high] = [least - room, most + room];
    const levels = ticks(low, high, 5);

    const [width, height] = [plot.clientWidth, plot.clientHeight];
    const left = 16 + 7 * Math.max(3, ...levels.map(([, text]) => text.length));
    const [right, top, bottom] = [width - 14, 20, height - 24];
    axis.style.width = `${left - 8}px`; // the slider is the plot's axis
    const x = (h) => left + ((h + span) / (2 * span)) * (right - left);
    const y = (c) => bottom - ((c - low) / (high - low)) * (bottom - top);
    const svg = put(plot, "svg", { role: "img" });
    svg.setAttribute("aria-label", `C against Δz at neuron ${j} of layer ${l}, and its tangent`);
    const line = (name, x1, y1, x2, y2) => put(svg, "line", { class: name, x1, y1, x2, y2 });
    const write = (text, x, y, anchor) => put(svg, "text", { x, y, "text-anchor": anchor }, text);

    for (const [level, text] of levels) {
      line("rule", left, y(level), right, y(level));
      write(text, left - 6, y(level) + 4, "end");
    }
    for (const [h, text] of ticks(-span, span, 4)) {
      line("rule", x(h), top, x(h), bottom);
      write(text, x(h), bottom + 16, "middle");
    }
    write("C", left - 6, top - 8, "end");

    // The tangent as far as there is room.
    const ends = [-span, span].map((h) => {
      const c = Math.min(high, Math.max(low, cost + delta * h));
      return [delta ? (c - cost) / delta : h, c];
    });
    if (drawable(delta) && drawable(cost)) {
      line("tangent", x(ends[0][0]), y(ends[0][1]), x(ends[1][0]), y(ends[1][1]));
    }
    let pen = "M";
    const path = costs.map((c, i) => {
      const step = drawable(c) ? `${pen}${x(nudgeOf(i - STEPS))} ${y(c)}` : "";
      pen = step ? "L" : "M";
      return step;
    });
    put(svg, "path", { class: "curve", d: path.join("") });

    if (!drawable(after) || !drawable(cost)) return;
    if (delta * nudge + cost >= low && delta * nudge + cost <= high) {
      put(svg, "circle", { class: "predicted", cx: x(nudge), cy: y(cost + delta * nudge), r: 4 });
    }
    line("base", x(0), y(cost), x(nudge), y(cost));
    line("change", x(nudge), y(cost), x(nudge), y(after));
    put(svg, "circle", { class: "start", cx: x(0), cy: y(cost), r: 3 });
    put(svg, "circle", { class: "point", cx: x(nudge), cy: y(after), r: 6 });
  }

  const rebuild = () => {
    build();
    draw();
  };
  const listeners = ["layer", "neuron", "nudge", "span", "_cost_after"].map((name) => [name, draw]);
  for (const name of ["_layers", "_numbers", "_curves"]) listeners.push([name, rebuild]);
  for (const [name, listener] of listeners) model.on(`change:${name}`, listener);
  const observer = new ResizeObserver(draw);
  observer.observe(plot);
  rebuild();
  return () => {
    observer.disconnect();
    for (const [name, listener] of listeners) model.off(`change:${name}`, listener);
  };
}

// The same on a page by itself. `state` has bytes in base64.
function page(el, state) {
  for (const name of ["_numbers", "_curves", "_cost_after"]) {
    const bytes = Uint8Array.from(atob(state[name]), (character) => character.charCodeAt(0));
    state[name] = new DataView(bytes.buffer);
  }
  const nothing = () => {};
  const set = (name, value) => (state[name] = value);
  const get = (name) => state[name];
  render({ model: { get, set, save_changes: nothing, on: nothing, off: nothing }, el });
}

export default { render };
