// One candidate, one positive, one answer.

function chip(text, kind, help) {
  return h("span", { class: `chip ${kind || ""}`, title: help || null }, word(text));
}

// Names with values, only those that have one.
function values(pairs) {
  return h(
    "dl",
    { class: "values" },
    pairs
      .filter(([, value]) => value !== null && value !== "")
      .map(([name, value, help]) => h("div", { title: help || null }, h("dt", {}, name), h("dd", {}, value))),
  );
}

// How far a score lies below the lowest positive's, by the same scorer.
function marginText(lowest, score) {
  if (Number.isNaN(lowest) || Number.isNaN(score)) return null;
  const margin = lowest - score;
  const share = lowest ? ` (${((100 * margin) / Math.abs(lowest)).toFixed(1).replace("-", "−")} %)` : "";
  return h(
    "span",
    { class: margin < 0 ? "above" : null },
    `${margin < 0 ? "−" : "+"}${decimal(Math.abs(margin))}${share}`,
  );
}

function scores(data, i) {
  const query = data.query[i];
  const score = data.score[i];
  const near = data.near[i];
  const teacher = data.teacher[i];
  const below = "How far it lies below the lowest positive of the query, and that as a share of the positive's score.";
  const mean = "The mean of its score and its cosine with the nearest positive counts.";
  const own = [
    ["rank", data.rank[i] ? count(data.rank[i]) : null],
    ["score", Number.isNaN(score) ? null : decimal(score), data.scorers.score],
    ["to positive", Number.isNaN(near) ? null : decimal(near), "Its cosine with the nearest positive of the query."],
    Number.isNaN(near)
      ? ["margin", marginText(data.lowest[query], score), below]
      : ["margin", marginText(data.lowest[query], (score + near) / 2), `${below} ${mean}`],
  ];
  const taught = [
    ["teacher", Number.isNaN(teacher) ? null : decimal(teacher), data.scorers.teacher_score],
    ["teacher margin", marginText(data.lowestTeacher[query], teacher), below],
  ];
  return [values(own), Number.isNaN(teacher) ? null : values(taught)];
}

function foundText(data, i) {
  const rows = data.found[i] || [];
  if (!rows.length) return null;
  return h(
    "p",
    { class: "found" },
    h("span", { class: "muted" }, "found by "),
    rows.map(([retriever, rank, score], at) => [
      at ? ", " : "",
      word(data.words.retriever[retriever] ?? "?"),
      ` #${rank}`,
      score === null || score === undefined ? "" : h("span", { class: "muted" }, ` (${decimal(score)})`),
    ]),
  );
}

function judged(data, i) {
  const grade = data.grade[i];
  const [status, verdict, rung] = ["status", "verdict", "rung"].map((name) => wordOf(data, name, i));
  if (grade < 0 && !status && !verdict) return null;
  return h(
    "p",
    { class: "judged" },
    h("span", { class: "muted" }, rung && rung !== "judge" ? ["judge ", word(rung), " "] : "judge "),
    grade >= 0 ? chip(GRADES[grade] ?? `grade ${grade}`, `grade g${grade}`, GRADE_HELP[grade]) : null,
    verdict ? chip(verdict) : null,
    status && status !== "ok" ? chip(status, "bad") : null,
  );
}

function decided(data, i) {
  const reason = wordOf(data, "reason", i);
  const decision = decisionOf(data, i);
  const why =
    decision === "kept"
      ? whyKept(data.slot[i])
      : decision === "open"
        ? "In the pool; nothing is decided yet."
        : explain(reason);
  const name = decision === "kept" ? "kept" : decision === "open" ? "undecided" : `dropped: ${reason}`;
  return [h("span", { class: `verdict ${decision}` }, word(name)), why ? h("p", { class: "why" }, why) : null];
}

function passageText(data, passage, evidence) {
  const text = textOf(data, passage);
  if (text === null) {
    return h(
      "p",
      { class: "absent" },
      "The text of this passage is not in this page. To read it: ",
      h("code", {}, "miner inspect JOB.yaml QUERY_ID"),
    );
  }
  if (!text) return h("p", { class: "absent" }, "The text is empty.");
  const spans = locate(text, evidence);
  return [
    prose(text, spans, "passage"),
    evidence && !spans.length ? evidenceLine(evidence, "not found in the text") : null,
  ];
}

function evidenceLine(evidence, remark) {
  return h("div", { class: "evidence" }, h("span", { class: "muted" }, `evidence, ${remark}: `), prose(evidence));
}

function candidateCard(data, marks, i, hit) {
  const source = wordOf(data, "source", i);
  const band = wordOf(data, "band", i);
  const passage = data.passage[i];
  const evidence = data.evidence[i];
  const absent = textOf(data, passage) === null && evidence;
  const card = h(
    "article",
    {
      class: `card ${decisionOf(data, i)} ${hit ? "hit" : ""}`,
      tabindex: "-1",
      "data-place": i,
      "aria-label": `candidate ${line(idOf(data, passage))}`,
    },
    h(
      "header",
      {},
      h(
        "div",
        { class: "chips" },
        decided(data, i)[0],
        source && source !== "mined" ? chip(source, "source") : null,
        band ? chip(band) : null,
      ),
      word(idOf(data, passage), "id"),
    ),
    decided(data, i)[1],
    scores(data, i),
    foundText(data, i),
    judged(data, i),
    data.detail[i] ? h("p", { class: "why" }, word(data.detail[i])) : null,
    passageText(data, passage, absent ? null : evidence),
    absent ? evidenceLine(evidence, "quoted by the judge") : null,
    answerDetails(data, i),
    h("footer", { class: "mark" }),
  );
  drawMark(card, data, marks, i);
  return card;
}

function positiveCard(data, [passage, relevance, score, teacher]) {
  return h(
    "article",
    { class: "card positive", "aria-label": `positive ${line(idOf(data, passage))}` },
    h(
      "header",
      {},
      h("div", { class: "chips" }, h("span", { class: "verdict positive" }, "positive")),
      word(idOf(data, passage), "id"),
    ),
    values([
      ["relevance", relevance === null ? null : String(relevance)],
      ["score", isNumber(score) ? decimal(score) : null, data.scorers.score],
      ["teacher", isNumber(teacher) ? decimal(teacher) : null, data.scorers.teacher_score],
    ]),
    passageText(data, passage, null),
  );
}

// ---------------------------------------------------------------- the raw answer and the prompt, made when asked for

// The answer that the decision rests on, then the others about the same candidate: the second order of a pack, a first try
// that was repaired, the generator's own, earlier rungs.
function answerDetails(data, i) {
  const further = (data.more[i] || []).map((at) => [data.answers[at], "A further answer: "]);
  return [[data.answers[data.answer[i]], ""], ...further].map(([answer, which]) => oneAnswer(data, answer, which));
}

function oneAnswer(data, answer, which) {
  if (!answer) return null;
  const body = h("div", {});
  const title = which ? [which, word(answer.prompt || "")] : "Raw answer and prompt";
  const box = h("details", { class: "answer" }, h("summary", {}, title), body);
  box.addEventListener("toggle", () => {
    if (box.open && !body.childNodes.length) fill(body, answerBody(data, answer));
  });
  return box;
}

function answerBody(data, answer) {
  const messages = messagesOf(data, answer);
  const lacking = messages.some((one) => one.lacking);
  const [sent, got] = answer.tokens || [];
  return [
    values([
      ["prompt", word(answer.prompt || "")],
      ["version", word(answer.version || "")],
      ["model", word(answer.model || "")],
      ["tokens", isNumber(sent) ? `${count(sent)} in, ${count(got ?? 0)} out` : null],
      ["note", answer.note ? word(answer.note) : null],
    ]),
    h("h4", {}, "answer"),
    answer.text ? prose(answer.text, [], "code") : h("p", { class: "absent" }, "There is no answer."),
    messages.map(({ role, text }) => [h("h4", {}, word(role || "message")), prose(text, [], "code")]),
    lacking
      ? h("p", { class: "absent" }, "A text of this prompt is not in the page; its place is named in brackets.")
      : null,
  ];
}

// ---------------------------------------------------------------- marking

function drawMark(card, data, marks, i, withNote = false) {
  const foot = card.querySelector(".mark");
  const obstacle = markObstacle(data, i);
  if (obstacle) return void fill(foot, h("span", { class: "muted" }, obstacle));
  const mark = marks.get(i) || { grade: null, wrong: false, note: "" };
  card.classList.toggle("marked", marks.has(i));
  const set = (part) => {
    marks.change(i, part);
    drawMark(card, data, marks, i, Boolean(foot.querySelector(".note-field")));
  };
  const grade = (value) =>
    h(
      "button",
      {
        type: "button",
        "aria-pressed": String(mark.grade === value),
        "data-grade": value,
        title: `grade ${value}: ${GRADE_HELP[value]} (key ${value + 1})`,
        "aria-label": `grade ${value}: ${GRADE_HELP[value]}`,
        onclick: () => set({ grade: mark.grade === value ? null : value }),
      },
      String(value),
    );
  const noted = withNote || Boolean(mark.note);
  fill(
    foot,
    h(
      "div",
      { class: "mark-row" },
      h("span", { class: "muted", id: `mark-${i}` }, "mark"),
      h("div", { class: "segments", role: "group", "aria-labelledby": `mark-${i}` }, [0, 1, 2, 3].map(grade)),
      h(
        "button",
        {
          type: "button",
          class: "wrong",
          "aria-pressed": String(mark.wrong),
          title: "the decision is wrong (key w)",
          onclick: () => set({ wrong: !mark.wrong }),
        },
        "wrong",
      ),
      noted
        ? null
        : h(
            "button",
            {
              type: "button",
              title: "add a note (key n)",
              onclick: () => openNote(card, data, marks, i),
            },
            "note",
          ),
    ),
    noted ? noteField(data, marks, i, mark.note, card) : null,
  );
}

function noteField(data, marks, i, note, card) {
  const field = h("input", {
    type: "text",
    class: "note-field",
    value: note,
    maxlength: 2000,
    placeholder: "why, in one line",
    "aria-label": "note on this candidate",
  });
  field.addEventListener("input", () => {
    marks.change(i, { note: field.value });
    card.classList.toggle("marked", marks.has(i));
  });
  field.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" && event.key !== "Escape") return;
    event.stopPropagation();
    card.focus();
  });
  return field;
}

function openNote(card, data, marks, i) {
  drawMark(card, data, marks, i, true);
  card.querySelector(".note-field")?.focus();
}
