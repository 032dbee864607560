// The payload as columns: typed arrays, one place a candidate, so that a filter is one pass over numbers.

async function inflate(progress) {
  const holder = $("payload");
  const bytes = decode64(holder.textContent.trim());
  holder.remove(); // the page needs the memory
  if (typeof DecompressionStream === "undefined") {
    throw new Error("this browser cannot inflate gzip; use one of 2023 or later");
  }
  progress("Inflating the data …");
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const text = await new Response(stream).text();
  progress(`Reading ${count(Math.round(text.length / 1e5) / 10)} MB …`);
  await drawn();
  return JSON.parse(text);
}

function decode64(text) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  const raw = atob(text);
  const bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  return bytes;
}

// Until the browser has drawn what was last put on the page. A hidden tab draws nothing, hence the time limit.
const drawn = () =>
  new Promise((done) => {
    requestAnimationFrame(() => setTimeout(done));
    setTimeout(done, 100);
  });

const NONE = 65535; // no word
const WORDS = ["source", "reason", "status", "verdict", "rung", "band"];

function columnsOf(browser) {
  const raw = browser.candidates;
  const size = raw.query.length;
  const fill = (Kind, name, none) => {
    const made = new Kind(size);
    const from = raw[name] || [];
    for (let i = 0; i < size; i++) made[i] = from[i] ?? none;
    return made;
  };
  const data = {
    size,
    scorers: browser.scorers || {},
    words: browser.words,
    queries: browser.queries,
    passages: browser.passages,
    answers: browser.answers || [],
    strings: browser.strings || [],
    note: browser.note || "",
    query: fill(Int32Array, "query", 0),
    passage: fill(Int32Array, "passage", -1),
    kept: fill(Uint8Array, "kept", 0),
    slot: fill(Int32Array, "slot", 0),
    rank: fill(Int32Array, "rank", 0),
    score: fill(Float64Array, "score", NaN),
    near: fill(Float64Array, "near", NaN), // the cosine with the nearest positive, where the margin weighs it
    teacher: fill(Float64Array, "teacher", NaN),
    grade: fill(Int8Array, "grade", -1),
    answer: fill(Int32Array, "answer", -1),
    more: raw.more || [],
    found: raw.found || [],
    evidence: raw.evidence || [],
    detail: raw.detail || [],
  };
  for (const name of WORDS) data[name] = fill(Uint16Array, name, NONE);
  browser.candidates = null; // the typed columns take their place, and the page needs the memory
  return { ...data, ...byQuery(data), found_by: foundBy(data) };
}

// Of each query: its candidates from start to end, how many are kept, the lowest scores of its positives.
function byQuery(data) {
  const size = data.queries.id.length;
  const start = new Int32Array(size);
  const end = new Int32Array(size);
  const keptOf = new Int32Array(size);
  for (let i = 0; i < data.size; i++) {
    const query = data.query[i];
    if (i === 0 || data.query[i - 1] !== query) start[query] = i;
    end[query] = i + 1;
    keptOf[query] += data.kept[i];
  }
  const lowest = (place) =>
    Float64Array.from(data.queries.positives, (rows) => {
      const scores = rows.map((row) => row[place]).filter((score) => typeof score === "number");
      return scores.length ? Math.min(...scores) : NaN;
    });
  return { start, end, keptOf, lowest: lowest(2), lowestTeacher: lowest(3) };
}

// One bit a retriever that found the candidate; from the 32nd on they share the last bit.
function foundBy(data) {
  const bits = new Uint32Array(data.size);
  for (let i = 0; i < data.size; i++) {
    for (const [retriever] of data.found[i] || []) bits[i] |= 1 << Math.min(retriever, 31);
  }
  return bits;
}

const wordOf = (data, name, i) => data.words[name]?.[data[name][i]] ?? "";
const textOf = (data, passage) => data.passages.text[passage] ?? null;
const idOf = (data, passage) => data.passages.id[passage] ?? "";

// What a candidate has in place of a reason as long as nothing is decided.
const UNDECIDED = ["", "pool", "judged_irrelevant"];

// What became of a candidate: "kept", "dropped", or "open" where nothing is decided yet.
const decisionOf = (data, i) =>
  data.kept[i] ? "kept" : UNDECIDED.includes(wordOf(data, "reason", i)) ? "open" : "dropped";

// The messages of an answer, each {role, text}, letter by letter as they were sent; `lacking` counts texts that are not here.
function messagesOf(data, answer) {
  return (answer.messages || []).map(({ role, parts }) => {
    let lacking = 0;
    const texts = parts.map((part) => {
      if (typeof part === "number") return data.strings[part];
      const text = part[0] === "q" ? data.queries.text[part[1]] : textOf(data, part[1]);
      lacking += text === null || text === undefined;
      return text ?? `[the text of ${idOf(data, part[1])} is not in this page]`;
    });
    return { role, text: texts.join(""), lacking };
  });
}
