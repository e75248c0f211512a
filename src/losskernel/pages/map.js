// The map: one set of points that moves between the maps of several kernels. The state is what is
// below; every change of it ends in draw(), which writes all of it into Bokeh's sources.

const SHAPES = { circle: "M7 1a6 6 0 1 0 .01 0z", triangle: "M7 1 13 13H1z", square: "M2 2h10v10H2z" };
const SIGN = { positive: "#0072b2", negative: "#d55e00" };
const MOVE = matchMedia("(prefers-reduced-motion: reduce)").matches ? 0 : 700; // milliseconds
const MOST_FOUND = 40;

let data, thumbnails, plot, points, lines, marks, filter;
let view, coloring, x, y;
let hidden = new Set(); // categories of the coloring
let matches = null; // a Set of inputs, while something is searched for
let selected = null;

async function start() {
  const code = new TextDecoder().decode(await unpacked("bokeh"));
  document.head.append(element("script", { textContent: code }));
  data = await unpackedData("data");
  thumbnails = JSON.parse(byId("thumbnails").textContent);
  const item = await unpackedData("plot-model");
  // Where WebGL is software, Bokeh's canvas is faster: it draws a tenth of many points while they move.
  if (/swiftshader|llvmpipe|software/i.test(renderer())) item.doc.roots[0].attributes.output_backend = "canvas";
  await Bokeh.embed.embed_item(item, "plot");
  const model = (name) => Bokeh.documents.at(-1).get_model_by_name(name);
  plot = model("plot");
  const source = (name) => plot.renderers.map((r) => r.data_source).find((s) => s.name === name);
  [points, lines, marks] = ["points", "lines", "marks"].map(source);
  filter = plot.renderers.find((r) => r.name === "points").view.filter;
  points.selected.properties.indices.change.connect(() => select(points.selected.indices[0] ?? null));

  data.views.forEach((one, i) => byId("view").append(element("option", { value: i, textContent: one.name })));
  byId("view").onchange = () => showView(data.views[byId("view").value]);
  byId("coloring").onchange = () => color(byId("coloring").value);
  byId("search").oninput = search;
  byId("controls").onsubmit = (event) => {
    event.preventDefault();
    if (matches?.size) select(matches.values().next().value);
  };
  byId("all").onclick = () => { hidden.clear(); legend(); draw(); };
  byId("none").onclick = () => { hidden = new Set([-1, ...coloring.categories.keys()]); legend(); draw(); };
  byId("plot").onmousemove = (event) => place(byId("tooltip"), event);
  byId("plot").onmouseleave = () => { byId("tooltip").hidden = true; };

  showView(data.views[0]);
}

function renderer() {
  const gl = document.createElement("canvas").getContext("webgl");
  const info = gl?.getExtension("WEBGL_debug_renderer_info");
  return info ? gl.getParameter(info.UNMASKED_RENDERER_WEBGL) : "";
}

// Views and colorings.

function showView(next) {
  view = next;
  const from = x && { x, y };
  color(byId("coloring").value);
  if (from) move(from);
  if (selected !== null) describe();
}

function color(name) {
  const all = [...data.colorings, ...view.colorings];
  coloring = all.find((one) => one.name === name) ?? all[0];
  byId("coloring").replaceChildren(...all.map((one) => element("option", { textContent: one.name })));
  byId("coloring").value = coloring.name;
  hidden = new Set();
  legend();
  draw();
}

function move(from) {
  const begun = performance.now();
  const [fromX, fromY] = [Float32Array.from(from.x), Float32Array.from(from.y)];
  const moving = view;
  const step = (now) => {
    if (view !== moving) return; // another kernel was chosen meanwhile
    const t = MOVE ? Math.min(Math.max((now - begun) / MOVE, 0), 1) : 1;
    const s = t * t * (3 - 2 * t);
    x = fromX.map((value, i) => value + s * (view.x[i] - value));
    y = fromY.map((value, i) => value + s * (view.y[i] - value));
    plot.document.interactive_start(plot);
    points.data = { ...points.data, x, y };
    connect();
    if (t < 1) requestAnimationFrame(step);
  };
  step(begun);
}

function draw() {
  x ??= view.x;
  y ??= view.y;
  const of = coloring.of;
  const shown = Array.from(of, (category) => !hidden.has(category));
  filter.booleans = shown;
  points.data = {
    x,
    y,
    color: Array.from(of, (c) => coloring.colors[c] ?? data.grey),
    marker: Array.from(of, (c) => coloring.markers[c] ?? "circle"),
    alpha: Array.from(of, (_, i) => (matches && !matches.has(i) ? 0.06 : 0.85)),
  };
  connect();
  const count = shown.filter(Boolean).length;
  const found = matches ? `; ${matches.size} found` : "";
  byId("status").textContent = `${count} of ${data.names.length} inputs shown${found}`;
}

function legend() {
  const present = new Set(coloring.of);
  const rows = [...coloring.categories.entries()];
  if (present.has(-1)) rows.push([-1, "other"]);
  byId("legend").replaceChildren(...rows.filter(([i]) => present.has(i)).map(([i, name]) => {
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    svg.setAttribute("viewBox", "0 0 14 14");
    svg.setAttribute("aria-hidden", "true");
    const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
    path.setAttribute("d", SHAPES[coloring.markers[i] ?? "circle"]);
    path.setAttribute("fill", coloring.colors[i] ?? data.grey);
    path.setAttribute("stroke", "#333");
    svg.append(path);
    const button = element("button", { type: "button", "aria-pressed": !hidden.has(i) }, svg, name);
    button.onclick = () => {
      if (!hidden.delete(i)) hidden.add(i);
      button.setAttribute("aria-pressed", !hidden.has(i));
      draw();
    };
    return button;
  }));
}

// One input: hover, selection, lines, details.

function neighbors(input) {
  const part = (indices, r) =>
    Array.from({ length: view.k }, (_, j) => ({
      input: indices[input * view.k + j],
      r: r[input * view.k + j] / 32767,
    }));
  return {
    nearest: part(view.nearest, view.nearestR),
    opposed: part(view.opposed, view.opposedR),
  };
}

const sign = (r) => (r < 0 ? "negative" : "positive");

function connect() {
  const ends = { x0: [], y0: [], x1: [], y1: [], color: [], width: [] };
  const rings = { x: [], y: [], size: [], color: [] };
  if (selected !== null) {
    const { nearest, opposed } = neighbors(selected);
    for (const { input, r } of [...nearest, ...opposed]) {
      ends.x0.push(x[selected]);
      ends.y0.push(y[selected]);
      ends.x1.push(x[input]);
      ends.y1.push(y[input]);
      ends.color.push(SIGN[sign(r)]);
      ends.width.push(1 + 4 * Math.abs(r));
      rings.x.push(x[input]);
      rings.y.push(y[input]);
      rings.size.push(13);
      rings.color.push(SIGN[sign(r)]);
    }
    rings.x.push(x[selected]);
    rings.y.push(y[selected]);
    rings.size.push(20);
    rings.color.push("#000000");
  }
  lines.data = ends;
  marks.data = rings;
}

function select(input) {
  if (input === selected) return;
  selected = input;
  points.selected.indices = input === null ? [] : [input];
  connect();
  if (input !== null) describe();
}

function describe() {
  byId("details").replaceChildren(...told(selected, true));
}

function told(input, interactive) {
  const facts = element("dl");
  const fact = (name, value) => value !== null && value !== undefined &&
    facts.append(element("dt", { textContent: name }), element("dd", { textContent: value }));
  fact("class", data.classes[input]);
  fact("place", data.places && data.places[input]);
  fact("self-covariance", view.selfCovariance && number(view.selfCovariance[input]));
  fact("loss", data.loss && number(data.loss[input]));
  if (view.suggested[input])
    fact("suggested label", `${view.suggested[input]} (${Math.round(100 * view.share[input])} % of votes)`);
  const { nearest, opposed } = neighbors(input);
  const listed = (these) => element("ol", { className: "neighbors" }, ...these.map(({ input: other, r }) => {
    const label = element("span", {}, element("span", { className: sign(r), textContent: r.toFixed(3) }), ` ${data.classes[other]}`);
    const parts = [picture(thumbnails[other], data.names[other]) || null, label];
    const made = interactive
      ? element("button", { type: "button", title: data.names[other], onclick: () => select(other) }, ...parts)
      : element("span", {}, ...parts);
    return element("li", {}, made);
  }));
  return [
    element("h2", { textContent: data.names[input] }),
    picture(thumbnails[input], data.names[input]) || "",
    facts,
    element("h2", { textContent: "nearest (R)" }),
    listed(nearest),
    element("h2", { textContent: "most opposed (smallest R)" }),
    listed(opposed),
  ];
}

function hovered(pointer) {
  const [input] = pointer.index.indices;
  const tooltip = byId("tooltip");
  if (input === undefined) {
    tooltip.hidden = true;
  } else if (tooltip.hidden || tooltip.dataset.input !== String(input)) {
    tooltip.dataset.input = input;
    tooltip.replaceChildren(...told(input, false));
    tooltip.hidden = false;
  }
}

function place(tooltip, event) {
  const { offsetWidth: width, offsetHeight: height } = tooltip;
  const left = event.clientX + 18 + width > innerWidth ? event.clientX - 18 - width : event.clientX + 18;
  tooltip.style.left = `${Math.max(left, 0)}px`;
  tooltip.style.top = `${Math.max(Math.min(event.clientY + 12, innerHeight - height - 4), 0)}px`;
}

// Search.

function search() {
  const words = byId("search").value.trim().toLowerCase();
  const holds = (text) => text.toLowerCase().includes(words);
  matches = words
    ? new Set([...data.names.keys()].filter((i) => holds(data.names[i]) || holds(data.classes[i])))
    : null;
  draw();
  const shown = [...(matches ?? [])].slice(0, MOST_FOUND);
  byId("found").replaceChildren(...shown.map((input) =>
    element("button", { type: "button", textContent: `${data.classes[input]}: ${data.names[input]}`, onclick: () => select(input) })));
}

start().catch((error) => { byId("status").textContent = `This page cannot be shown: ${error.message}`; });
