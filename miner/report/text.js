// Texts of others: shown letter by letter, never obeyed. What would not be seen, or would turn the writing round, is
// drawn as a sign of its own; long texts are cut until somebody asks for more.

// Control characters, marks of direction, letters without a width, tags, halves of a pair.
const ODD_LETTERS =
  "[\\u0000-\\u0008\\u000b\\u000c\\u000e-\\u001f\\u007f-\\u009f\\u00ad\\u061c\\u115f\\u1160\\u180e\\u200b\\u200e\\u200f" +
  "\\u202a-\\u202e\\u2060-\\u206f\\u3164\\ufeff\\ufff9-\\ufffb\\u{e0000}-\\u{e007f}\\ud800-\\udfff]|\\r(?!\\n)";
const ODD = new RegExp(ODD_LETTERS, "gu");
const ODD_PARTS = new RegExp(`(${ODD_LETTERS})`, "gu"); // keeps what it splits at, in the odd places
// By name: the pictures that Unicode has for them are in few fonts.
const CONTROLS =
  "NUL SOH STX ETX EOT ENQ ACK BEL BS TAB LF VT FF CR SO SI DLE DC1 DC2 DC3 DC4 NAK SYN ETB CAN EM SUB ESC FS GS RS US".split(
    " ",
  );
const ODD_NAMES = new Map([
  [0x7f, "DEL"],
  [0x9b, "CSI"],
  [0xad, "SHY"],
  [0x61c, "ALM"],
  [0x200b, "ZWSP"],
  [0x200e, "LRM"],
  [0x200f, "RLM"],
  [0x202a, "LRE"],
  [0x202b, "RLE"],
  [0x202c, "PDF"],
  [0x202d, "LRO"],
  [0x202e, "RLO"],
  [0x2060, "WJ"],
  [0x2066, "LRI"],
  [0x2067, "RLI"],
  [0x2068, "FSI"],
  [0x2069, "PDI"],
  [0xfeff, "BOM"],
]);
const SIGNS_AT_MOST = 200; // in one piece of text; more of them stand as plain letters
const SHOWN = 1500;
const STEP = 100000;
const AROUND = 300;

function sign(letter) {
  const code = letter.codePointAt(0);
  if (code < 0x20) return `⟨${CONTROLS[code]}⟩`;
  if (code >= 0xe0020 && code < 0xe007f) return `⟨TAG ${String.fromCharCode(code - 0xe0000)}⟩`;
  return `⟨${ODD_NAMES.get(code) || "U+" + code.toString(16).toUpperCase().padStart(4, "0")}⟩`;
}

// A text as one line, for a list or an attribute.
function line(text, most = 300) {
  const short = text.length > most ? text.slice(0, most) + "…" : text;
  return short.replace(/\s+/g, " ").trim().replace(ODD, sign);
}

// An id or a word of the data, inline.
const word = (text, name) => h("bdi", { class: name }, line(String(text)));

// The nodes of a text: plain where nothing is odd, else with the signs set apart.
function letters(text) {
  const parts = text.replaceAll("\r\n", "\n").split(ODD_PARTS);
  if (parts.length > 2 * SIGNS_AT_MOST) return [parts.map((part, i) => (i % 2 ? sign(part) : part)).join("")];
  return parts.map((part, i) => (i % 2 ? signed(part) : part)).filter((part) => part);
}

function signed(letter) {
  const code = letter.codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
  return h("span", { class: "sign", title: `control character U+${code}` }, sign(letter));
}

// Lower case, white space collapsed; at[i] is where letter i of the result stands in the text.
function folded(text) {
  const out = [];
  const at = [];
  let space = true;
  for (let i = 0; i < text.length; i++) {
    const letter = text[i];
    if (/\s/.test(letter)) {
      if (!space) {
        out.push(" ");
        at.push(i);
      }
      space = true;
      continue;
    }
    space = false;
    for (const low of letter.toLowerCase()) {
      out.push(low);
      at.push(i);
    }
  }
  return { text: out.join(""), at };
}

const QUOTES = /^["'“”…. \s]+|["'“”…. \s]+$/gu;

// Where the evidence stands in the text: [[from, to], …] in order; [] where it does not. First letter by letter, then
// without regard to case and white space, then the pieces around an ellipsis.
function locate(text, evidence) {
  if (!evidence || !text) return [];
  const exact = text.indexOf(evidence);
  if (exact >= 0) return [[exact, exact + evidence.length]];
  const within = folded(text);
  const whole = find(within, evidence);
  if (whole) return [whole];
  const pieces = evidence.split(/…|\.{3}/u).map((piece) => find(within, piece, 8));
  return pieces.length > 1 && pieces.every(Boolean) ? joined(pieces) : [];
}

function find(within, piece, least = 1) {
  const wanted = folded(piece.replace(QUOTES, "")).text.trim();
  if (wanted.length < least) return null;
  const from = within.text.indexOf(wanted);
  return from < 0 ? null : [within.at[from], within.at[from + wanted.length - 1] + 1];
}

function joined(spans) {
  const found = [];
  for (const span of spans.sort((a, b) => a[0] - b[0])) {
    const last = found.at(-1);
    if (last && span[0] <= last[1]) last[1] = Math.max(last[1], span[1]);
    else found.push([...span]);
  }
  return found;
}

// A passage, a query or an answer: cut where long, marked where `spans` say. dir="auto": Arabic runs from the right.
function prose(text, spans = [], name = "") {
  const box = h("div", { class: `prose ${name}`, dir: "auto" });
  if (text.length <= SHOWN) return fill(box, marked(text, 0, text.length, spans));
  const cuts = windows(text, spans);
  for (const [from, to] of cuts) {
    add(box, [from > 0 && gap(), marked(text, from, to, spans)]);
  }
  if (cuts.at(-1)[1] < text.length) add(box, [gap()]);
  const more = h("button", { type: "button", class: "more" }, `Show all ${count(text.length)} characters`);
  const outer = h("div", { class: "cut" }, box, more);
  more.addEventListener("click", () => outer.replaceWith(whole(text, spans, name)));
  return outer;
}

const gap = () => h("span", { class: "gap", "aria-label": "text left out" }, " … ");

// The start of a long text, and the surroundings of evidence that stands further down.
function windows(text, spans) {
  const last = spans.length ? spans.at(-1)[1] : 0;
  if (last <= SHOWN) return [[0, safe(text, SHOWN)]];
  const first = [0, safe(text, 500)];
  const near = spans.filter((span) => span[1] > 500);
  const parts = near.map(([from, to]) => [safe(text, Math.max(0, from - AROUND)), safe(text, to + AROUND)]);
  return joined([first, ...parts]);
}

// Not between the halves of a pair.
function safe(text, at) {
  const code = text.charCodeAt(at);
  return at < text.length ? (code >= 0xdc00 && code <= 0xdfff ? at + 1 : at) : text.length;
}

// The text in a box that scrolls; a very long one comes in steps, so that no step takes long to lay out.
function whole(text, spans, name) {
  const box = h("div", {
    class: `prose whole ${name}`,
    dir: "auto",
    tabindex: "0",
    role: "group",
    "aria-label": "whole text",
  });
  const outer = h("div", {}, box);
  let shown = 0;
  const more = h("button", { type: "button", class: "more" });
  const step = () => {
    const to = safe(text, shown + STEP);
    add(box, [h("span", {}, marked(text, shown, to, spans))]);
    shown = to;
    more.textContent = `Show more: ${count(text.length - shown)} characters are left`;
    if (shown >= text.length) more.remove();
  };
  step();
  if (shown < text.length) outer.append(more);
  more.addEventListener("click", step);
  return outer;
}

function marked(text, from, to, spans) {
  const nodes = [];
  let at = from;
  for (const [start, end] of spans) {
    const [a, b] = [Math.max(start, at), Math.min(end, to)];
    if (a >= b) continue;
    nodes.push(letters(text.slice(at, a)), h("mark", {}, letters(text.slice(a, b))));
    at = b;
  }
  nodes.push(letters(text.slice(at, to)));
  return nodes;
}
