// The table of neurons: filtered, sorted, in pages, as a table or as pictures. Its state is the
// URL's hash, so that a view can be linked.
(() => {
  "use strict";
  const PAGE = { table: 50, pictures: 24 };
  const MOST_TILES = 12;
  const DEFAULTS = {
    q: "", layer: "", min: "", max: "", k: "", status: "", sort: "-score", view: "table", page: "1",
  };
  const { layers, columns, thumb, reported, select } = window.POLYLIGHT;
  DEFAULTS.sort = `-${reported}`;
  const count = columns.neuron.length;
  const root = document.documentElement;
  const base = root.dataset.root;
  const place = document.querySelector("[data-table]");
  const form = place.querySelector("form");
  const body = place.querySelector("tbody");
  const cards = place.querySelector(".cards");
  const scroller = place.querySelector(".scroller");
  const ownLayer = place.dataset.layer;

  const digits = (count) => (value) => value.toFixed(count).replace("-", "−");
  const significant = (value) =>
    Number(value.toPrecision(3)).toString().replace("-", "−");
  const plain = (value) => value.toLocaleString("en");
  const ALIC = "Alic et al. (2025) score";
  // Key, title, format, class, and what the title means: the score that counts, and the other.
  const REPORTED = {
    score: [["score", "Score", digits(3), "n score", "near 0 for one feature, towards 1 for many"]],
    score_paper: [["score_paper", ALIC, digits(3), "n score", "C + D − C · D"]],
  };
  const OTHER = {
    score: [["score_paper", "score_paper", digits(3), "n minor", ALIC]],
    score_paper: [["score", "score", digits(3), "n minor", "polylight's own score"]],
  };
  const SHOWN = [
    ["neuron", "Neuron"],
    ["layer", "Layer", null, "layer"],
    ...REPORTED[reported],
    ["separation", "Separ.", digits(1), "n least", "How much better than one feature's images they cluster, in standard deviations"],
    ["p_value", "p", digits(3), "n minor", "How often one Gaussian cloud clusters as well"],
    ["q_value", "q", digits(3), "n least", "p, corrected over the layer"],
    ["k", "K", plain, "n", "Number of clusters"],
    ["k_stability", "K stab.", digits(2), "n least", "Share of halves with the same K"],
    ["k_eff", "K_eff", digits(2), "n", "As how many unrelated features they count"],
    ["coverage", "Cover.", digits(2), "n least", "Estimated chance that one more image shows a known feature"],
    ...OTHER[reported],
    ["num_images", "Images", plain, "n minor"],
    ["activation", "Activ.", significant, "n least", "Median over the images"],
    ...(columns.above_photos
      ? [["above_photos", "Above ph.", digits(2), "n least", "Share of its images that drive it more than any photo"]]
      : []),
    ["status", "Status", null, "minor"],
  ].filter(([key]) => !(key === "layer" && (ownLayer || layers.length < 2)));

  let state = { ...DEFAULTS };
  let rows = [];

  function element(tag, className, text) {
    const made = document.createElement(tag);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  }

  function picture(row, folder, alt, lazy) {
    const image = element("img");
    image.alt = alt;
    image.loading = lazy ? "lazy" : "eager";
    image.decoding = "async";
    image.src = `${base}${folder}/${columns.slug[row]}.jpg`;
    return image;
  }

  function strip(row, lazy) {
    const name = columns.neuron[row];
    const shares = columns.shares[row].map((share, at) => `feature ${at + 1} (${share})`);
    const said = shares.length
      ? `Typical images of ${name}: ${shares.join(", ")}`
      : `An image of ${name}, which has no score`;
    const image = picture(row, "thumbs", said, lazy);
    // Space is kept for a picture that has not come yet.
    image.width = thumb * columns.thumbs[row];
    image.height = thumb;
    return image;
  }

  function target(row) {
    return `${base}neurons/${columns.slug[row]}.html`;
  }

  function range(row) {
    const mark = element("span", "range");
    const score = columns[reported][row];
    // Only polylight's own has an interval.
    const [low, high] =
      reported === "score" ? [columns.score_low[row], columns.score_high[row]] : [null, null];
    mark.setAttribute("aria-hidden", "true");
    mark.style.setProperty("--at", score);
    mark.style.setProperty("--low", low ?? score);
    mark.style.setProperty("--high", high ?? score);
    return mark;
  }

  function cell(row, [key, , form, className]) {
    if (key === "neuron") {
      const head = element("th", "name");
      const anchor = element("a");
      head.scope = "row";
      // A long name may break behind a comma.
      for (const part of columns.neuron[row].split(/(?<=,)/)) anchor.append(part, element("wbr"));
      anchor.href = target(row);
      head.append(anchor);
      return head;
    }
    const value = key === "layer" ? layers[columns.layer[row]].name : columns[key][row];
    const text = value === null ? (key === reported ? columns.status[row] : "–") : form ? form(value) : value;
    const made = element("td", className, text);
    if (key === reported && value !== null) made.append(range(row));
    return made;
  }

  function tableRow(row, lazy) {
    const made = element("tr");
    const thumbs = element("td", "thumb");
    if (columns.thumbs[row]) {
      const anchor = element("a");
      anchor.href = target(row);
      // The name beside it is the same link.
      anchor.tabIndex = -1;
      anchor.append(strip(row, lazy));
      thumbs.append(anchor);
    }
    made.append(thumbs, ...SHOWN.map((column) => cell(row, column)));
    return made;
  }

  // One image of a neuron's sheet.
  function tile(row, at, alt, lazy) {
    const anchor = element("a", "tile");
    const across = columns.across[row];
    anchor.href = `${base}images/${columns.slug[row]}.jpg`;
    anchor.style.setProperty("--column", at % across);
    anchor.style.setProperty("--row", Math.floor(at / across));
    anchor.append(picture(row, "images", alt, lazy));
    return anchor;
  }

  // The images of a cluster in a frame, the typical one first.
  function frame(row, cluster, first, lazy) {
    const made = element("li", "frame");
    const size = columns.sizes[row][cluster];
    const share = columns.shares[row][cluster];
    const of = share ? `feature ${cluster + 1} (${share})` : "not valid";
    const label = element("span", "label");
    if (share) label.append(element("b", "", String(cluster + 1)), ` ${share}`);
    else label.append("not valid");
    made.append(label);
    for (let i = 0; i < Math.min(size, MOST_TILES); i++) {
      const kind = i || !share ? "image" : "typical image";
      made.append(tile(row, first + i, `${columns.neuron[row]}, ${of}: ${kind}`, lazy));
    }
    if (size > MOST_TILES) made.append(element("span", "of", `+${size - MOST_TILES}`));
    return made;
  }

  function card(row, lazy) {
    const made = element("li");
    const title = element("p");
    const anchor = element("a", "name", columns.neuron[row]);
    const score = columns[reported][row];
    const said = score === null ? columns.status[row] : `score ${digits(3)(score)}, K = ${columns.k[row]}`;
    const frames = element("ul", "frames");
    let first = 0;
    anchor.href = target(row);
    title.append(anchor, " ", element("span", "of", said));
    made.dataset.gallery = "";
    made.style.setProperty("--columns", columns.across[row]);
    for (const [cluster, size] of columns.sizes[row].entries()) {
      frames.append(frame(row, cluster, first, lazy));
      first += size;
    }
    made.append(title, frames);
    return made;
  }

  function head() {
    const buttons = SHOWN.map(([key, title, , className, meaning]) => {
      const made = element("th", className);
      const button = element("button", "", title);
      made.scope = "col";
      button.type = "button";
      button.dataset.sort = key;
      if (meaning) button.title = meaning;
      made.append(button);
      return made;
    });
    const pictures = element("th", "thumb");
    pictures.scope = "col";
    pictures.append(element("span", "", "Features"));
    place.querySelector("thead tr").append(pictures, ...buttons);
  }

  function markHead() {
    const sorted = state.sort.replace(/^-/, "");
    for (const button of place.querySelectorAll("[data-sort]")) {
      const own = button.dataset.sort === sorted;
      const order = state.sort.startsWith("-") ? "descending" : "ascending";
      if (own) button.parentElement.setAttribute("aria-sort", order);
      else button.parentElement.removeAttribute("aria-sort");
    }
  }

  function draw() {
    const size = PAGE[state.view];
    const pages = Math.max(1, Math.ceil(rows.length / size));
    const page = Math.min(pages, Math.max(1, Number(state.page) || 1));
    const first = (page - 1) * size;
    const slice = rows.slice(first, first + size);
    const isTable = state.view === "table";
    // The first pictures are seen at once; those below wait until they are scrolled to.
    if (isTable) body.replaceChildren(...slice.map((row, at) => tableRow(row, at > 7)));
    else cards.replaceChildren(...slice.map((row, at) => card(row, at > 7)));
    scroller.hidden = !isTable;
    cards.hidden = isTable;
    for (const button of place.querySelectorAll("[data-view]")) {
      button.setAttribute("aria-pressed", String(button.dataset.view === state.view));
    }
    const [back, on] = place.querySelectorAll("[data-step]");
    back.disabled = page === 1;
    on.disabled = page === pages;
    place.querySelector(".pager").hidden = pages === 1;
    place.querySelector(".place").textContent = `Page ${page} of ${pages}`;
    const all = ownLayer ? layers.find((layer) => layer.slug === ownLayer).count : count;
    place.querySelector(".count").textContent =
      rows.length === all ? `${plain(all)} neurons` : `${plain(rows.length)} of ${plain(all)} neurons`;
    markHead();
  }

  function update(changes, { keepPage = false } = {}) {
    state = { ...state, ...(keepPage ? {} : { page: "1" }), ...changes };
    rows = select(state, ownLayer);
    draw();
    writeHash();
  }

  function writeHash() {
    const changed = Object.entries(state).filter(([key, value]) => value !== DEFAULTS[key]);
    const hash = new URLSearchParams(changed).toString();
    // Replaced, not added: each letter of a search would be a step back.
    history.replaceState(null, "", hash ? `#${hash}` : location.pathname + location.search);
  }

  function readHash() {
    const given = new URLSearchParams(location.hash.slice(1));
    state = { ...DEFAULTS };
    for (const key of Object.keys(DEFAULTS)) if (given.has(key)) state[key] = given.get(key);
    const sorted = state.sort.replace(/^-/, "");
    if (!SHOWN.some(([key]) => key === sorted)) state.sort = DEFAULTS.sort;
    if (!Object.hasOwn(PAGE, state.view)) state.view = DEFAULTS.view;
    for (const key of ["q", "layer", "min", "max", "k", "status"]) {
      const field = form.elements[key];
      if (field) field.value = state[key];
    }
    rows = select(state, ownLayer);
    draw();
    if (given.get("focus") === "search") {
      form.elements.q.focus();
      writeHash();
    }
  }

  // Neuron pages turn in the order of the view that they were opened from.
  function remember() {
    const page = ownLayer ? `layers/${ownLayer}.html` : "index.html";
    const shown = rows.map((row) => [columns.slug[row], columns.neuron[row]]);
    try {
      const view = JSON.stringify({ url: page + location.hash, rows: shown });
      sessionStorage.setItem(`polylight-view:${root.dataset.site}`, view);
    } catch {
      // Without storage the pages turn in the order of their scores.
    }
  }

  function offer(name, values) {
    for (const value of values) {
      const option = element("option", "", String(value));
      option.value = value;
      form.elements[name].append(option);
    }
  }

  head();
  offer("k", [...new Set(columns.k)].filter((k) => k !== null).sort((a, b) => a - b));
  offer("status", [...new Set(columns.status)].sort());
  place.hidden = false;
  form.addEventListener("input", (event) => update({ [event.target.name]: event.target.value }));
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => {
    update({ q: "", layer: "", min: "", max: "", k: "", status: "" });
  });
  place.querySelector("thead").addEventListener("click", (event) => {
    const key = event.target.closest("[data-sort]")?.dataset.sort;
    if (!key) return;
    const isText = ["neuron", "layer", "status", "p_value", "q_value"].includes(key);
    const other = state.sort === key ? `-${key}` : state.sort === `-${key}` ? key : null;
    update({ sort: other ?? (isText ? key : `-${key}`) });
  });
  place.querySelector(".views").addEventListener("click", (event) => {
    const view = event.target.closest("[data-view]")?.dataset.view;
    if (view) update({ view });
  });
  place.querySelector(".pager").addEventListener("click", (event) => {
    const step = Number(event.target.closest("[data-step]")?.dataset.step ?? 0);
    if (!step) return;
    update({ page: String((Number(state.page) || 1) + step) }, { keepPage: true });
    place.scrollIntoView();
  });
  place.addEventListener("click", (event) => {
    if (event.target.closest("a:not(.tile)")) remember();
  });
  document.querySelector(".top")?.addEventListener("click", (event) => {
    if (event.target.closest("a:not(.tile)")) remember();
  });
  window.addEventListener("hashchange", readHash);
  readHash();
})();
