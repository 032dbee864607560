// The theme: what the reader chose, else what the system prefers. Runs before anything is drawn.
(() => {
  "use strict";
  const KEY = "miner-report-theme";
  const dark = matchMedia("(prefers-color-scheme: dark)");
  let choice = "auto";
  try {
    choice = localStorage.getItem(KEY) || "auto";
  } catch {
    choice = "auto"; // a page opened as a file may not be allowed to remember
  }
  const apply = () => {
    const shown = choice === "auto" ? (dark.matches ? "dark" : "light") : choice;
    document.documentElement.dataset.theme = shown;
    document.documentElement.dataset.choice = choice;
  };
  dark.addEventListener("change", apply);
  addEventListener("beforeprint", () => (document.documentElement.dataset.theme = "light"));
  addEventListener("afterprint", apply);
  document.addEventListener("theme", (event) => {
    choice = event.detail;
    try {
      localStorage.setItem(KEY, choice);
    } catch {
      // it holds until the page is closed
    }
    apply();
  });
  apply();
})();
