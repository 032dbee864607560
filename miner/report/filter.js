// Which candidates, and so which queries, a filter lets through.

const NO_FILTER = {
  search: "",
  decision: "",
  grade: "",
  outcome: "",
  source: "",
  retriever: "",
  status: "",
  verdict: "",
  rung: "",
  band: "",
  min: "",
  max: "",
  odd: "",
  marked: false,
};

// What is worth a second look. Each: [name, words, test(data, i, marks)].
const ODDITIES = [
  ["kept_relevant", "kept, though graded 2 or 3", (d, i) => d.kept[i] && d.grade[i] >= 2],
  ["kept_above", "kept, though above the lowest positive", (d, i) => d.kept[i] && d.score[i] > d.lowest[d.query[i]]],
  [
    "teacher_above",
    "kept, though the teacher puts it above the lowest positive",
    (d, i) => d.kept[i] && d.teacher[i] > d.lowestTeacher[d.query[i]],
  ],
  [
    "judge_below",
    "graded 2 or 3, though the teacher puts it below every positive",
    (d, i) => d.grade[i] >= 2 && d.teacher[i] < d.lowestTeacher[d.query[i]],
  ],
  ["not_quoted", "graded 2 or 3 without evidence", (d, i) => d.grade[i] >= 2 && !d.evidence[i]],
  [
    "my_grade",
    "your grade differs from the judge's",
    (d, i, marks) =>
      marks.has(i) && marks.get(i).grade !== null && d.grade[i] >= 0 && marks.get(i).grade !== d.grade[i],
  ],
];

const lowered = new WeakMap(); // the query texts and ids in lower case, made at the first search

function haystack(data) {
  if (!lowered.has(data)) {
    const { id, text } = data.queries;
    lowered.set(
      data,
      text.map((one, i) => `${one}\n${id[i]}`.toLowerCase()),
    );
  }
  return lowered.get(data);
}

function candidateTests(data, marks, spec) {
  const tests = [];
  if (spec.decision === "kept") tests.push((i) => data.kept[i] === 1);
  else if (spec.decision === "dropped" || spec.decision === "open") {
    tests.push((i) => decisionOf(data, i) === spec.decision);
  } else if (spec.decision) {
    const reason = Number(spec.decision.slice(2)); // "r:3"
    tests.push((i) => data.reason[i] === reason);
  }
  if (spec.grade === "none") tests.push((i) => data.grade[i] < 0);
  else if (spec.grade === "2+") tests.push((i) => data.grade[i] >= 2);
  else if (spec.grade) tests.push((i) => data.grade[i] === Number(spec.grade));
  for (const name of ["source", "status", "verdict", "rung", "band"]) {
    const wanted = Number(spec[name]);
    if (spec[name] !== "") tests.push((i) => data[name][i] === wanted);
  }
  if (spec.retriever !== "") tests.push(retrieverTest(data, Number(spec.retriever)));
  if (spec.min !== "") tests.push((i) => data.score[i] >= Number(spec.min));
  if (spec.max !== "") tests.push((i) => data.score[i] <= Number(spec.max));
  if (spec.marked) tests.push((i) => marks.has(i));
  const odd = ODDITIES.find(([name]) => name === spec.odd);
  if (odd) tests.push((i) => odd[2](data, i, marks));
  return tests;
}

function retrieverTest(data, wanted) {
  if (wanted < 31) return (i) => (data.found_by[i] & (1 << wanted)) !== 0;
  return (i) => (data.found[i] || []).some(([retriever]) => retriever === wanted);
}

// {queries: indices in order, hits: 0|1 a candidate, hitsOf: a query, candidates: all hits, narrow: is any candidate test set}
function runFilter(data, marks, spec) {
  const tests = candidateTests(data, marks, spec);
  const search = spec.search.trim().toLowerCase();
  const texts = search ? haystack(data) : null;
  const hits = new Uint8Array(data.size);
  const hitsOf = new Int32Array(data.queries.id.length);
  const queries = [];
  let candidates = 0;
  for (let query = 0; query < hitsOf.length; query++) {
    if (texts && !texts[query].includes(search)) continue;
    if (spec.outcome && data.queries.outcome[query] !== spec.outcome) continue;
    let found = 0;
    next: for (let i = data.start[query]; i < data.end[query]; i++) {
      for (const test of tests) if (!test(i)) continue next;
      hits[i] = 1;
      found++;
    }
    if (!found && tests.length) continue;
    hitsOf[query] = found;
    candidates += found;
    queries.push(query);
  }
  return { queries, hits, hitsOf, candidates, narrow: tests.length > 0 };
}
