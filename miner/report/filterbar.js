// The filter bar of the decisions: fields, what is set of them, and how to unset it.

function filterBar(data, marks, state, changed) {
  const fields = {};
  const search = h("input", {
    type: "search",
    id: "search",
    placeholder: "Search queries and ids",
    autocomplete: "off",
    spellcheck: "false",
    "aria-label": "search queries and ids",
  });
  fields.search = search;
  const choices = choicesOf(data, marks);
  const more = h("div", { class: "fields" });
  const primary = h("div", { class: "fields" });
  for (const [name, label, options] of choices) {
    fields[name] = h("select", { id: `f-${name}` }, h("option", { value: "" }, "any"), options);
    (name === "decision" || name === "grade" ? primary : more).append(field(label, fields[name]));
  }
  const [low, high] = range(data.score);
  for (const [name, label, hint] of [
    ["min", "score from", low],
    ["max", "score to", high],
  ]) {
    fields[name] = h("input", {
      type: "number",
      step: "any",
      id: `f-${name}`,
      placeholder: Number.isFinite(hint) ? decimal(hint) : "",
    });
    more.append(field(label, fields[name]));
  }
  const order = h(
    "select",
    { id: "f-order" },
    h("option", { value: "job" }, "as in the job"),
    h("option", { value: "hits" }, "most matches first"),
  );
  more.append(field("order", order));
  fields.marked = h("input", { type: "checkbox", id: "f-marked" });
  primary.append(h("label", { class: "check" }, fields.marked, " marked only"));
  const details = h(
    "details",
    { class: "more-filters" },
    h("summary", {}, `More filters (${more.childElementCount})`),
    more,
  );
  const chips = h("div", { class: "set", role: "group", "aria-label": "filters that are set" });
  const take = () => {
    const spec = {};
    for (const [name, one] of Object.entries(fields)) spec[name] = name === "marked" ? one.checked : one.value;
    if (state.order === order.value && Object.keys(spec).every((name) => spec[name] === state.spec[name])) return;
    state.spec = { ...NO_FILTER, ...spec };
    state.order = order.value;
    drawSet();
    changed();
  };
  const put = (part) => {
    for (const [name, value] of Object.entries(part)) {
      if (!fields[name]) continue;
      if (name === "marked") fields[name].checked = value;
      else fields[name].value = value;
    }
    take();
  };
  const clear = () => put(NO_FILTER);
  const drawSet = () => {
    const set = Object.entries(state.spec).filter(([name, value]) => value !== NO_FILTER[name] && name !== "search");
    fill(
      chips,
      set.map(([name]) =>
        h(
          "button",
          {
            type: "button",
            class: "chip set-chip",
            title: "take this filter away",
            onclick: () => put({ [name]: NO_FILTER[name] }),
          },
          word(setText(name, fields[name])),
          h("span", { "aria-hidden": "true" }, " ×"),
        ),
      ),
      set.length || state.spec.search
        ? h("button", { type: "button", class: "link", id: "clear", onclick: clear }, "clear all")
        : null,
    );
  };
  for (const one of [...Object.values(fields), order]) one.addEventListener("input", take);
  return {
    box: h(
      "form",
      { class: "filters", role: "search", onsubmit: (event) => event.preventDefault() },
      search,
      primary,
      details,
      chips,
    ),
    search,
    clear,
    set: (part) => put({ ...NO_FILTER, ...part }),
  };
}

const field = (label, input) => h("label", { class: "field" }, h("span", {}, label), input);

function setText(name, one) {
  if (name === "marked") return "marked";
  if (name === "min") return `score ≥ ${one.value}`;
  if (name === "max") return `score ≤ ${one.value}`;
  return `${name === "odd" ? "" : name + ": "}${one.selectedOptions[0]?.textContent.replace(/ \([\d,]+\)$/, "") || ""}`;
}

// [[name, label, options]] of the choices that part the candidates at all.
function choicesOf(data, marks) {
  const choices = [
    ["decision", "decision", decisionOptions(data)],
    ["grade", "grade", gradeOptions(data)],
  ];
  const odd = ODDITIES.map(([name, words, test]) => [name, words, tally(data.size, (i) => test(data, i, marks))]);
  const shown = odd.filter(([name, , n]) => n || name === "my_grade");
  choices.push([
    "odd",
    "worth a look",
    shown.map(([name, words, n]) => option(name, words, name === "my_grade" ? null : n)),
  ]);
  const outcomes = new Map();
  for (const one of data.queries.outcome) outcomes.set(one, (outcomes.get(one) || 0) + 1);
  if (outcomes.size > 1)
    choices.push(["outcome", "outcome of the query", [...outcomes].map(([name, n]) => option(name, name, n))]);
  for (const name of ["source", "status", "verdict", "rung", "band"]) {
    const options = wordOptions(data, name);
    if (options.length > 1) choices.push([name, name, options]);
  }
  const finders = (data.words.retriever || []).map((name, at) => [name, at, tally(data.size, retrieverTest(data, at))]);
  const known = finders.filter(([name, , n]) => name && n);
  if (known.length > 1)
    choices.push(["retriever", "found by", known.map(([name, at, n]) => option(String(at), name, n))]);
  return choices;
}

const option = (value, name, n) => h("option", { value }, n === null ? line(name) : `${line(name)} (${count(n)})`);

function tally(size, test) {
  let n = 0;
  for (let i = 0; i < size; i++) if (test(i)) n++;
  return n;
}

function counted(codes, size) {
  const found = new Int32Array(size);
  for (const code of codes) if (code < size) found[code]++;
  return found;
}

function wordOptions(data, name) {
  const words = data.words[name] || [];
  const found = counted(data[name], words.length);
  return words.map((one, at) => (found[at] && one ? option(String(at), one, found[at]) : null)).filter(Boolean);
}

function decisionOptions(data) {
  const kinds = { kept: 0, dropped: 0, open: 0 };
  for (let i = 0; i < data.size; i++) kinds[decisionOf(data, i)]++;
  const words = data.words.reason || [];
  const found = counted(data.reason, words.length);
  const reasons = [...found.keys()]
    .filter((at) => found[at] && !UNDECIDED.includes(words[at]))
    .sort((a, b) => found[b] - found[a]);
  return [
    [
      ["kept", "kept"],
      ["dropped", "dropped"],
      ["open", "undecided"],
    ].map(([name, label]) => (kinds[name] ? option(name, label, kinds[name]) : null)),
    reasons.length
      ? h(
          "optgroup",
          { label: "dropped for" },
          reasons.map((at) => option(`r:${at}`, words[at], found[at])),
        )
      : null,
  ];
}

function gradeOptions(data) {
  const found = new Int32Array(5);
  for (const grade of data.grade) found[grade < 0 || grade > 3 ? 4 : grade]++;
  const graded = [0, 1, 2, 3].map((grade) =>
    found[grade] ? option(String(grade), GRADES[grade], found[grade]) : null,
  );
  const high = found[2] + found[3];
  return [graded, high ? option("2+", "2 or 3", high) : null, found[4] ? option("none", "none", found[4]) : null];
}

function range(column) {
  let [low, high] = [Infinity, -Infinity];
  for (const value of column) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  return [low, high];
}

// The filter that shows the candidates of a bar of the flow: its reason, and the source where that is what counts as many.
function filterOf(data, edge) {
  const reason = (data.words.reason || []).indexOf(edge.to);
  if (edge.kind !== "dropped" || reason < 0 || !edge.to) return null;
  const bySource = new Int32Array((data.words.source || []).length);
  let all = 0;
  for (let i = 0; i < data.size; i++) {
    if (data.reason[i] !== reason) continue;
    all++;
    if (data.source[i] < bySource.length) bySource[data.source[i]]++;
  }
  if (!all) return null;
  const source = all === edge.count ? -1 : bySource.indexOf(edge.count);
  return { decision: `r:${reason}`, ...(source >= 0 ? { source: String(source) } : {}) };
}
