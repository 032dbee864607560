// The marked candidates, and the file that they make.

function markedView(data, marks, open) {
  const view = h("div", { class: "page-width" });
  const draw = () =>
    fill(view, h("h2", {}, "Your marks"), marks.size() ? markedBody(data, marks, open, draw) : noMarks());
  draw();
  return { view, draw };
}

function noMarks() {
  return h(
    "p",
    { class: "note" },
    "Nothing is marked yet. Open a query under Decisions and give a candidate a grade with its buttons, or with the keys 1 to 4." +
      " The marks can be exported as a golden file: graded pairs that measure and calibrate the judge.",
  );
}

function markedBody(data, marks, open, draw) {
  const places = marks.places().filter((i) => i < data.size);
  const open_ = places.filter((i) => marks.get(i).grade === null).length;
  const result = h("div", { class: "copied" });
  const who = h("input", {
    type: "text",
    id: "annotator",
    value: marks.annotator(),
    maxlength: 100,
    autocomplete: "off",
  });
  who.addEventListener("input", () => marks.name(who.value));
  return [
    h(
      "p",
      { class: "note" },
      `${plural(places.length, "candidate")} marked. The file is a golden set of split dev, one pair a line; `,
      h("code", {}, "miner golden"),
      " and ",
      h("code", {}, "miner calibrate judge"),
      " read it.",
    ),
    open_
      ? h(
          "p",
          { class: "note" },
          `${plural(open_, "mark")} without a grade: exported with grade null, to be graded here or by `,
          h("code", {}, "miner golden label"),
          ".",
        )
      : null,
    marks.isKept()
      ? null
      : h("p", { class: "note warn" }, "This browser does not keep the marks: export them before you close the page."),
    h(
      "div",
      { class: "actions" },
      h("label", { for: "annotator" }, "Annotator"),
      who,
      h(
        "button",
        { type: "button", class: "primary", id: "export", onclick: () => download(goldenLines(data, marks)) },
        "Download golden.jsonl",
      ),
      h("button", { type: "button", onclick: () => copy(goldenLines(data, marks), result) }, "Copy"),
    ),
    result,
    h(
      "ul",
      { class: "marks" },
      places.map((i) => markedRow(data, marks, i, open, draw)),
    ),
  ];
}

function markedRow(data, marks, i, open, draw) {
  const mark = marks.get(i);
  const query = data.query[i];
  const judge = data.grade[i] >= 0 ? `judge ${data.grade[i]}` : "";
  return h(
    "li",
    {},
    h("div", { class: "marks-grade" }, mark.grade === null ? "–" : String(mark.grade)),
    h(
      "div",
      { class: "marks-body" },
      h(
        "button",
        { type: "button", class: "link", onclick: () => open(query, i) },
        word(data.queries.text[query] || data.queries.id[query]),
      ),
      h("p", { class: "muted" }, [
        word(data.queries.id[query], "id"),
        " · ",
        word(idOf(data, data.passage[i]), "id"),
        judge && ` · ${judge}`,
        mark.wrong && " · decision wrong",
      ]),
      h("p", { class: "snippet" }, word((textOf(data, data.passage[i]) || "").slice(0, 200))),
      mark.note ? h("p", {}, word(mark.note)) : null,
    ),
    h(
      "button",
      {
        type: "button",
        "aria-label": `remove the mark of ${line(idOf(data, data.passage[i]))}`,
        onclick: () => {
          marks.change(i, { grade: null, wrong: false, note: "" });
          draw();
        },
      },
      "remove",
    ),
  );
}

function download(text) {
  const address = URL.createObjectURL(new Blob([text], { type: "application/jsonl" }));
  const link = h("a", { href: address, download: "golden.jsonl" });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
  say("golden.jsonl is made");
}

// To the clipboard; where the browser forbids that, into a field that is selected already.
async function copy(text, result) {
  try {
    await navigator.clipboard.writeText(text);
    fill(result, h("p", { class: "note" }, "Copied."));
  } catch {
    const field = h("textarea", {
      rows: 8,
      readonly: true,
      "aria-label": "the golden file, to be copied",
      value: text,
    });
    fill(result, h("p", { class: "note" }, "This browser forbids it; copy the lines from here:"), field);
    field.focus();
    field.select();
  }
}
