// A list of which only the rows in sight are in the page.

// draw(place): the content of a row. pick(place): a row was chosen by mouse or touch. height: of a row, in pixels.
function virtualList({ name, label, height, draw, pick }) {
  const rows = h("div", { class: "rows", role: "presentation" });
  const box = h("div", { class: "list", role: "listbox", tabindex: "0", "aria-label": label, id: name }, rows);
  let size = 0;
  let active = -1;
  let [top, seen] = [0, 700]; // where the box stands and how much it shows, known without asking for a layout
  const render = () => {
    const first = Math.max(0, Math.floor(top / height) - 6);
    const last = Math.min(size, Math.ceil((top + seen) / height) + 6);
    const made = [];
    for (let place = first; place < last; place++) made.push(row(place));
    rows.replaceChildren(...made);
  };
  const row = (place) =>
    h(
      "div",
      {
        class: place === active ? "row active" : "row",
        role: "option",
        id: `${name}-${place}`,
        "aria-selected": place === active ? "true" : "false",
        "aria-setsize": size,
        "aria-posinset": place + 1,
        style: `top:${place * height}px;height:${height}px`,
        onclick: () => pick(place),
      },
      draw(place),
    );
  const mark = () => {
    if (active >= 0) box.setAttribute("aria-activedescendant", `${name}-${active}`);
    else box.removeAttribute("aria-activedescendant");
  };
  const measure = () => {
    [top, seen] = [box.scrollTop, box.clientHeight];
    render();
  };
  const scrollTo = (place) => {
    top = Math.max(0, place);
    box.scrollTop = top;
  };
  box.addEventListener("scroll", measure, { passive: true });
  new ResizeObserver(measure).observe(box);
  return {
    box,
    active: () => active,
    size: () => size,
    refresh: render,
    // Another content; the active row may be -1.
    set: (length, at) => {
      size = length;
      active = at;
      rows.style.height = `${length * height}px`;
      const from = Math.max(0, at) * height;
      if (from < top || from + height > top + seen) scrollTo(from - (at > 0 ? height : 0));
      mark();
      render();
    },
    activate: (place) => {
      active = place;
      const from = place * height;
      if (from < top) scrollTo(from);
      else if (from + height > top + seen) scrollTo(from + height - seen);
      mark();
      render();
    },
  };
}
