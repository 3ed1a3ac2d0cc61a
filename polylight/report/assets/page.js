// What every page does: enlarging, theme, keys, copying, and turning to the next neuron.
(() => {
  "use strict";
  const root = document.documentElement;
  const base = root.dataset.root;
  const storeKey = `polylight-view:${root.dataset.site}`;

  function isDark() {
    if (root.dataset.theme) return root.dataset.theme === "dark";
    return matchMedia("(prefers-color-scheme: dark)").matches;
  }

  function wireTheme() {
    const button = document.querySelector("[data-theme-toggle]");
    const label = () => {
      button.textContent = isDark() ? "Light" : "Dark";
      button.setAttribute("aria-label", `Switch to the ${isDark() ? "light" : "dark"} theme`);
    };
    button.hidden = false;
    button.addEventListener("click", () => {
      root.dataset.theme = isDark() ? "light" : "dark";
      label();
      try {
        localStorage.setItem("polylight-theme", root.dataset.theme);
      } catch {
        // Without storage the choice holds for this page.
      }
    });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", label);
    label();
  }

  async function copy(text, source) {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch {
      const range = document.createRange();
      range.selectNodeContents(source);
      getSelection().removeAllRanges();
      getSelection().addRange(range);
      return document.execCommand("copy");
    }
  }

  function wireCopying() {
    for (const button of document.querySelectorAll("[data-copy]")) {
      const source = document.getElementById(button.dataset.copy);
      button.hidden = false;
      button.addEventListener("click", async () => {
        const done = await copy(source.textContent, source);
        button.textContent = done ? "Copied" : "Select it and copy";
        document.getElementById("copied").textContent = done ? "The command was copied." : "";
        setTimeout(() => (button.textContent = "Copy"), 2000);
      });
    }
  }

  // The table leaves its rows in the order in which they were shown: [slug, name] each.
  function lastView() {
    try {
      return JSON.parse(sessionStorage.getItem(storeKey)) ?? null;
    } catch {
      return null;
    }
  }

  function link(rel, [slug, name]) {
    const anchor = document.createElement("a");
    const text = document.createElement("span");
    anchor.rel = rel;
    anchor.href = `${slug}.html`;
    text.textContent = name;
    anchor.append(...(rel === "prev" ? ["← ", text] : [text, " →"]));
    return anchor;
  }

  function followView(view) {
    const article = document.querySelector("[data-neuron]");
    const turn = document.querySelector(".turn");
    if (!article || !view) return;
    const at = view.rows.findIndex(([slug]) => slug === article.dataset.neuron);
    if (at < 0) return;
    const place = document.createElement("span");
    place.className = "place";
    place.textContent = `${(at + 1).toLocaleString("en")} of ${view.rows.length.toLocaleString("en")}`;
    turn.replaceChildren(
      ...(at > 0 ? [link("prev", view.rows[at - 1])] : []),
      place,
      ...(at + 1 < view.rows.length ? [link("next", view.rows[at + 1])] : []),
    );
  }

  function wireKeys(view) {
    const follow = (rel) => document.querySelector(`.turn a[rel="${rel}"]`)?.click();
    const table = view?.url ?? "index.html";
    const search = document.querySelector("input[type=search]");
    const leave = () => {
      if (document.querySelector("[data-neuron]")) location.href = base + table;
    };
    const keys = {
      ArrowLeft: () => follow("prev"),
      k: () => follow("prev"),
      ArrowRight: () => follow("next"),
      j: () => follow("next"),
      Escape: leave,
      "/": () => (search ? search.focus() : (location.href = `${base}index.html#focus=search`)),
    };
    document.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
      const field = event.target.closest("input, select, textarea");
      if (field) {
        if (event.key === "Escape") field.blur();
        return;
      }
      // Arrows scroll what has the focus and can be scrolled.
      if (event.key.startsWith("Arrow") && event.target.closest("[tabindex='0']")) return;
      const action = Object.hasOwn(keys, event.key) ? keys[event.key] : null;
      if (!action) return;
      event.preventDefault();
      action();
    });
  }

  // Images open large in a dialog; without scripts they lead to the file.
  function wireImages() {
    const dialog = document.createElement("dialog");
    dialog.className = "viewer";
    dialog.setAttribute("aria-label", "Enlarged image");
    dialog.innerHTML = `<figure><div class="tile"></div><figcaption aria-live="polite"></figcaption></figure>
      <p><button type="button" data-turn="-1">← Previous</button>
      <button type="button" data-turn="1">Next →</button>
      <button type="button" data-close>Close</button></p>`;
    document.body.append(dialog);
    const tile = dialog.querySelector(".tile");
    const caption = dialog.querySelector("figcaption");
    let shown = [], at = 0;

    function show(place) {
      at = (place + shown.length) % shown.length;
      const anchor = shown[at];
      const image = anchor.querySelector("img").cloneNode();
      image.removeAttribute("loading");
      tile.className = anchor.className;
      tile.style.cssText = anchor.style.cssText;
      tile.style.setProperty("--columns", getComputedStyle(anchor).getPropertyValue("--columns"));
      caption.textContent = image.alt;
      // The caption says it.
      image.alt = "";
      tile.replaceChildren(image);
    }

    document.addEventListener("click", (event) => {
      const anchor = event.target.closest("a.tile");
      if (!anchor || event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();
      shown = [...(anchor.closest("[data-gallery]") ?? document).querySelectorAll("a.tile")];
      show(shown.indexOf(anchor));
      for (const button of dialog.querySelectorAll("[data-turn]")) button.hidden = shown.length < 2;
      dialog.showModal();
      dialog.querySelector("[data-close]").focus();
    });
    dialog.addEventListener("click", (event) => {
      const turn = event.target.closest("[data-turn]")?.dataset.turn;
      if (turn) show(at + Number(turn));
      else if (event.target === dialog || event.target.closest("[data-close]")) dialog.close();
    });
    dialog.addEventListener("keydown", (event) => {
      if (event.key === "ArrowLeft") show(at - 1);
      if (event.key === "ArrowRight") show(at + 1);
      // Keys of the page rest meanwhile.
      event.stopPropagation();
    });
    dialog.addEventListener("close", () => shown[at]?.focus());
  }

  const view = lastView();
  wireImages();
  followView(view);
  wireTheme();
  wireCopying();
  wireKeys(view);
})();
