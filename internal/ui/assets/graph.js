// The query page: reads the query from the form, asks the API, shows a table or
// a graph, and keeps all of it in the URL.
import { attach } from "./complete.js";
import { COLOURS, MAX_LINES, draw, formatTime } from "./chart.js";

const $ = (id) => document.getElementById(id);
const field = $("query");
const tenantField = $("tenant");
const MAX_ROWS = 1000;
const POINTS = 250;
const RANGES = ["1m", "5m", "15m", "30m", "1h", "2h", "6h", "12h", "1d", "2d", "1w", "2w", "4w", "8w", "26w", "1y"];
const UNITS = { ms: 0.001, s: 1, m: 60, h: 3600, d: 86400, w: 604800, y: 31536000 };

let tab = "table";
let running = null; // the AbortController of the query that runs
let drawn = null; // what the graph shows
let alone = -1; // the series that is shown alone, or -1

// seconds reads a Prometheus duration ("1h30m") or a number of seconds; NaN if it is neither.
function seconds(text) {
  text = text.trim();
  if (/^\d+(\.\d+)?$/.test(text)) return Number(text);
  if (!/^(\d+(ms|s|m|h|d|w|y))+$/.test(text)) return NaN;
  let sum = 0;
  for (const [, n, unit] of text.matchAll(/(\d+)(ms|s|m|h|d|w|y)/g)) sum += Number(n) * UNITS[unit];
  return sum;
}

function durationText(total) {
  let rest = Math.max(1, Math.round(total));
  let text = "";
  for (const unit of ["d", "h", "m", "s"]) {
    const n = Math.floor(rest / UNITS[unit]);
    rest -= n * UNITS[unit];
    if (n > 0) text += n + unit;
  }
  return text;
}

// end is in seconds; an empty field means now.
function end() {
  const t = $("end").value ? new Date($("end").value).getTime() / 1000 : NaN;
  return Number.isFinite(t) ? t : Math.floor(Date.now() / 1000);
}

function setEnd(t) {
  if (t === null) { $("end").value = ""; return; }
  $("end").value = formatTime(t).replace(" ", "T");
}

async function api(path, parameters, signal) {
  const headers = { "Content-Type": "application/x-www-form-urlencoded" };
  if (tenantField) headers[document.body.dataset.tenantHeader] = tenantField.value.trim();
  const get = path.startsWith("label/");
  const body = new URLSearchParams(parameters);
  const response = await fetch(`api/v1/${path}${get ? `?${body}` : ""}`, { method: get ? "GET" : "POST", headers, body: get ? undefined : body, signal });
  const text = await response.text();
  let answer;
  try {
    answer = JSON.parse(text);
  } catch {
    throw new Error(text.trim() || `${response.status} ${response.statusText}`);
  }
  if (answer.status !== "success") throw new Error(answer.error || `${response.status} ${response.statusText}`);
  return answer;
}

const completion = attach(field, $("names"), async (word) =>
  (await api("label/__name__/values", { "match[]": `{__name__=~".*${word}.*"}`, limit: "20" })).data);

function note(kind, text) {
  const node = document.createElement("p");
  node.className = `note ${kind}`;
  node.textContent = text;
  if (kind === "error") node.setAttribute("role", "alert");
  $("notes").append(node);
}

function empty(text) {
  const node = document.createElement("p");
  node.className = "empty";
  node.textContent = text;
  return node;
}

function seriesName(metric) {
  const { __name__: name = "", ...rest } = metric;
  const pairs = Object.entries(rest).map(([k, v]) => `${/^[a-zA-Z_]\w*$/.test(k) ? k : JSON.stringify(k)}=${JSON.stringify(v)}`);
  return name + (pairs.length || !name ? `{${pairs.join(", ")}}` : "");
}

function nameNode(metric) {
  const cell = document.createElement("td");
  cell.className = "mono";
  const { __name__: name = "", ...rest } = metric;
  const head = document.createElement("span");
  head.className = "metric";
  head.textContent = name;
  cell.append(head);
  const pairs = Object.entries(rest);
  if (pairs.length || !name) cell.append("{");
  pairs.forEach(([key, value], i) => {
    const node = document.createElement("span");
    node.className = "label-value";
    node.textContent = JSON.stringify(value);
    cell.append(i ? ", " : "", `${key}=`, node);
  });
  if (pairs.length || !name) cell.append("}");
  return cell;
}

function histogramText(h) {
  const lines = [`count ${h.count}`, `sum ${h.sum}`];
  for (const [kind, low, high, n] of h.buckets ?? []) {
    const [open, close] = [["(", "]"], ["[", ")"], ["(", ")"], ["[", "]"]][kind] ?? ["(", "]"];
    lines.push(`${open}${low}, ${high}${close}  ${n}`);
  }
  return lines.join("\n");
}

// cellText is all that a series has at an instant or, for a range selector, in its range.
function cellText(r) {
  if (r.value) return r.value[1];
  if (r.histogram) return histogramText(r.histogram[1]);
  const floats = (r.values ?? []).map(([t, v]) => `${v} @${t}`);
  return floats.concat((r.histograms ?? []).map(([t, h]) => `count ${h.count} sum ${h.sum} @${t}`)).join("\n");
}

function showTable({ resultType, result }) {
  const panel = $("panel-table");
  if (resultType === "scalar" || resultType === "string") result = [{ metric: {}, value: result }];
  if (result.length === 0) {
    panel.replaceChildren(empty("No series match at this time."));
    return "no series";
  }
  const table = document.createElement("table");
  const head = table.createTHead().insertRow();
  for (const [text, name] of [["Series", ""], ["Value", "value"]]) {
    const th = document.createElement("th");
    th.scope = "col";
    th.textContent = text;
    th.className = name;
    head.append(th);
  }
  const body = table.createTBody();
  for (const r of result.slice(0, MAX_ROWS)) {
    const row = body.insertRow();
    row.append(resultType === "scalar" || resultType === "string" ? Object.assign(document.createElement("td"), { textContent: resultType }) : nameNode(r.metric));
    const value = row.insertCell();
    value.className = "value mono";
    value.textContent = cellText(r);
  }
  panel.replaceChildren(table);
  if (result.length > MAX_ROWS) note("info", `The first ${MAX_ROWS} of ${result.length} series are shown.`);
  return `${result.length} series`;
}

const number = (text) => Number(text.replace("Inf", "Infinity"));

function showGraph({ result }, window) {
  const lines = result.filter((r) => r.values?.length);
  if (lines.length < result.length) note("info", "Native histograms have no single value to draw; use histogram_quantile(), histogram_avg() or histogram_count().");
  if (lines.length > MAX_LINES) note("info", `The first ${MAX_LINES} of ${lines.length} series are drawn. Aggregate, or use topk(), to see fewer.`);
  const series = lines.slice(0, MAX_LINES).map((r, i) => ({
    name: seriesName(r.metric), colour: i % COLOURS, points: r.values.map(([t, v]) => [t, number(v)]),
  }));
  alone = -1;
  drawn = { series, window };
  redraw();
  return `${result.length} series, step ${window.step} s`;
}

function redraw() {
  if (!drawn || tab !== "graph") return;
  const { series, window } = drawn;
  if (series.length === 0) {
    $("chart").replaceChildren(empty("No series match in this range."));
    $("legend").replaceChildren();
    return;
  }
  draw($("chart"), alone < 0 ? series : [series[alone]], window, (from, to) => {
    setEnd(Math.round(to));
    $("range").value = durationText(to - from);
    run(true);
  });
  if ($("legend").dataset.of !== String(series.length) || $("legend").children.length !== series.length) $("legend").replaceChildren();
  $("legend").dataset.of = String(series.length);
  series.forEach((s, i) => {
    let button = $("legend").children[i];
    if (!button) {
      button = document.createElement("button");
      button.type = "button";
      button.addEventListener("click", () => { alone = alone === i ? -1 : i; redraw(); });
      $("legend").append(button);
    }
    const swatch = document.createElement("i");
    button.className = `mono c${s.colour}${alone >= 0 && alone !== i ? " off" : ""}`;
    button.setAttribute("aria-pressed", String(alone === i));
    button.replaceChildren(swatch, s.name);
  });
}

async function run(remember) {
  completion.close();
  running?.abort();
  $("notes").replaceChildren();
  $("status").textContent = "";
  const query = field.value.trim();
  if (remember) history.pushState(null, "", location.pathname + state());
  if (!query) {
    $("panel-table").replaceChildren(empty("Type a query and press Enter."));
    $("chart").replaceChildren(empty("Type a query and press Enter."));
    $("legend").replaceChildren();
    return;
  }
  if (tenantField && !tenantField.reportValidity()) return;
  const range = seconds($("range").value);
  const until = end();
  const step = $("step").value.trim() ? seconds($("step").value) : Math.max(Math.ceil(range / POINTS), 1);
  if (!(range > 0) || !(step > 0)) {
    note("error", "Range and step are durations such as 30s, 15m, 6h or 2d.");
    return;
  }
  const mine = new AbortController();
  running = mine;
  $("run").disabled = true;
  const begin = performance.now();
  try {
    const window = { start: until - range, end: until, step };
    const answer = tab === "graph"
      ? await api("query_range", { query, ...window }, mine.signal)
      : await api("query", { query, time: until }, mine.signal);
    const took = Math.round(performance.now() - begin);
    const size = tab === "graph" ? showGraph(answer.data, window) : showTable(answer.data);
    for (const text of answer.warnings ?? []) note("", text);
    for (const text of answer.infos ?? []) note("info", text);
    $("status").textContent = `${size}, ${took} ms`;
  } catch (error) {
    if (error.name === "AbortError") return;
    note("error", error.message);
    $("panel-table").replaceChildren();
    $("chart").replaceChildren();
    $("legend").replaceChildren();
    drawn = null;
  } finally {
    if (running === mine) {
      running = null;
      $("run").disabled = false;
    }
  }
}

function state() {
  const p = new URLSearchParams({ q: field.value, tab, range: $("range").value });
  if ($("end").value) p.set("end", String(end()));
  if ($("step").value) p.set("step", $("step").value);
  if (tenantField?.value) p.set("tenant", tenantField.value);
  return `?${p}`;
}

function restore() {
  const p = new URLSearchParams(location.search);
  field.value = p.get("q") ?? "";
  $("range").value = p.get("range") || "1h";
  $("step").value = p.get("step") ?? "";
  const at = Number(p.get("end"));
  setEnd(p.get("end") && Number.isFinite(at) ? at : null);
  if (tenantField) tenantField.value = p.get("tenant") ?? "";
  show(p.get("tab") === "graph" ? "graph" : "table");
  fit();
  run(false);
}

function show(name) {
  tab = name;
  for (const other of ["table", "graph"]) {
    const on = other === name;
    $(`tab-${other}`).setAttribute("aria-selected", String(on));
    $(`tab-${other}`).tabIndex = on ? 0 : -1;
    $(`panel-${other}`).hidden = !on;
  }
  $("range-field").hidden = $("step-field").hidden = name !== "graph";
}

function fit() {
  field.style.height = "auto";
  field.style.height = `${field.scrollHeight + 2}px`;
}

function changeRange(direction) {
  const now = seconds($("range").value);
  const next = direction > 0 ? RANGES.find((r) => seconds(r) > now) : RANGES.findLast((r) => seconds(r) < now);
  if (next) $("range").value = next;
  run(true);
}

function moveEnd(direction) {
  setEnd(Math.round(end() + direction * (seconds($("range").value) || 3600) / 2));
  run(true);
}

$("form").addEventListener("submit", (event) => { event.preventDefault(); run(true); });
field.addEventListener("input", fit);
field.addEventListener("resize-field", fit);
field.addEventListener("keydown", (event) => {
  if (completion.key(event)) return;
  if (event.key === "Enter" && !event.shiftKey) {
    event.preventDefault();
    run(true);
  }
});
for (const name of ["table", "graph"]) {
  $(`tab-${name}`).addEventListener("click", () => { show(name); run(true); });
  $(`tab-${name}`).addEventListener("keydown", (event) => {
    if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
    const other = name === "table" ? "graph" : "table";
    show(other);
    $(`tab-${other}`).focus();
    run(true);
  });
}
for (const id of ["range", "step", "end"]) $(id).addEventListener("change", () => run(true));
$("narrower").addEventListener("click", () => changeRange(-1));
$("wider").addEventListener("click", () => changeRange(1));
$("earlier").addEventListener("click", () => moveEnd(-1));
$("later").addEventListener("click", () => moveEnd(1));
$("now").addEventListener("click", () => { setEnd(null); run(true); });
new ResizeObserver(redraw).observe($("panel-graph"));
addEventListener("popstate", restore);
restore();
