// Runs before the first paint, so that a page never flashes in the wrong theme.
(() => {
  "use strict";
  const root = document.documentElement;
  root.classList.add("js");
  try {
    const theme = localStorage.getItem("polylight-theme");
    if (theme === "light" || theme === "dark") root.dataset.theme = theme;
  } catch {
    // A page from a file may have no storage: the theme is then the system's.
  }
})();
