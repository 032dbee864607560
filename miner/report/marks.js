// The reader's marks: a candidate's place -> {grade: 0-3 or null, wrong: bool, note}. Kept in the browser where it allows
// that, under the hash of the data, and exported as a golden file.

function makeMarks(hash) {
  const KEY = `miner-report-marks:${hash}`;
  const marks = new Map();
  const listeners = [];
  let kept = true;
  let annotator = "";
  try {
    const known = JSON.parse(localStorage.getItem(KEY) || "{}");
    for (const [place, mark] of Object.entries(known.marks || {})) marks.set(Number(place), mark);
    annotator = known.annotator || "";
    localStorage.setItem(`${KEY}:try`, "1");
    localStorage.removeItem(`${KEY}:try`);
  } catch {
    kept = false; // a page opened as a file may not be allowed to
  }
  const save = () => {
    try {
      localStorage.setItem(KEY, JSON.stringify({ annotator, marks: Object.fromEntries(marks) }));
      kept = true;
    } catch {
      kept = false;
    }
    for (const listener of listeners) listener();
  };
  return {
    has: (place) => marks.has(place),
    get: (place) => marks.get(place),
    places: () => [...marks.keys()].sort((a, b) => a - b),
    size: () => marks.size,
    isKept: () => kept,
    annotator: () => annotator,
    name: (value) => {
      annotator = value;
      save();
    },
    change: (place, part) => {
      const mark = { grade: null, wrong: false, note: "", ...marks.get(place), ...part };
      if (mark.grade === null && !mark.wrong && !mark.note) marks.delete(place);
      else marks.set(place, mark);
      save();
    },
    onchange: (listener) => listeners.push(listener),
  };
}

// Why a candidate cannot be marked, "" where it can: a golden pair needs both texts.
function markObstacle(data, i) {
  const text = textOf(data, data.passage[i]);
  if (text === null) return "The text of this passage is not in the page, so it cannot be marked here.";
  if (!text.trim() || !(data.queries.text[data.query[i]] || "").trim()) return "An empty text cannot be marked.";
  return "";
}

// The golden file of the marks, one line a pair, in the order of the page.
function goldenLines(data, marks) {
  const lines = new Map();
  for (const i of marks.places()) {
    if (i >= data.size || markObstacle(data, i)) continue;
    const query = data.query[i];
    const mark = marks.get(i);
    const positive = data.queries.positives[query].map(([passage]) => textOf(data, passage)).find((text) => text);
    const pair = {
      query_id: data.queries.id[query],
      query: data.queries.text[query],
      positive: positive || "",
      doc_id: idOf(data, data.passage[i]),
      passage: textOf(data, data.passage[i]),
      grade: mark.grade,
      tag: mark.wrong ? "wrong" : "report",
      reason: mark.note.replace(/\s+/g, " ").trim(),
      split: "dev",
      annotator: marks.annotator(),
    };
    lines.set(JSON.stringify([pair.query_id, pair.doc_id]), JSON.stringify(pair));
  }
  return [...lines.values()].map((text) => text + "\n").join("");
}
