// Two jobs side by side: what their files say, and the queries whose negatives changed.

const KINDS = [
  ["gained", "gained", "negatives only the second job has"],
  ["lost", "lost", "negatives only the first job has"],
  ["moved", "moved", "negatives of both, at another place"],
];

const SIDES = ["A", "B"];

// The tables of the summary: [[id, title, body]].
function comparisonTables(comparison) {
  const [a, b] = SIDES;
  const table = (rows, first, delta) => ({
    title: "",
    note: "",
    columns: [first, a, b, ...(delta ? ["change"] : [])],
    rows: rows.map((row) => [
      ...row.slice(0, 3),
      ...(delta ? [isNumber(row[1]) && isNumber(row[2]) ? row[2] - row[1] : null] : []),
    ]),
  });
  const made = [];
  const { config = [], counts = [], metrics = [] } = comparison;
  made.push([
    "config",
    "Settings that differ",
    config.length
      ? dataTable(settings(table(config, "setting", false)))
      : h("p", { class: "note" }, "None: the two jobs have the same settings."),
  ]);
  if (counts.length) made.push(["counts", "Counts", dataTable(table(counts, "count", true))]);
  if (metrics.length) made.push(["metrics", "Measures", dataTable(table(metrics, "measure", true))]);
  return made;
}

// A setting may be a list or a whole part of the file.
function settings(table) {
  const shown = (value) =>
    value !== null && typeof value === "object"
      ? JSON.stringify(value)
      : typeof value === "boolean"
        ? String(value)
        : value;
  return { ...table, rows: table.rows.map((row) => row.map(shown)) };
}

function comparisonView(comparison, shown) {
  const queries = comparison.queries || [];
  const texts = queries.map(searchText);
  const state = { found: [], query: -1 };
  const search = h("input", {
    type: "search",
    id: "search",
    placeholder: "Search queries, ids and passages",
    autocomplete: "off",
    "aria-label": "search queries, ids and passages",
  });
  const kind = h(
    "select",
    { id: "f-kind" },
    h("option", { value: "" }, "any change"),
    KINDS.map(([name, label]) => option(name, label, queries.filter((one) => one[name]?.length).length)),
  );
  const why = h(
    "select",
    { id: "f-why" },
    h("option", { value: "" }, "any"),
    reasonsOf(queries).map(([name, n]) => option(name, name, n)),
  );
  const tallyLine = h("p", { class: "tally", role: "status", id: "tally" });
  const list = virtualList({
    name: "queries",
    label: "queries that changed",
    height: ROW,
    draw: (place) => changedRow(queries[state.found[place]]),
    pick: (place) => show(state.found[place], isPhone()),
  });
  const form = h(
    "form",
    { class: "filters", role: "search", onsubmit: (event) => event.preventDefault() },
    search,
    h("div", { class: "fields" }, field("change", kind), field("reason", why)),
  );
  const { view, detail } = twoPanes(
    "changes",
    [form, tallyLine, list.box],
    emptyDetail(queries.length ? "Choose a query on the left." : "No query has other negatives."),
  );
  const apply = () => {
    const wanted = search.value.trim().toLowerCase();
    state.found = [];
    queries.forEach((one, at) => {
      if (wanted && !texts[at].includes(wanted)) return;
      if (
        changes(one).some(
          ([name, row]) => (!kind.value || name === kind.value) && (!why.value || hasReason(row, why.value)),
        )
      )
        state.found.push(at);
    });
    fill(
      tallyLine,
      h("b", {}, plural(state.found.length, "query", "queries")),
      ` of ${count(queries.length)} that changed`,
    );
    list.set(state.found.length, state.found.indexOf(state.query));
    if (state.query < 0 && state.found.length && !isPhone()) show(state.found[0], false);
  };
  const show = (query, open) => {
    state.query = query;
    if (state.found.includes(query)) list.activate(state.found.indexOf(query));
    fill(detail, changedDetail(queries[query], { back, step }));
    detail.scrollTop = 0;
    if (open) {
      view.classList.add("open");
      detail.focus({ preventScroll: true });
    }
    shown(queries[query].id, open);
  };
  const back = () => {
    view.classList.remove("open");
    list.box.focus();
    shown(state.query >= 0 && !isPhone() ? queries[state.query].id : "", false);
  };
  const step = (by) => {
    const next = Math.min(Math.max(state.found.indexOf(state.query) + by, 0), state.found.length - 1);
    if (next >= 0 && state.found[next] !== state.query)
      show(state.found[next], view.classList.contains("open") && isPhone());
  };
  const inside = () => detail.contains(document.activeElement);
  search.addEventListener("input", apply);
  kind.addEventListener("input", apply);
  why.addEventListener("input", apply);
  apply();
  return {
    view,
    list,
    focus: () => search,
    move: (by) => (inside() ? moveFocus([...detail.querySelectorAll(".card")], by) : step(by)),
    step,
    enter: () =>
      state.query >= 0 &&
      (inside() ? back() : (show(state.query, true), moveFocus([...detail.querySelectorAll(".card")], 1))),
    escape: back,
    mark: () => say("marks are made in the report of one job"),
    reveal: (id) => {
      const at = queries.findIndex((one) => one.id === id);
      if (at >= 0) show(at, true);
    },
  };
}

function moveFocus(cards, by) {
  const at = cards.findIndex((card) => card.contains(document.activeElement));
  const next = cards[at < 0 ? 0 : Math.min(Math.max(at + by, 0), cards.length - 1)];
  if (next) focusCard(next);
}

const changes = (query) => KINDS.flatMap(([name]) => (query[name] || []).map((row) => [name, row]));
const reasonOf = (why) => (/^kept as negative \d+$/.test(why || "") ? "kept" : why);
const hasReason = (row, wanted) => reasonOf(row.why_a) === wanted || reasonOf(row.why_b) === wanted;

function searchText(query) {
  const rows = changes(query).map(([, row]) => `${row.doc_id}\n${row.text || ""}`);
  return [query.text, query.id, ...rows].join("\n").toLowerCase();
}

function reasonsOf(queries) {
  const found = new Map();
  for (const query of queries) {
    const own = new Set(changes(query).flatMap(([, row]) => [reasonOf(row.why_a), reasonOf(row.why_b)]));
    for (const name of own) if (name) found.set(name, (found.get(name) || 0) + 1);
  }
  return [...found].sort((a, b) => b[1] - a[1] || (a[0] < b[0] ? -1 : 1));
}

function changedRow(query) {
  const part = (name, letter) =>
    query[name]?.length ? h("span", { class: `delta ${name}`, title: name }, `${letter}${query[name].length}`) : null;
  return [
    h("div", { class: "row-text" }, word(query.text || "(empty)")),
    h("div", { class: "row-meta" }, word(query.id, "id"), part("gained", "+"), part("lost", "−"), part("moved", "↕")),
  ];
}

function changedDetail(query, { back, step }) {
  return h(
    "article",
    { class: "query" },
    queryHead(query.id, query.text || "", { back, step }),
    h(
      "div",
      {},
      KINDS.filter(([name]) => query[name]?.length).map(([name, label, help]) =>
        h(
          "section",
          { "aria-label": label },
          h("h3", { title: help }, `${query[name].length} ${label}`, h("span", { class: "muted" }, ` ${help}`)),
          cardRun(query[name], (row) => changedCard(name, row)),
        ),
      ),
    ),
  );
}

function changedCard(kind, row) {
  const side = (name, why, rank, grade) =>
    h(
      "div",
      { class: "side-of" },
      h("p", { class: "side-name muted" }, word(name)),
      h("p", { class: "side-why" }, word(why || "–")),
      explain(why || "") ? h("p", { class: "why" }, explain(why)) : null,
      values([
        ["rank", rank === null || rank === undefined ? null : count(rank)],
        ["grade", grade === null || grade === undefined ? null : String(grade)],
      ]),
    );
  return h(
    "article",
    { class: `card ${kind}`, tabindex: "-1", "aria-label": `${kind} ${line(String(row.doc_id))}` },
    h(
      "header",
      {},
      h("div", { class: "chips" }, h("span", { class: `verdict ${kind}` }, kind)),
      word(row.doc_id, "id"),
    ),
    h(
      "div",
      { class: "sides" },
      side(SIDES[0], row.why_a, row.rank_a, row.grade_a),
      side(SIDES[1], row.why_b, row.rank_b, row.grade_b),
    ),
    isNumber(row.score) ? values([["score", decimal(row.score)]]) : null,
    row.text === null || row.text === undefined
      ? h("p", { class: "absent" }, "The text of this passage is not in this page.")
      : prose(row.text, [], "passage"),
  );
}
