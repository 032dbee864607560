// The summary: warnings, facts, the flow of candidates, and the sections with their plots and tables.

const ROWS_AT_FIRST = 50;

// link(edge): what shows the candidates of a bar of the flow, null where there is nothing to browse.
function overview(payload, link) {
  const sections = [];
  if (payload.facts?.length) sections.push(["facts", "Summary", facts(payload.facts)]);
  if (payload.flow?.length) sections.push(["flow", "What became of the candidates", flow(payload.flow, link)]);
  for (const one of payload.sections || []) sections.push([one.id, one.title, sectionBody(one)]);
  if (payload.comparison) sections.splice(1, 0, ...comparisonTables(payload.comparison));
  return h(
    "div",
    { class: "overview" },
    contents(sections),
    h(
      "div",
      { class: "sections" },
      warnings(payload.warnings || []),
      sections.map(([id, title, body]) =>
        h(
          "section",
          { id: `s-${id}`, "aria-labelledby": `t-${id}`, tabindex: "-1" },
          h("h2", { id: `t-${id}` }, line(title)),
          body,
        ),
      ),
      h(
        "footer",
        { class: "made" },
        `Made by miner ${line(String(payload.miner || ""))}. This file holds its data and loads nothing.`,
      ),
    ),
  );
}

// A click goes to the section and leaves the address alone: that names the view.
function contents(sections) {
  const jump = (id) => (event) => {
    event.preventDefault();
    const target = $(`s-${id}`);
    target.scrollIntoView({ behavior: calm() ? "auto" : "smooth", block: "start" });
    target.focus({ preventScroll: true });
  };
  return h(
    "nav",
    { class: "contents", "aria-label": "Sections" },
    h(
      "ul",
      {},
      sections.map(([id, title]) => h("li", {}, h("a", { href: `#s-${id}`, onclick: jump(id) }, line(title)))),
    ),
  );
}

const calm = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

function warnings(found) {
  if (!found.length) return null;
  return h(
    "section",
    { class: "warnings", role: "alert", "aria-label": "Warnings" },
    h("h2", {}, plural(found.length, "warning")),
    h(
      "ul",
      {},
      found.map((text) => h("li", {}, letters(text))),
    ),
  );
}

function facts(rows) {
  return h(
    "dl",
    { class: "facts" },
    rows.map(([name, value]) => {
      const text = cellText(value);
      return h(
        "div",
        { class: text.length > 16 ? "fact long" : "fact" },
        h("dt", {}, line(String(name))),
        h("dd", {}, word(text)),
      );
    }),
  );
}

// Every step with its size against the largest, and what went on and what was dropped as shares of the step.
function flow(edges, link) {
  const steps = new Map();
  for (const edge of edges) steps.set(edge.from, [...(steps.get(edge.from) || []), edge]);
  const total = (group) => group.reduce((sum, edge) => sum + edge.count, 0);
  const largest = Math.max(1, ...[...steps.values()].map(total));
  const rank = (edge) => (edge.kind === "kept" ? Infinity : edge.count);
  return h(
    "div",
    { class: "flow" },
    [...steps].map(([from, group]) => [
      h(
        "h3",
        { class: "flow-row" },
        word(from),
        bar(total(group), largest),
        h("span", { class: "flow-count" }, count(total(group))),
      ),
      h(
        "ul",
        {},
        [...group].sort((a, b) => rank(b) - rank(a) || 0).map((edge) => flowRow(edge, total(group), link(edge))),
      ),
    ]),
  );
}

const bar = (part, whole) =>
  h(
    "span",
    { class: "track", "aria-hidden": "true" },
    h("i", { style: `width:${part ? Math.max(0.3, (100 * part) / (whole || 1)) : 0}%` }),
  );

function flowRow(edge, whole, open) {
  const name = word(String(edge.to));
  const help = explain(edge.to);
  return h(
    "li",
    { class: `flow-row ${edge.kind === "kept" ? "kept" : "dropped"}` },
    h(
      "span",
      { class: "flow-name", title: help || null },
      edge.kind === "kept" ? h("span", { "aria-hidden": "true" }, "→ ") : null,
      open
        ? h("button", { type: "button", class: "link", title: `${help} Show them.`.trim(), onclick: open }, name)
        : name,
    ),
    bar(edge.count, whole),
    h("span", { class: "flow-count" }, count(edge.count)),
    h("span", { class: "flow-share muted" }, percent(edge.count, whole)),
  );
}

function sectionBody(one) {
  return [
    one.note ? h("p", { class: "note" }, letters(one.note)) : null,
    one.plots?.length ? h("div", { class: "plots" }, one.plots.map(figure)) : null,
    (one.tables || []).map(dataTable),
  ];
}

function figure({ title, svg, alt }) {
  const drawing = plot(svg, alt || title);
  if (!drawing) return h("p", { class: "note" }, `The plot ${line(title)} cannot be drawn.`);
  return h(
    "figure",
    {},
    h("figcaption", {}, line(title)),
    h("div", { class: "plot", tabindex: "0", role: "group", "aria-label": line(title) }, drawing),
  );
}

// ---------------------------------------------------------------- tables

const isNumber = (value) => typeof value === "number";

function cellText(value) {
  if (value === null || value === undefined) return "";
  if (!isNumber(value)) return String(value);
  return Number.isInteger(value) ? count(value).replace("-", "−") : decimal(value).replace(/(\.\d*?)0+$/, "$1");
}

const fixed = (value, digits) =>
  value.toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits }).replace("-", "−");

// How many digits after the point a column needs, so that its points stand below each other. 0: each number as it is,
// since counts and shares are mixed.
function digitsOf(rows, at) {
  if (rows.some((row) => Number.isInteger(row[at]) && Math.abs(row[at]) > 1)) return 0;
  const digits = rows.map((row) => (isNumber(row[at]) ? (cellText(row[at]).split(".")[1] || "").length : 0));
  return Math.max(0, ...digits.slice(0, 1000));
}

function columnText(value, digits) {
  if (!isNumber(value) || !digits || Math.abs(value) >= 1e6) return cellText(value);
  return value !== 0 && Math.abs(value) < 1e-4 ? decimal(value) : fixed(value, digits);
}

// A table whose columns sort at a click; numbers stand right. Long ones show their first rows until asked for more.
function dataTable({ title, columns, rows, note }) {
  const numeric = columns.map(
    (_, at) => rows.some((row) => isNumber(row[at])) && rows.every((row) => row[at] == null || isNumber(row[at])),
  );
  const digits = columns.map((_, at) => (numeric[at] ? digitsOf(rows, at) : 0));
  const body = h("tbody", {});
  let order = rows;
  let all = rows.length <= ROWS_AT_FIRST + 10;
  const more = h("button", { type: "button", class: "more" }, `Show all ${count(rows.length)} rows`);
  const draw = () =>
    fill(
      body,
      (all ? order : order.slice(0, ROWS_AT_FIRST)).map((row) => tableRow(row, numeric, digits)),
    );
  const heads = columns.map((name, at) => {
    const head = h("th", { scope: "col", class: numeric[at] ? "number" : null, "aria-sort": "none" });
    const sort = () => {
      const down =
        head.getAttribute("aria-sort") === (numeric[at] ? "none" : "ascending") ||
        (numeric[at] && head.getAttribute("aria-sort") === "ascending");
      for (const one of heads) one.setAttribute("aria-sort", "none");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      order = sorted(rows, at, down);
      draw();
    };
    return fill(
      head,
      rows.length > 1 && name ? h("button", { type: "button", onclick: sort }, line(String(name))) : line(String(name)),
    );
  });
  more.addEventListener("click", () => {
    all = true;
    more.remove();
    draw();
  });
  draw();
  return h(
    "div",
    { class: "table" },
    title ? h("h3", {}, line(title)) : null,
    h(
      "div",
      { class: "scroll", tabindex: "0", role: "region", "aria-label": line(title || "table") },
      h("table", {}, h("thead", {}, h("tr", {}, heads)), body),
    ),
    all ? null : more,
    note ? h("p", { class: "note" }, letters(note)) : null,
  );
}

function tableRow(row, numeric, digits) {
  return h(
    "tr",
    {},
    row.map((value, at) => {
      const text = columnText(value, digits[at]);
      const exact = isNumber(value) && !Number.isInteger(value) ? String(value) : null;
      return h(
        "td",
        { class: numeric[at] ? "number" : null, title: exact },
        text.length > 400 ? prose(text) : word(text),
      );
    }),
  );
}

// Empty cells stay last, equal ones keep their order.
function sorted(rows, at, down) {
  const sign = down ? -1 : 1;
  return [...rows].sort((a, b) => {
    const [x, y] = [a[at], b[at]];
    if (x == null || y == null) return (x == null) - (y == null);
    if (isNumber(x) && isNumber(y)) return sign * (x - y);
    return sign * String(x).localeCompare(String(y), "en", { numeric: true });
  });
}
