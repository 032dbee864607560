// The page: opens the data, shows one view at a time, listens to the keys.

const HELP = [
  ["j  k", "next, previous query; inside an open query the next, previous candidate"],
  ["Enter", "into the open query, and back to the list"],
  ["[  ]", "previous, next query from anywhere"],
  ["1 2 3 4", "grade the candidate 0, 1, 2, 3; the same key again takes it back"],
  ["w", "the decision on the candidate is wrong"],
  ["n", "a note on the candidate"],
  ["a", "the raw answer and the prompt of the candidate"],
  ["/", "search"],
  ["s  d  m", "summary, decisions, marks"],
  ["Esc", "back to the list; in the list: clear the filters"],
  ["?", "this help"],
];

async function main() {
  const holder = $("payload");
  const marks = makeMarks(holder.dataset.hash);
  try {
    const payload = await inflate((text) => ($("progress").textContent = text));
    build(payload, marks);
    document.body.dataset.ready = "yes";
  } catch (error) {
    fill($("main"), h("p", { class: "progress", role: "alert" }, `This report cannot be opened: ${error.message}`));
    throw error;
  }
}

function build(payload, marks) {
  document.title = line(String(payload.title));
  const views = new Map();
  let at = "summary";
  const go = (name, id = "", push = true) => {
    if (!views.has(name)) name = "summary";
    at = name;
    for (const [other, one] of views) one.box.hidden = other !== name;
    views.get(name).enter?.();
    document.body.dataset.view = name;
    for (const link of document.querySelectorAll(".bar nav a")) {
      if (link.dataset.view === name) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    address(name, id, push);
  };
  const shown = (name) => (id, push) => at === name && address(name, id, push);
  const browser = payload.browser ? browse(payload, marks, go, shown) : {};
  const link = (edge) => {
    const filter = browser.data && filterOf(browser.data, edge);
    return filter ? () => browser.open(filter) : null;
  };
  const summary = overview(payload, link);
  views.set("summary", { label: "Summary", box: h("div", { class: "view scrolls" }, summary) });
  if (payload.comparison) {
    const changed = comparisonView(payload.comparison, shown("decisions"));
    browser.decisions = changed;
    views.set("decisions", { label: "Queries", box: h("div", { class: "view" }, changed.view) });
  }
  for (const [name, one] of browser.views || []) views.set(name, one);
  fill(
    $("bar"),
    headBar(payload, views, go, () => browser.decisions.list.box.focus()),
  );
  fill(
    $("main"),
    [...views.values()].map(({ box }) => box),
  );
  marks.onchange(() => drawCount(marks));
  drawCount(marks);
  const route = () => {
    const [, name, id] = /^#(\w*)\/?(.*)$/s.exec(location.hash) || [];
    go(name || "summary", id || "", false);
    if (at !== "decisions") return;
    if (id) reveal(payload, browser.decisions, decoded(id));
    else browser.decisions.view.classList.remove("open");
  };
  addEventListener("hashchange", route);
  document.addEventListener("keydown", (event) => press(event, { go, marks, browser, at: () => at }));
  route();
}

function browse(payload, marks, go, shown) {
  const data = columnsOf(payload.browser);
  const decisions = decisionsView(data, marks, shown("decisions"));
  const marked = markedView(data, marks, (query, candidate) => {
    go("decisions");
    decisions.reveal(query, candidate);
  });
  const note = data.note ? h("p", { class: "note pane-note" }, letters(data.note)) : null;
  if (note) decisions.view.querySelector(".side").prepend(note);
  return {
    data,
    decisions,
    open: (part) => {
      go("decisions");
      decisions.filter(part);
    },
    views: [
      ["decisions", { label: "Decisions", box: h("div", { class: "view" }, decisions.view) }],
      ["marks", { label: "Marks", box: h("div", { class: "view scrolls" }, marked.view), enter: marked.draw }],
    ],
  };
}

function reveal(payload, decisions, id) {
  if (payload.comparison) return decisions.reveal(id);
  const query = payload.browser.queries.id.indexOf(id);
  if (query >= 0) decisions.reveal(query);
}

// The address names the view and the open query, so that a link leads there and "back" closes what was opened.
function address(name, id, push) {
  const hash = `#${name}${id ? "/" + encodeURIComponent(wellFormed(id)) : ""}`;
  if (location.hash === hash) return;
  try {
    history[push ? "pushState" : "replaceState"](null, "", hash);
  } catch {
    // a page opened as a file may not be allowed to
  }
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text; // somebody wrote the address by hand
  }
}

const wellFormed = (text) => text.replace(/[\ud800-\udfff]/gu, "\ufffd");

function headBar(payload, views, go, focusList) {
  const choice = document.documentElement.dataset.choice || "auto";
  const theme = h(
    "select",
    {
      id: "theme",
      "aria-label": "theme",
      onchange: (event) => document.dispatchEvent(new CustomEvent("theme", { detail: event.target.value })),
    },
    ["auto", "light", "dark"].map((name) => h("option", { value: name, selected: name === choice }, name)),
  );
  const link = ([name, { label }]) =>
    h(
      "a",
      {
        href: `#${name}`,
        "data-view": name,
        onclick: (event) => {
          event.preventDefault();
          go(name);
          if (name === "decisions") focusList();
        },
      },
      label,
      name === "marks" ? h("span", { class: "badge", id: "mark-count" }) : null,
    );
  return [
    h("h1", {}, word(String(payload.title))),
    h("nav", { "aria-label": "Views" }, [...views].map(link)),
    h(
      "div",
      { class: "tools" },
      theme,
      h(
        "button",
        { type: "button", class: "help-button", "aria-label": "help on keys", title: "keys (?)", onclick: help },
        "?",
      ),
    ),
  ];
}

function drawCount(marks) {
  const badge = $("mark-count");
  if (badge) badge.textContent = marks.size() ? count(marks.size()) : "";
}

function help() {
  const box = h(
    "dialog",
    { "aria-labelledby": "help-title" },
    h("h2", { id: "help-title" }, "Keys"),
    h(
      "dl",
      {},
      HELP.map(([keys, text]) =>
        h(
          "div",
          {},
          h(
            "dt",
            {},
            keys.split(/\s+/).map((key) => h("kbd", {}, key)),
          ),
          h("dd", {}, text),
        ),
      ),
    ),
    h(
      "p",
      { class: "note" },
      "Signs like ",
      h("span", { class: "sign" }, "⟨ESC⟩"),
      " or ",
      h("span", { class: "sign" }, "⟨RLO⟩"),
      " stand for control characters of the text that would not be seen.",
    ),
    h("button", { type: "button", class: "primary", onclick: () => box.close() }, "Close"),
  );
  box.addEventListener("close", () => box.remove());
  box.addEventListener("click", (event) => event.target === box && box.close());
  document.body.append(box);
  box.showModal();
}

// ---------------------------------------------------------------- keys

function press(event, { go, marks, browser, at }) {
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  const typing = event.target.closest?.("input:not([type=checkbox]), select, textarea");
  if (typing && event.key !== "Escape") return;
  const { decisions, data } = browser;
  const browsing = decisions && at() === "decisions";
  const done = () => event.preventDefault();
  if (event.key === "?") return (done(), help());
  if (event.key === "s") return go("summary");
  if (event.key === "m") return go("marks");
  if (event.key === "d" && decisions) return (go("decisions"), decisions.list.box.focus());
  if (event.key === "/" && decisions) return (done(), go("decisions"), decisions.focus().focus());
  if (!browsing) return;
  if (event.key === "Escape" && typing) return decisions.list.box.focus();
  if (event.key === "Enter" && event.target.closest("button, a, summary, input")) return;
  const list = event.target === decisions.list.box;
  const moves = {
    j: 1,
    k: -1,
    ...(list ? { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10, Home: -1e9, End: 1e9 } : {}),
  };
  if (event.key in moves) return (done(), decisions.move(moves[event.key]));
  if (event.key === "]" || event.key === "[") return decisions.step(event.key === "]" ? 1 : -1);
  if (event.key === "Enter") return (done(), decisions.enter());
  if (event.key === "Escape") return decisions.escape();
  const change = data && markKey(event.key, data, marks);
  if (change) {
    done();
    decisions.mark(change);
  }
}

// What a key does to the candidate with the focus; null for another key.
function markKey(key, data, marks) {
  if (key === "a") return (card) => card.querySelector(".answer > summary")?.click();
  if (!/^[1-4wn]$/.test(key)) return null;
  return (card, i) => {
    const obstacle = markObstacle(data, i);
    if (obstacle) return say(obstacle);
    if (key === "n") return openNote(card, data, marks, i);
    const mark = marks.get(i) || {};
    const grade = Number(key) - 1;
    const part = key === "w" ? { wrong: !mark.wrong } : { grade: mark.grade === grade ? null : grade };
    marks.change(i, part);
    drawMark(card, data, marks, i);
    card.focus();
    say(
      key === "w"
        ? part.wrong
          ? "marked wrong"
          : "mark taken back"
        : part.grade === null
          ? "grade taken back"
          : `grade ${part.grade}`,
    );
  };
}

main();
