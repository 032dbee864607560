// The browser of decisions: filters and the list of queries, and beside them the open query.

const ROW = 62;
const CARDS = 60; // at once; a query with more gets a button

// A pane with a list and a pane with what is open, as both browsers of the page have them.
function twoPanes(name, left, right) {
  const detail = h("section", { class: "detail", "aria-label": "open query", tabindex: "-1" }, right);
  const view = h(
    "div",
    { class: `panes ${name}` },
    h("section", { class: "side", "aria-label": "queries" }, left),
    detail,
  );
  return { view, detail };
}

function decisionsView(data, marks, shown) {
  const state = { spec: { ...NO_FILTER }, order: "job", query: -1, found: null, turn: 0 };
  const tally = h("p", { class: "tally", role: "status", id: "tally" });
  const list = virtualList({
    name: "queries",
    label: "queries",
    height: ROW,
    draw: (place) => queryRow(data, marks, state.found, state.found.queries[place]),
    pick: (place) => show(state.found.queries[place], isPhone() ? "open" : ""),
  });
  const bar = filterBar(data, marks, state, () => apply());
  const { view, detail } = twoPanes(
    "decisions",
    [bar.box, tally, list.box],
    emptyDetail("Choose a query on the left."),
  );
  const apply = () => {
    state.found = runFilter(data, marks, state.spec);
    if (state.order === "hits") sortByHits(state.found);
    const { queries, candidates } = state.found;
    fill(
      tally,
      h("b", {}, plural(queries.length, "query", "queries")),
      ` of ${count(data.queries.id.length)}, `,
      h("b", {}, plural(candidates, "candidate")),
      ` of ${count(data.size)}`,
    );
    const at = queries.indexOf(state.query);
    list.set(queries.length, at);
    list.box.classList.toggle("none", !queries.length);
    if (state.query >= 0) drawLater();
    else if (queries.length && !isPhone()) show(queries[0]);
  };
  // The list answers first; the open query follows once the list is on the screen.
  const drawLater = () => {
    const turn = ++state.turn;
    drawn().then(() => turn === state.turn && drawDetail());
  };
  const drawDetail = () => {
    state.turn++;
    fill(detail, queryDetail(data, marks, state.found, state.query, { back, step: (by) => step(by) }));
    detail.scrollTop = 0;
  };
  // how: "open" replaces the list on a phone, "into" also puts the focus on the first candidate
  const show = (query, how = "") => {
    state.query = query;
    const at = state.found.queries.indexOf(query);
    if (at >= 0) list.activate(at);
    else list.set(list.size(), -1);
    drawDetail();
    if (how) view.classList.add("open");
    if (how === "open") detail.focus({ preventScroll: true });
    if (how === "into") move(1) || detail.focus();
    shown(data.queries.id[query], Boolean(how));
  };
  const back = () => {
    view.classList.remove("open");
    list.box.focus();
    shown(state.query >= 0 && !isPhone() ? data.queries.id[state.query] : "", false);
  };
  const step = (by) => {
    const at = state.found.queries.indexOf(state.query);
    const next = Math.min(Math.max(at + by, 0), state.found.queries.length - 1);
    if (next < 0 || next === at) return;
    show(state.found.queries[next], detail.contains(document.activeElement) ? (isPhone() ? "open" : "into") : "");
  };
  const cards = () => [...detail.querySelectorAll(".card[data-place]")];
  const current = () => detail.querySelector(".card:focus-within[data-place]");
  const move = (by) => {
    let all = cards();
    const at = all.indexOf(current());
    if (by > 0 && at === all.length - 1) {
      detail.querySelector(".more-cards")?.click();
      all = cards();
    }
    const next = all[at < 0 ? 0 : Math.min(Math.max(at + by, 0), all.length - 1)];
    if (next) focusCard(next);
    return Boolean(next);
  };
  const inside = () => detail.contains(document.activeElement);
  marks.onchange(() => list.refresh());
  apply();
  return {
    view,
    list,
    focus: () => bar.search,
    move: (by) => (inside() ? move(by) : step(by)),
    step,
    enter: () => state.query >= 0 && (inside() ? back() : show(state.query, "into")),
    escape: () => (inside() || view.classList.contains("open") ? back() : bar.clear()),
    mark: (change) => {
      const card = current();
      if (!card) return say("Enter first: the marks go to the candidate with the focus");
      change(card, Number(card.dataset.place));
    },
    filter: (part) => bar.set(part),
    reveal: (query, candidate) => {
      if (!state.found.queries.includes(query)) bar.clear();
      show(query, "open");
      const find = () => detail.querySelector(`[data-place="${candidate}"]`);
      while (candidate !== undefined && !find() && detail.querySelector(".more-cards"))
        detail.querySelector(".more-cards").click();
      const card = candidate === undefined ? null : find();
      if (card) focusCard(card);
    },
  };
}

function sortByHits(found) {
  found.queries.sort((a, b) => found.hitsOf[b] - found.hitsOf[a] || a - b);
}

const emptyDetail = (text) => h("p", { class: "hint" }, text);

function queryRow(data, marks, found, query) {
  const size = data.end[query] - data.start[query];
  let marked = 0;
  if (marks.size()) for (let i = data.start[query]; i < data.end[query]; i++) marked += marks.has(i);
  const outcome = data.queries.outcome[query];
  return [
    h("div", { class: "row-text" }, word(data.queries.text[query] || "(empty)")),
    h(
      "div",
      { class: "row-meta" },
      word(data.queries.id[query], "id"),
      h("span", { class: "row-count" }, `${data.keptOf[query]}/${size} kept`),
      found.narrow ? h("span", { class: "row-hits" }, `${found.hitsOf[query]} match`) : null,
      marked ? h("span", { class: "row-marked" }, `${marked} marked`) : null,
      outcome && outcome !== "exported" ? h("span", { class: "row-out" }, word(outcome)) : null,
    ),
  ];
}

// ---------------------------------------------------------------- the open query

function queryDetail(data, marks, found, query, { back, step }) {
  const places = [];
  for (let i = data.start[query]; i < data.end[query]; i++) places.push(i);
  const hits = found.narrow ? places.filter((i) => found.hits[i]) : places;
  const others = found.narrow ? places.filter((i) => !found.hits[i]) : [];
  const outcome = data.queries.outcome[query];
  const positives = data.queries.positives[query] || [];
  return h(
    "article",
    { class: "query" },
    queryHead(data.queries.id[query], data.queries.text[query] || "", { back, step }, [
      outcome ? chip(outcome, outcome === "exported" ? "good" : "bad", explain(outcome)) : null,
    ]),
    h(
      "p",
      { class: "muted" },
      `${plural(places.length, "candidate")}, ${count(data.keptOf[query])} kept`,
      found.narrow ? `; ${count(hits.length)} match the filters` : "",
    ),
    h(
      "div",
      { class: "split" },
      h(
        "section",
        { class: "positives", "aria-label": "positives" },
        h("h3", {}, positives.length === 1 ? "Positive" : `${count(positives.length)} positives`),
        positives.length
          ? cardRun(positives, (row) => positiveCard(data, row))
          : h("p", { class: "absent" }, "This query has no positive."),
      ),
      h(
        "section",
        { class: "candidates", "aria-label": "candidates" },
        hits.length || !others.length
          ? [
              h("h3", {}, found.narrow ? `${count(hits.length)} matching` : "Candidates"),
              cardRun(hits, (i) => candidateCard(data, marks, i, found.narrow)),
            ]
          : null,
        places.length ? null : h("p", { class: "absent" }, "No candidate of this query is in this page."),
        others.length
          ? [
              h("h3", {}, `${count(others.length)} others`),
              cardRun(others, (i) => candidateCard(data, marks, i, false)),
            ]
          : null,
      ),
    ),
  );
}

// The bar that stays in sight, which names the query once its text is scrolled away, and the text.
function queryHead(id, text, { back, step }, chips = []) {
  const turn = (by, name, key, letter) =>
    h(
      "button",
      { type: "button", "aria-label": `${name} query`, title: `${name} query (key ${key})`, onclick: () => step(by) },
      letter,
    );
  const bar = h(
    "header",
    { class: "query-bar" },
    h("button", { type: "button", class: "back", onclick: back }, "← Queries"),
    word(id, "id"),
    chips,
    h("span", { class: "query-short", "aria-hidden": "true" }, line(text)),
    turn(-1, "previous", "[", "‹"),
    turn(1, "next", "]", "›"),
  );
  const head = h("h2", {}, prose(text, [], "query-text"));
  new IntersectionObserver(([seen]) => bar.classList.toggle("away", !seen.isIntersecting)).observe(head);
  return [bar, head];
}

// Focus on a card, its top in sight: of one that is taller than the pane the rest is further down.
function focusCard(card) {
  card.focus({ preventScroll: true });
  const tall = card.offsetHeight > card.closest(".detail").clientHeight - 80;
  card.scrollIntoView({ block: tall ? "start" : "nearest" });
}

// The cards of a grid, the first ones at once.
function cardRun(items, draw) {
  const grid = h("div", { class: "grid" });
  let shown = 0;
  const more = h("button", { type: "button", class: "more more-cards" });
  const step = () => {
    grid.append(...items.slice(shown, shown + CARDS).map(draw));
    shown = Math.min(shown + CARDS, items.length);
    more.textContent = `Show more: ${count(items.length - shown)} are left`;
    if (shown >= items.length) more.remove();
  };
  step();
  more.addEventListener("click", step);
  return shown < items.length ? [grid, more] : grid;
}
