"use strict";
// Runs beside each other: curves over one axis, samples, settings, events. The view is in the URL's fragment, so that a
// link keeps it. What the server sends goes into the page as text and nothing else.

const AXES = { tokens: "tokens", step: "steps", hours: "hours of training", flops: "FLOPs of the model" };
const TABS = { curves: "Curves", samples: "Samples", settings: "Settings", events: "Events" };
const TITLES = {
  loss: "loss", "loss by source": "loss by source", lr: "learning rate", grad_norm: "gradient norm",
  tokens_per_second: "tokens per second", mfu: "MFU", data_wait: "share of time that waits for data",
  host_memory_gib: "GiB of the process on the host", gpu_memory_gib: "GiB of tensors on the GPU, at most",
};
const NO_CURVES = new Set(["step", "tokens", "flops", "skipped_positions"]);
const NOISY = new Set(["grad_norm", "tokens_per_second", "mfu", "data_wait"]); // and train/…: what smoothing is for
const COLORS = ["#3f7fe0", "#e0752d", "#2f9e5b", "#cf4a6b", "#8c66d6", "#a27b38", "#d160b2", "#1fa0b3", "#8f9a1f", "#7a8590"];
const DASHES = [[], [6, 3], [2, 3], [9, 3, 2, 3], [1, 2]], GLYPHS = ["───", "╌╌╌", "┈┈┈", "─·─", "···"];
const POLL_MS = 2000, CHOSEN_AT_FIRST = 6, MOST_SAMPLES = 200, PAD = { left: 58, right: 10, top: 16, bottom: 24 };

const $ = (id) => document.getElementById(id);
const isNumber = Number.isFinite;
const runs = []; // as the server numbers them
const charts = new Map(); // title -> chart
const view = {};

// ------------------------------------------------------------------------------------------------ text

/** Show what would steer the direction of text, or be invisible. */
const visible = (text) =>
  text.replace(/[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g,
    (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`);

function h(tag, properties, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children.map((child) => (child instanceof Node ? child : visible(String(child)))));
  return node;
}

function swatch(color) {
  const node = h("span", { className: "swatch" });
  node.style.background = color;
  return node;
}

function short(number) {
  const size = Math.abs(number);
  if (size >= 1000) {
    const power = Math.min(Math.floor(Math.log10(size) / 3 + 1e-9), 7);
    return Number((number / 1000 ** power).toPrecision(4)) + " KMGTPEZ"[power];
  }
  return size && size < 1e-3 ? number.toExponential(2).replace(/\.?0+e/, "e") : String(Number(number.toPrecision(4)));
}

const ago = (seconds) =>
  seconds < 90 ? `${Math.round(seconds)} s` : seconds < 5400 ? `${Math.round(seconds / 60)} min`
    : seconds < 172800 ? `${Math.round(seconds / 3600)} h` : `${Math.round(seconds / 86400)} days`;

// ------------------------------------------------------------------------------------------------ the view

function readFragment() {
  const given = new URLSearchParams(location.hash.slice(1)), smooth = Number(given.get("smooth"));
  const zoom = (given.get("zoom") ?? "").split(",").map(Number);
  view.runs = given.has("runs") ? new Set(given.getAll("runs")) : null; // null: the first few
  view.over = Object.hasOwn(AXES, given.get("over") ?? "") ? given.get("over") : "tokens";
  view.open = Object.hasOwn(TABS, given.get("open") ?? "") ? given.get("open") : "curves";
  view.smooth = smooth > 0 && smooth < 1 ? smooth : 0;
  view.log = given.get("log") === "1";
  view.sample = Math.max(Math.trunc(Number(given.get("sample"))) || 0, 0);
  view.zoom = zoom.length === 2 && zoom.every(isNumber) && zoom[0] < zoom[1] ? zoom : null;
}

/** Change the view, the address and the page. */
function show(changes) {
  Object.assign(view, changes);
  const kept = new URLSearchParams();
  if (view.runs) (view.runs.size ? [...view.runs] : [""]).forEach((name) => kept.append("runs", name));
  for (const [key, usual] of Object.entries({ over: "tokens", open: "curves", smooth: 0, sample: 0 }))
    if (view[key] !== usual) kept.set(key, view[key]);
  if (view.log) kept.set("log", "1");
  if (view.zoom) kept.set("zoom", view.zoom.join(","));
  history.replaceState(null, "", `#${kept}`);
  draw();
  hurry();
}

const isChosen = (run) => (view.runs ? view.runs.has(run.name) : run.number < CHOSEN_AT_FIRST);
const chosen = () => runs.filter(isChosen);
const color = (number) => COLORS[number] ?? `hsl(${(number * 137.5) % 360} 55% 52%)`;
const colorOf = (run) => color(run.number);
const choose = (changed, on) =>
  show({ runs: new Set(runs.filter((run) => (changed(run) ? on : isChosen(run))).map((run) => run.name)) });

// ------------------------------------------------------------------------------------------------ the server's answers

async function ask(path) {
  const answer = await fetch(path);
  if (!answer.ok) throw new Error(`${path}: ${answer.status}`);
  return answer.json();
}

/** Ask for what is new; return whether there was anything. */
async function refresh() {
  const there = (await ask("/runs")).runs;
  let isNew = runs.length !== there.length;
  runs.length = Math.min(runs.length, there.length);
  there.forEach((now, number) => {
    if (runs[number]?.name !== now.name) runs[number] = { number, rows: [], anomalies: [], mark: "", seen: null };
    Object.assign(runs[number], now);
  });
  for (const run of chosen()) {
    if (run.seen === run.version) continue;
    await catchUp(run).then(() => (run.trouble = ""), (error) => (run.trouble = error.message));
    [run.seen, isNew] = [run.version, true];
  }
  return isNew;
}

async function catchUp(run) {
  run.settings ??= await ask(`/settings?run=${run.number}`);
  for (let more = true; more;) {
    const answer = await ask(`/rows?run=${run.number}&after=${run.mark}`);
    run.rows = answer.is_new ? answer.rows : run.rows.concat(answer.rows);
    ({ mark: run.mark, anomalies: run.anomalies, more } = answer);
  }
}

let wake = () => {}, isHurried = false;
const hurry = () => { isHurried = true; wake(); };

async function live() {
  for (;;) {
    isHurried = false;
    try {
      const isNew = !document.hidden && (await refresh());
      $("trouble").textContent = "";
      listRuns();
      if (isNew) draw();
    } catch (error) {
      $("trouble").textContent = `The server does not answer (${visible(error.message)}); trying again.`;
    }
    if (!isHurried) await new Promise((done) => { wake = done; setTimeout(done, POLL_MS); });
  }
}

// ------------------------------------------------------------------------------------------------ what is drawn

/** Make tokens -> place on the axis, or null if the rows don't tell it. Hours count training, at each row's speed. */
function placer(run) {
  const known = [[0, 0]];
  let hours = 0, last = 0;
  for (const row of run.rows) {
    if (view.over !== "hours") {
      if (isNumber(row[view.over])) known.push([row.tokens, row[view.over]]);
    } else if (isNumber(row.tokens_per_second)) {
      hours += (row.tokens - last) / Math.max(row.tokens_per_second, 1e-9) / 3600;
      known.push([(last = row.tokens), hours]);
    }
  }
  return known.length > 1 ? (tokens) => between(known, tokens) : null;
}

/** The last pair whose first is at most x: its index. */
function indexBefore(pairs, x) {
  let [low, high] = [0, pairs.length - 1];
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (pairs[middle][0] <= x) low = middle; else high = middle - 1;
  }
  return low;
}

function between(known, x) {
  const at = indexBefore(known, x), [a, b] = [known[at], known[at + 1]];
  return !b || x <= a[0] ? a[1] : a[1] + ((b[1] - a[1]) * (x - a[0])) / (b[0] - a[0]);
}

/** Average exponentially, without a bias towards 0 at the beginning. */
function smoothed(points, weight) {
  let mean = 0, left = 1;
  return points.map(([x, y]) => {
    mean = weight * mean + (1 - weight) * y;
    left *= weight;
    return [x, mean / (1 - left)];
  });
}

function chartOf(metric) {
  const [first, what, source] = metric.split("/");
  if (first === "train" || first === "val") return source ? `${what} by source` : what;
  return what && (first === "tokens" || first === "epochs") ? `${first} by source` : metric;
}

/** Metric -> its points; they are kept until there are other rows, or another axis. */
function pointsOf(run) {
  if (run.drawnRows === run.rows && run.drawnOver === view.over) return run.points;
  Object.assign(run, { drawnRows: run.rows, drawnOver: view.over, place: placer(run), points: new Map() });
  for (const row of run.place ? run.rows : []) {
    const x = run.place(row.tokens);
    for (const metric in row) {
      if (!isNumber(row[metric]) || NO_CURVES.has(metric)) continue;
      if (!run.points.has(metric)) run.points.set(metric, []);
      run.points.get(metric).push([x, row[metric]]);
    }
  }
  run.events = run.place ? eventsOf(run) : [];
  return run.points;
}

/** Chart's title -> its curves, in the order of TITLES, then as they come. */
function curves() {
  const found = new Map(Object.keys(TITLES).map((title) => [title, []]));
  for (const run of chosen()) {
    for (const [metric, raw] of pointsOf(run)) {
      const title = chartOf(metric), isNoisy = metric.startsWith("train/") || NOISY.has(metric);
      if (!found.has(title)) found.set(title, []);
      const isSmoothed = view.smooth > 0 && isNoisy;
      found.get(title).push({ run, metric, raw: isSmoothed ? raw : null, points: isSmoothed ? smoothed(raw, view.smooth) : raw });
    }
  }
  for (const [title, series] of found) if (!series.length) found.delete(title);
  return found;
}

/** A run's steps out of the ordinary, and changes of its settings. */
function eventsOf(run) {
  const steps = [[0, 0], ...run.rows.map((row) => [row.step, row.tokens])];
  const [lastStep, lastTokens] = steps.at(-1);
  const tokensAt = (step) => (step > lastStep && lastStep ? (step * lastTokens) / lastStep : between(steps, step));
  const changes = run.rows.filter((row) => row.changed).map((row) => ({
    step: row.step, sign: "◇",
    what: Object.entries(row.changed).map(([name, [was, is]]) => `${name}: ${was} → ${is}`).join("; "),
  }));
  const anomalies = run.anomalies.map(({ step, kind, is_rewind: isRewind }) => ({
    step, sign: isRewind ? "◀" : "✕", what: kind + (isRewind ? "; the run went back" : ""),
  }));
  return [...anomalies, ...changes].map((event) => ({ ...event, tokens: tokensAt(event.step) })).sort((a, b) => a.step - b.step);
}

function ticks(low, high, number) {
  const rough = (high - low) / number, unit = 10 ** Math.floor(Math.log10(rough));
  const step = unit * ([1, 2, 5].find((factor) => factor * unit >= rough) ?? 10), found = [];
  for (let i = Math.ceil(low / step); i * step <= high + step * 1e-9 && found.length < 50; i++) found.push(i * step);
  return found;
}

function logTicks(low, high, number) {
  const found = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++)
    for (const factor of high / low > 100 ? [1] : [1, 2, 5]) found.push(factor * 10 ** power);
  const inside = found.filter((tick) => tick >= low && tick <= high);
  return inside.length > 2 ? inside : ticks(low, high, number);
}

function extent(numbers) {
  let [low, high] = [Infinity, -Infinity];
  for (const number of numbers) {
    if (number < low) low = number;
    if (number > high) high = number;
  }
  return low <= high ? [low, high] : null;
}

// ------------------------------------------------------------------------------------------------ charts

function makeChart(title) {
  const canvas = h("canvas", { role: "img" }), hair = h("div", { className: "hair", hidden: true });
  const band = h("div", { className: "band", hidden: true }), legend = h("div", { className: "note" });
  const head = h("h2", {}, TITLES[title] ?? title);
  const figure = h("figure", { className: title === "loss" ? "first" : "" }, head, h("div", { className: "plot" }, canvas, hair, band), legend);
  const chart = { title, figure, canvas, hair, band, legend, from: null };
  canvas.setAttribute("aria-label", TITLES[title] ?? title);
  const at = (event) => Math.min(Math.max(event.offsetX, PAD.left), canvas.clientWidth - PAD.right);
  canvas.addEventListener("pointerdown", (event) => {
    chart.from = at(event);
    canvas.setPointerCapture(event.pointerId);
    hover(chart, chart.from, event);
  });
  canvas.addEventListener("pointermove", (event) => {
    hover(chart, at(event), event);
    band.hidden = chart.from === null || Math.abs(at(event) - chart.from) < 6;
    if (chart.from === null) return;
    band.style.left = `${Math.min(chart.from, at(event))}px`;
    band.style.width = `${Math.abs(at(event) - chart.from)}px`;
  });
  const leave = (event) => {
    [chart.from, band.hidden] = [null, true];
    if (event.pointerType !== "touch") hideTip(); // a finger that is lifted leaves what it pointed at
  };
  canvas.addEventListener("pointerup", (event) => {
    const ends = chart.from === null ? [] : [chart.from, at(event)].sort((a, b) => a - b);
    [chart.from, band.hidden] = [null, true];
    if (ends[1] - ends[0] >= 6) show({ zoom: ends.map((x) => Number(chart.x.invert(x).toPrecision(6))) });
  });
  canvas.addEventListener("pointerleave", leave);
  canvas.addEventListener("pointercancel", leave);
  canvas.addEventListener("dblclick", () => show({ zoom: null }));
  return chart;
}

function hideTip() {
  $("tip").hidden = true;
  for (const chart of charts.values()) chart.hair.hidden = true;
}

function scale([low, high], from, to, isLog) {
  const [a, b] = isLog ? [Math.log(low), Math.log(high)] : [low, high];
  const to_px = (value) => from + (((isLog ? Math.log(value) : value) - a) / (b - a || 1)) * (to - from);
  return Object.assign(to_px, { invert: (px) => a + ((px - from) / (to - from)) * (b - a) });
}

function paint(chart, series, range) {
  const { canvas } = chart, ratio = devicePixelRatio || 1, width = canvas.clientWidth, height = canvas.clientHeight;
  if (!width) return;
  [canvas.width, canvas.height] = [Math.round(width * ratio), Math.round(height * ratio)];
  const pen = canvas.getContext("2d"), style = getComputedStyle(document.body), of = (name) => style.getPropertyValue(name);
  const isDrawn = ([x, y]) => x >= range[0] && x <= range[1] && (!view.log || y > 0);
  let [low, high] = extent(series.flatMap((one) => one.points.filter(isDrawn).map((point) => point[1]))) ?? [0.5, 1];
  if (high - low <= 1e-9 * Math.abs(high)) // what is constant, smoothed
    [low, high] = view.log ? [low / 2, high * 2] : [low - (Math.abs(low) / 2 || 1), high + (Math.abs(high) / 2 || 1)];
  const margin = view.log ? (high / low) ** 0.04 : (high - low) * 0.04;
  const y = scale(view.log ? [low / margin, high * margin] : [low - margin, high + margin], height - PAD.bottom, PAD.top, view.log);
  const x = scale(range, PAD.left, width - PAD.right, false);
  Object.assign(chart, { series, x, y });
  pen.scale(ratio, ratio);
  pen.font = `12px ${style.fontFamily}`;
  [pen.fillStyle, pen.strokeStyle, pen.lineWidth] = [of("--dim"), of("--line"), 1];
  const line = (x0, y0, x1, y1) => { pen.beginPath(); pen.moveTo(x0, y0); pen.lineTo(x1, y1); pen.stroke(); };
  [pen.textAlign, pen.textBaseline] = ["right", "middle"];
  for (const tick of (view.log ? logTicks : ticks)(low, high, height / 38)) {
    line(PAD.left, y(tick), width - PAD.right, y(tick));
    pen.fillText(short(tick), PAD.left - 6, y(tick));
  }
  [pen.textAlign, pen.textBaseline] = ["center", "top"];
  for (const tick of ticks(...range, width / 90)) {
    line(x(tick), PAD.top, x(tick), height - PAD.bottom);
    pen.fillText(short(tick), Math.min(x(tick), width - 16), height - PAD.bottom + 6);
  }
  pen.beginPath();
  pen.save();
  pen.rect(PAD.left, PAD.top, width - PAD.left - PAD.right, height - PAD.top - PAD.bottom);
  pen.clip();
  for (const one of series) {
    [pen.strokeStyle, pen.fillStyle, pen.lineWidth] = [one.color, one.color, 1.6];
    if (one.raw) stroke(pen, one.raw, x, y, 0.25);
    pen.setLineDash(one.dash);
    stroke(pen, one.points, x, y, 1);
    pen.setLineDash([]);
    if (one.points.length < width / 8)
      for (const [px, py] of one.points) { pen.beginPath(); pen.arc(x(px), y(py), 2.4, 0, 7); pen.fill(); }
  }
  pen.restore();
  for (const run of new Set(series.map((one) => one.run))) {
    pen.fillStyle = colorOf(run);
    for (const { sign, tokens } of run.events) {
      const px = x(run.place(tokens));
      if (px >= PAD.left && px <= width - PAD.right) pen.fillText(sign, px, 0);
    }
  }
}

/** Draw a curve; of several points at one pixel, from the lowest to the highest. */
function stroke(pen, points, x, y, alpha) {
  pen.globalAlpha = alpha;
  pen.beginPath();
  for (let i = 0; i < points.length;) {
    const px = Math.round(x(points[i][0]) * 2) / 2;
    let [low, high] = [Infinity, -Infinity];
    for (; i < points.length && Math.round(x(points[i][0]) * 2) / 2 === px; i++) {
      if (view.log && points[i][1] <= 0) continue;
      const py = y(points[i][1]);
      [low, high] = [Math.min(low, py), Math.max(high, py)];
    }
    if (low <= high) { pen.lineTo(px, low); if (high > low) pen.lineTo(px, high); }
  }
  pen.stroke();
  pen.globalAlpha = 1;
}

function hover(chart, px, event) {
  if (!chart.x) return;
  const value = chart.x.invert(px), lines = [h("div", { className: "note" }, `${short(value)} ${AXES[view.over]}`)];
  for (const one of chart.series.slice(0, 14)) {
    const before = indexBefore(one.points, value), [a, b] = [one.points[before], one.points[before + 1]];
    if (chart.x(one.points.at(-1)[0]) < px - 3 || chart.x(one.points[0][0]) > px + 3) continue; // not there
    const near = b && b[0] - value < value - a[0] ? b : a;
    const name = chosen().length > 1 ? one.run.name : "", metric = chart.isMixed || !name ? one.metric : "";
    lines.push(h("div", {}, swatch(one.color), h("span", { className: "name" }, `${name} ${metric}`.trim()),
      h("span", { className: "value" }, short(near[1]))));
  }
  for (const run of new Set(chart.series.map((one) => one.run)))
    for (const { tokens, sign, step, what } of run.events)
      if (Math.abs(chart.x(run.place(tokens)) - px) < 5) lines.push(h("div", {}, swatch(colorOf(run)), `${sign} step ${step}: ${what}`));
  for (const one of charts.values()) {
    one.hair.hidden = !one.x;
    if (one.x) one.hair.style.left = `${one.x(value)}px`;
  }
  const tip = $("tip");
  tip.replaceChildren(...lines);
  tip.hidden = false;
  const left = event.clientX + 16 + tip.offsetWidth > innerWidth ? event.clientX - 16 - tip.offsetWidth : event.clientX + 16;
  tip.style.left = `${Math.max(left, 4)}px`;
  tip.style.top = `${Math.max(Math.min(event.clientY + 12, innerHeight - tip.offsetHeight - 4), 4)}px`;
}

// ------------------------------------------------------------------------------------------------ the page

let drawn = null; // which charts are on the page

function drawCurves() {
  const found = curves(), several = chosen().length > 1, places = [];
  for (const [title, series] of found) {
    const metrics = [...new Set(series.map((one) => one.metric))].sort(); // train/… before val/…
    for (const one of series) {
      const number = metrics.indexOf(one.metric);
      one.color = several ? colorOf(one.run) : COLORS[number % COLORS.length];
      one.order = number;
      one.dash = DASHES[number % DASHES.length];
      places.push(one.points[0][0], one.points.at(-1)[0]);
    }
    if (!charts.has(title)) charts.set(title, makeChart(title));
    series.sort((a, b) => a.run.number - b.run.number || a.order - b.order);
    const chart = charts.get(title);
    chart.isMixed = metrics.length > 1;
    chart.legend.replaceChildren(...(chart.isMixed ? metrics.map((metric, number) => {
      const glyph = h("span", {}, `${GLYPHS[number % GLYPHS.length]} `);
      if (!several) glyph.style.color = COLORS[number % COLORS.length];
      return h("span", {}, glyph, `${metric}  `);
    }) : []));
  }
  const lacking = chosen().filter((run) => run.rows.length && !run.place).map((run) => run.name);
  const content = JSON.stringify([[...found.keys()], lacking]);
  if (content !== drawn) {
    const notes = lacking.length ? [`Without ${AXES[view.over]} in their rows: ${lacking.join(", ")}`] : [];
    if (!found.size && !lacking.length) notes.push("Tick a run; curves begin with its first rows.");
    $("content").replaceChildren(...notes.map((note) => h("p", { className: "note" }, note)),
      h("div", { className: "charts" }, ...[...found.keys()].map((title) => charts.get(title).figure)));
    drawn = content;
  }
  const range = view.zoom ?? extent(places) ?? [0, 1];
  for (const [title, series] of found) paint(charts.get(title), series, range[0] < range[1] ? range : [range[0], range[0] + 1]);
}

function table(head, rows) {
  return h("div", { className: "wide" }, h("table", {}, h("thead", {}, h("tr", {}, ...head.map((cell) => h("th", {}, cell)))),
    h("tbody", {}, ...rows.map((cells) => h("tr", {}, ...cells.map((cell, number) => h("td", { className: number && cell.length > 12 ? "text" : "", dir: "auto" }, cell)))))));
}

const titled = (run) => h("span", { className: "name" }, swatch(colorOf(run)), " ", run.name);

function samplesPage() {
  const told = chosen().map((run) => new Map(run.rows.filter((row) => row.samples?.length).map((row) => [row.step, row.samples])));
  const number = Math.max(0, ...told.flatMap((samples) => [...samples.values()].map((texts) => texts.length)));
  const picker = h("p", {}, ...Array.from({ length: number }, (_, i) => h("button", { onclick: () => show({ sample: i }), ariaPressed: i === view.sample }, `sample ${i + 1}`)));
  const steps = [...new Set(told.flatMap((samples) => [...samples.keys()]))].sort((a, b) => b - a).slice(0, MOST_SAMPLES);
  const rows = steps.map((step) => [step.toLocaleString("en"), ...told.map((samples) => samples.get(step)?.[view.sample] ?? "")]);
  return number ? [picker, table(["step", ...chosen().map(titled)], rows)] : ["No samples yet: they come with validations."];
}

function settingsPage() {
  const all = chosen().map((run) => run.settings ?? {}), names = [...new Set(all.flatMap(Object.keys))].sort();
  const differing = names.filter((name) => new Set(all.map((settings) => settings[name] ?? "")).size > 1);
  if (!differing.length) return [chosen().length > 1 ? "These runs have the same settings." : "Tick two runs or more."];
  return [table(["setting", ...chosen().map(titled)], differing.map((name) => [name, ...all.map((settings) => settings[name] ?? "")]))];
}

function eventsPage() {
  const rows = chosen().flatMap((run) => eventsOf(run).map(({ step, sign, what }) => [titled(run), String(step), `${sign} ${what}`]));
  return rows.length ? [table(["run", "step", "what"], rows)] : ["No anomalies, rewinds or changed settings in these runs."];
}

const PAGES = { samples: samplesPage, settings: settingsPage, events: eventsPage };

function draw() {
  $("over").value = view.over;
  [$("smooth").value, $("smoothed").textContent, $("log").checked] = [view.smooth, view.smooth ? view.smooth.toFixed(2) : "off", view.log];
  $("whole").hidden = !view.zoom;
  $("controls").hidden = view.open !== "curves";
  for (const button of $("tabs").children) button.ariaPressed = button.value === view.open;
  if (view.open === "curves") return drawCurves();
  drawn = null;
  hideTip();
  $("content").replaceChildren(...PAGES[view.open]());
}

function listRuns() {
  const wanted = $("find").value.toLowerCase();
  runs.forEach((run) => {
    if (!run.node) {
      run.box = h("input", { type: "checkbox", onchange: () => choose((one) => one === run, run.box.checked) });
      run.state = h("span", { className: "state" });
      run.node = h("li", {}, h("label", {}, run.box, swatch(colorOf(run)), h("span", { className: "name" }, run.name), run.state));
    }
    run.node.hidden = !run.name.toLowerCase().includes(wanted);
    run.box.checked = isChosen(run);
    run.state.textContent = visible(stateOf(run));
    run.state.title = visible(run.status.reason ?? "");
  });
  const nodes = runs.map((run) => run.node);
  if (nodes.length !== $("runs").children.length || nodes.some((node, i) => node !== $("runs").children[i])) $("runs").replaceChildren(...nodes);
}

function stateOf(run) {
  const { state, step } = run.status, isLate = state === "running" && run.seconds_since_row > 600;
  const parts = [run.trouble || (state ?? "no status") + (isLate ? "?" : "")];
  const last = run.rows.at(-1)?.step ?? (state === "running" ? null : step), loss = run.rows.findLast((row) => isNumber(row["train/loss"]));
  if (isNumber(last)) parts.push(`step ${last.toLocaleString("en")}`);
  if (loss) parts.push(`loss ${short(loss["train/loss"])}`);
  if (state !== "done" && run.seconds_since_row !== null) parts.push(`last row ${ago(run.seconds_since_row)} ago`);
  return parts.join(" · ");
}

for (const [value, name] of Object.entries(TABS)) $("tabs").append(h("button", { value, onclick: () => show({ open: value }) }, name));
for (const [value, name] of Object.entries(AXES)) $("over").append(h("option", { value }, name));
$("over").addEventListener("change", () => show({ over: $("over").value, zoom: null }));
$("smooth").addEventListener("input", () => show({ smooth: Number($("smooth").value) }));
$("log").addEventListener("change", () => show({ log: $("log").checked }));
$("whole").addEventListener("click", () => show({ zoom: null }));
$("controls").addEventListener("submit", (event) => event.preventDefault());
$("find").addEventListener("input", listRuns);
$("all").addEventListener("click", () => choose((run) => !run.node?.hidden, true));
$("none").addEventListener("click", () => choose((run) => !run.node?.hidden, false));
window.addEventListener("hashchange", () => { readFragment(); draw(); hurry(); });
document.addEventListener("visibilitychange", hurry);
document.addEventListener("pointerdown", (event) => event.target.tagName === "CANVAS" || hideTip());
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => draw());
new ResizeObserver(() => view.open === "curves" && draw()).observe($("content"));
readFragment();
draw();
live();
