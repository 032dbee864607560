// Elements. Whatever is a string becomes a text node: no text is ever read as markup.

const $ = (id) => document.getElementById(id);

// h("button", {class: "x", onclick: f, "aria-label": "…"}, "text", element, [more], null)
function h(name, attributes, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (key === "value") made.value = value;
    else made.setAttribute(key, value === true ? "" : String(value));
  }
  add(made, children);
  return made;
}

function add(parent, children) {
  for (const child of children) {
    if (child === null || child === undefined || child === false) continue;
    if (Array.isArray(child)) add(parent, child);
    else parent.append(typeof child === "number" ? String(child) : child);
  }
}

function fill(parent, ...children) {
  parent.replaceChildren();
  add(parent, children);
  return parent;
}

// A word for those who listen to the page.
function say(text) {
  $("said").textContent = text;
}

const policy = window.trustedTypes
  ? window.trustedTypes.createPolicy("plot", { createHTML: (text) => text })
  : { createHTML: (text) => text };

const SVG_TAGS = new Set(
  (
    "svg g defs title desc path rect line circle ellipse polyline polygon text tspan clippath lineargradient" +
    " radialgradient stop marker use symbol pattern mask"
  ).split(" "),
);

// A plot as an element. Parsed apart from the page, and stripped of all that could run or load anything.
function plot(svg, alt) {
  const parsed = new DOMParser().parseFromString(policy.createHTML(svg), "image/svg+xml");
  const root = parsed.documentElement;
  if (root.nodeName.toLowerCase() !== "svg") return null;
  for (const one of [...root.querySelectorAll("*")]) {
    if (!SVG_TAGS.has(one.localName.toLowerCase())) one.remove();
  }
  for (const one of [root, ...root.querySelectorAll("*")]) {
    for (const { name, value } of [...one.attributes]) {
      const key = name.toLowerCase();
      const link = key === "href" || key.endsWith(":href");
      if (key.startsWith("on") || (link && !value.startsWith("#"))) one.removeAttribute(name);
    }
  }
  root.setAttribute("role", "img");
  if (alt) root.setAttribute("aria-label", alt);
  return document.importNode(root, true);
}

const number = new Intl.NumberFormat("en-US");
const count = (value) => number.format(value);
const plural = (value, one, many) => `${count(value)} ${value === 1 ? one : many || one + "s"}`;

// A score: four digits say enough, very large or small ones go to powers of ten.
function decimal(value, digits = 4) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  const size = Math.abs(value);
  const text =
    size !== 0 && (size >= 1e6 || size < 1e-4)
      ? value.toExponential(2)
      : value.toFixed(Math.min(digits, size >= 1000 ? 1 : size >= 10 ? 2 : size >= 1 ? 3 : 4));
  return text.replace("-", "−");
}

function percent(part, whole) {
  if (!whole) return "";
  const share = (100 * part) / whole;
  if (share > 0 && share < 0.1) return "<0.1 %";
  return `${share >= 10 || share === 0 ? share.toFixed(0) : share.toFixed(1)} %`;
}

const isPhone = () => matchMedia("(max-width: 819px)").matches;
