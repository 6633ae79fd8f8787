// Completion of metric and function names in the query field: an ARIA combobox.

const FUNCTIONS = [
  "abs", "absent", "absent_over_time", "avg", "avg_over_time", "bottomk", "ceil", "changes", "clamp", "clamp_max", "clamp_min", "count",
  "count_over_time", "count_values", "day_of_month", "day_of_week", "days_in_month", "delta", "deriv", "exp", "floor", "group",
  "histogram_avg", "histogram_count", "histogram_fraction", "histogram_quantile", "histogram_sum", "hour", "idelta", "increase", "irate",
  "label_join", "label_replace", "last_over_time", "ln", "log10", "log2", "max", "max_over_time", "min", "min_over_time", "minute", "month",
  "predict_linear", "present_over_time", "quantile", "quantile_over_time", "rate", "resets", "round", "scalar", "sgn", "sort", "sort_desc",
  "sqrt", "stddev", "stddev_over_time", "sum", "sum_over_time", "time", "timestamp", "topk", "vector", "year",
];
const WORD = /[a-zA-Z_:][a-zA-Z0-9_:]*$/;

// attach completes in field, showing list. metricNames(fragment) resolves to the
// names that contain fragment.
export function attach(field, list, metricNames) {
  let options = [];
  let selected = -1;
  let asked = 0;

  const close = () => {
    asked++;
    list.hidden = true;
    options = [];
    selected = -1;
    field.setAttribute("aria-expanded", "false");
    field.removeAttribute("aria-activedescendant");
  };
  const select = (index) => {
    selected = index;
    [...list.children].forEach((node, i) => node.setAttribute("aria-selected", String(i === index)));
    if (index >= 0) {
      field.setAttribute("aria-activedescendant", list.children[index].id);
      list.children[index].scrollIntoView({ block: "nearest" });
    }
  };
  const accept = (index) => {
    const before = field.value.slice(0, field.selectionStart);
    const after = field.value.slice(field.selectionStart).replace(/^[a-zA-Z0-9_:]+/, "");
    const start = before.length - (before.match(WORD)?.[0].length ?? 0);
    const { name, kind } = options[index];
    const inserted = kind === "function" && !after.startsWith("(") ? `${name}(` : name;
    field.value = before.slice(0, start) + inserted + after;
    field.setSelectionRange(start + inserted.length, start + inserted.length);
    close();
    field.dispatchEvent(new Event("resize-field"));
  };
  const show = (names) => {
    options = names;
    list.replaceChildren(...names.map(({ name, kind }, i) => {
      const node = document.createElement("li");
      node.id = `name-${i}`;
      node.setAttribute("role", "option");
      node.textContent = name;
      if (kind) {
        const tag = document.createElement("span");
        tag.textContent = kind;
        node.append(tag);
      }
      node.addEventListener("pointerdown", (event) => { event.preventDefault(); accept(i); });
      return node;
    }));
    list.hidden = names.length === 0;
    field.setAttribute("aria-expanded", String(names.length > 0));
    select(-1);
  };
  const suggest = async () => {
    const ticket = ++asked;
    const before = field.value.slice(0, field.selectionStart);
    const word = before.match(WORD)?.[0] ?? "";
    // Inside braces, brackets and strings a word is no metric.
    const outside = before.replace(/"(?:[^"\\]|\\.)*"?|'(?:[^'\\]|\\.)*'?|`[^`]*`?/g, "");
    const open = (a, b) => outside.split(a).length > outside.split(b).length;
    if (word.length < 2 || open("{", "}") || open("[", "]") || !outside.endsWith(word)) { close(); return; }
    const functions = FUNCTIONS.filter((f) => f.startsWith(word) && f !== word).map((name) => ({ name, kind: "function" }));
    let metrics = [];
    try {
      metrics = (await metricNames(word)).filter((n) => n !== word).map((name) => ({ name, kind: "" }));
    } catch {
      // Completion is a help only: a query shows its own errors.
    }
    if (ticket !== asked) return;
    const rank = ({ name }) => (name.startsWith(word) ? 0 : 1);
    metrics.sort((a, b) => rank(a) - rank(b) || (a.name < b.name ? -1 : 1));
    show([...functions.slice(0, 4), ...metrics].slice(0, 20));
  };

  let timer = 0;
  field.addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(suggest, 150); });
  field.addEventListener("blur", () => { clearTimeout(timer); close(); });
  // Answers true if the key was for the list.
  return {
    close: () => { clearTimeout(timer); close(); },
    key(event) {
      if (list.hidden) return false;
      switch (event.key) {
        case "ArrowDown": select((selected + 1) % options.length); break;
        case "ArrowUp": select((selected + options.length - (selected < 0 ? 0 : 1)) % options.length); break;
        case "Escape": close(); break;
        case "Tab": accept(Math.max(selected, 0)); break;
        case "Enter":
          if (selected < 0) return false;
          accept(selected);
          break;
        default: return false;
      }
      event.preventDefault();
      return true;
    },
  };
}
