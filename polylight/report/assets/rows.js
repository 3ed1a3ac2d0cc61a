// Which neurons a view shows, and in which order: no page, only the data of neurons.js.
(() => {
  "use strict";
  const { layers, columns, reported } = window.POLYLIGHT;
  const count = columns.neuron.length;
  const lowered = columns.neuron.map((name) => name.toLowerCase());
  const collator = new Intl.Collator("en", { numeric: true });
  const rank = new Uint32Array(count);
  [...rank.keys()]
    .sort((a, b) => collator.compare(columns.neuron[a], columns.neuron[b]))
    .forEach((row, at) => (rank[row] = at));

  // What is no number filters nothing.
  function numeric(text) {
    return text === "" || Number.isNaN(Number(text)) ? null : Number(text);
  }

  function filtered(state, ownLayer) {
    const words = state.q.toLowerCase().split(/\s+/).filter(Boolean);
    const slug = ownLayer ?? state.layer;
    const layer = layers.findIndex((one) => one.slug === slug);
    const [low, high, k] = [state.min, state.max, state.k].map(numeric);
    const found = [];
    for (let row = 0; row < count; row++) {
      const score = columns[reported][row];
      if (layer >= 0 && columns.layer[row] !== layer) continue;
      if (state.status && columns.status[row] !== state.status) continue;
      if (k !== null && columns.k[row] !== k) continue;
      if (low !== null && !(score !== null && score >= low)) continue;
      if (high !== null && !(score !== null && score <= high)) continue;
      if (!words.every((word) => lowered[row].includes(word))) continue;
      found.push(row);
    }
    return found;
  }

  // What has no value comes last, whichever way the column is sorted; ties go by name.
  function sort(rows, column, falling) {
    const keys = column === "neuron" ? rank : columns[column];
    const sign = falling ? -1 : 1;
    return rows.sort((a, b) => {
      const x = keys[a], y = keys[b];
      if (x === null || y === null) return (x === null) - (y === null) || rank[a] - rank[b];
      return sign * (x < y ? -1 : x > y ? 1 : 0) || rank[a] - rank[b];
    });
  }

  // Who types a whole name wants that neuron, whatever the column.
  function exactFirst(rows, text) {
    const name = text.toLowerCase().replace(/\s+/g, "");
    const at = name ? rows.findIndex((row) => lowered[row].replace(/\s+/g, "") === name) : -1;
    if (at > 0) rows.unshift(...rows.splice(at, 1));
    return rows;
  }

  window.POLYLIGHT.select = (state, ownLayer) => {
    const column = state.sort.replace(/^-/, "");
    const rows = sort(filtered(state, ownLayer), column, state.sort.startsWith("-"));
    return exactFirst(rows, state.q);
  };
})();
