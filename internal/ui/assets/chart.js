// A line chart in SVG. Nothing is built from strings: all text goes through
// textContent, so that label values cannot become markup.

const NS = "http://www.w3.org/2000/svg";
const HEIGHT = 380;
const MARGIN = { top: 14, right: 16, bottom: 28, left: 62 };
export const COLOURS = 10;
export const MAX_LINES = 100;

function svg(name, attributes, parent) {
  const node = document.createElementNS(NS, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (parent) parent.append(node);
  return node;
}

// niceStep returns the round step nearest above span/count.
function niceStep(span, count) {
  const raw = span / count;
  const power = 10 ** Math.floor(Math.log10(raw));
  for (const factor of [1, 2, 2.5, 5, 10]) if (factor * power >= raw) return factor * power;
  return 10 * power;
}

const TIME_STEPS = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400, 172800, 604800, 1209600, 2592000, 7776000, 31536000];

function timeTicks(start, end, count) {
  const step = TIME_STEPS.find((s) => (end - start) / s <= count) ?? TIME_STEPS.at(-1);
  // Ticks are round in the reader's own time zone.
  const offset = new Date(start * 1000).getTimezoneOffset() * 60;
  const ticks = [];
  for (let t = Math.ceil((start - offset) / step) * step + offset; t <= end; t += step) ticks.push(t);
  return { step, ticks };
}

function timeLabel(t, step) {
  const date = new Date(t * 1000);
  const two = (n) => String(n).padStart(2, "0");
  const clock = `${two(date.getHours())}:${two(date.getMinutes())}`;
  const day = `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())}`;
  if (step >= 86400) return day;
  if (step < 60) return `${clock}:${two(date.getSeconds())}`;
  return clock === "00:00" ? day.slice(5) : clock;
}

export function formatTime(t) {
  const date = new Date(t * 1000);
  const two = (n) => String(n).padStart(2, "0");
  return `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())} ${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}`;
}

// axisLabel is short; the table and the tooltip have all digits.
function axisLabel(v, step) {
  if (v === 0) return "0";
  const size = Math.max(Math.abs(v), step);
  for (const [unit, suffix] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (size >= unit) return `${Number((v / unit).toPrecision(6))}${suffix}`;
  }
  if (size < 1e-4) return v.toExponential(2);
  return String(Number(v.toPrecision(6)));
}

function bounds(series) {
  let low = Infinity;
  let high = -Infinity;
  for (const s of series) {
    for (const [, v] of s.points) {
      if (!Number.isFinite(v)) continue;
      low = Math.min(low, v);
      high = Math.max(high, v);
    }
  }
  if (low > high) return { low: 0, high: 1 };
  if (low === high) {
    const pad = Math.abs(low) * 0.1 || 1;
    return { low: low - pad, high: high + pad };
  }
  // A range that comes near zero shows it: heights then compare.
  if (low > 0 && low < 0.4 * high) low = 0;
  if (high < 0 && high > 0.4 * low) high = 0;
  const pad = (high - low) * 0.04;
  return { low: low === 0 ? 0 : low - pad, high: high === 0 ? 0 : high + pad };
}

// pathOf breaks the line where samples are missing, and returns lone points apart.
function pathOf(points, step, x, y) {
  let d = "";
  const dots = [];
  let run = [];
  const flush = () => {
    if (run.length === 1) dots.push(run[0]);
    if (run.length > 1) d += "M" + run.map(([px, py]) => `${px.toFixed(1)} ${py.toFixed(1)}`).join("L");
    run = [];
  };
  let previous = -Infinity;
  for (const [t, v] of points) {
    if (!Number.isFinite(v)) { flush(); continue; }
    if (t - previous > step * 1.5) flush();
    run.push([x(t), y(v)]);
    previous = t;
  }
  flush();
  return { d, dots };
}

// draw shows series ({name, colour, points: [[seconds, value]]}) between start and
// end. onZoom(start, end) is called when a part of the time axis is dragged over.
export function draw(container, series, { start, end, step }, onZoom) {
  container.replaceChildren();
  const width = Math.max(container.clientWidth - 16, 280);
  const root = svg("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, role: "img" });
  const title = svg("title", {}, root);
  title.textContent = `${series.length} series from ${formatTime(start)} to ${formatTime(end)}; the Table tab has the values.`;

  const { low, high } = bounds(series);
  const inner = { w: width - MARGIN.left - MARGIN.right, h: HEIGHT - MARGIN.top - MARGIN.bottom };
  const x = (t) => MARGIN.left + ((t - start) / (end - start || 1)) * inner.w;
  const y = (v) => MARGIN.top + (1 - (v - low) / (high - low)) * inner.h;

  const yStep = niceStep(high - low, 6);
  for (let i = Math.ceil(low / yStep); i * yStep <= high; i++) {
    const v = i * yStep;
    svg("line", { class: "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: y(v), y2: y(v) }, root);
    svg("text", { x: MARGIN.left - 8, y: y(v) + 4, "text-anchor": "end" }, root).textContent = axisLabel(v, yStep);
  }
  const time = timeTicks(start, end, Math.max(2, Math.floor(inner.w / 95)));
  for (const t of time.ticks) {
    svg("line", { class: "grid", x1: x(t), x2: x(t), y1: MARGIN.top, y2: HEIGHT - MARGIN.bottom }, root);
    svg("text", { x: x(t), y: HEIGHT - 8, "text-anchor": "middle" }, root).textContent = timeLabel(t, time.step);
  }
  for (const s of series) {
    const { d, dots } = pathOf(s.points, step, x, y);
    if (d) svg("path", { class: `line c${s.colour}`, d }, root);
    for (const [cx, cy] of dots) svg("circle", { class: `dot c${s.colour}`, cx, cy, r: 2.2 }, root);
  }
  container.append(root);
  hover(container, root, series, { start, end, step, x, y, width, inner }, onZoom);
}

function hover(container, root, series, { start, end, step, x, y, width, inner }, onZoom) {
  const cursor = svg("line", { class: "cursor", y1: MARGIN.top, y2: HEIGHT - MARGIN.bottom, visibility: "hidden" }, root);
  const marker = svg("circle", { class: "dot", r: 4, visibility: "hidden" }, root);
  const selection = svg("rect", { class: "selection", y: MARGIN.top, height: inner.h, visibility: "hidden" }, root);
  const tooltip = document.createElement("div");
  tooltip.className = "tooltip";
  tooltip.hidden = true;
  container.append(tooltip);
  let anchor = null;

  const position = (event) => {
    const box = root.getBoundingClientRect();
    const px = (event.clientX - box.left) * (width / box.width);
    const py = (event.clientY - box.top) * (HEIGHT / box.height);
    const t = start + ((px - MARGIN.left) / inner.w) * (end - start);
    return { px, py, t: Math.min(Math.max(t, start), end) };
  };
  const hide = () => {
    tooltip.hidden = true;
    for (const node of [cursor, marker, selection]) node.setAttribute("visibility", "hidden");
  };
  root.addEventListener("pointerdown", (event) => {
    anchor = position(event).t;
    root.setPointerCapture(event.pointerId);
  });
  root.addEventListener("pointerup", (event) => {
    const t = position(event).t;
    const [from, to] = [Math.min(anchor ?? t, t), Math.max(anchor ?? t, t)];
    anchor = null;
    hide();
    if (to - from > (end - start) / 60) onZoom(from, to);
  });
  root.addEventListener("pointercancel", () => { anchor = null; hide(); });
  root.addEventListener("pointerleave", () => { if (anchor === null) hide(); });
  root.addEventListener("pointermove", (event) => {
    const { py, t } = position(event);
    if (anchor !== null) {
      const [from, to] = [Math.min(anchor, t), Math.max(anchor, t)];
      selection.setAttribute("x", x(from));
      selection.setAttribute("width", x(to) - x(from));
      selection.setAttribute("visibility", "visible");
    }
    let best = null;
    for (const s of series) {
      const point = nearest(s.points, t);
      if (!point || !Number.isFinite(point[1]) || Math.abs(point[0] - t) > step * 1.5) continue;
      const distance = Math.abs(y(point[1]) - py);
      if (!best || distance < best.distance) best = { s, point, distance };
    }
    if (!best) { hide(); return; }
    const cx = x(best.point[0]);
    cursor.setAttribute("x1", cx);
    cursor.setAttribute("x2", cx);
    cursor.setAttribute("visibility", "visible");
    marker.setAttribute("cx", cx);
    marker.setAttribute("cy", y(best.point[1]));
    marker.setAttribute("class", `dot c${best.s.colour}`);
    marker.setAttribute("visibility", "visible");
    const value = document.createElement("strong");
    value.textContent = String(best.point[1]);
    const when = document.createElement("div");
    when.textContent = formatTime(best.point[0]);
    const name = document.createElement("div");
    name.className = "mono";
    name.textContent = best.s.name;
    tooltip.replaceChildren(when, value, name);
    tooltip.hidden = false;
    const share = cx / width;
    tooltip.style.left = share < 0.5 ? `calc(${share * 100}% + 18px)` : "auto";
    tooltip.style.right = share < 0.5 ? "auto" : `calc(${(1 - share) * 100}% + 18px)`;
    tooltip.style.top = `${Math.max(8, Math.min(py, 220))}px`;
  });
}

// nearest finds the point whose time is nearest to t, by bisection.
function nearest(points, t) {
  let [low, high] = [0, points.length - 1];
  if (high < 0) return null;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (points[middle][0] < t) low = middle + 1; else high = middle;
  }
  const before = points[low - 1];
  return before && t - before[0] < points[low][0] - t ? before : points[low];
}
