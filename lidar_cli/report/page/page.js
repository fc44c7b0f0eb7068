"use strict";
// Sorts and filters the tables, and draws the charts of each listing. The only text that it adds to
// the page goes through plotly, escaped, because plotly understands a few tags.
(() => {
  const data = JSON.parse(document.getElementById("charts").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const narrow = window.matchMedia("(max-width: 40rem)");
  const SHOWN_NAMES = 8; // most curves with a legend
  const LONGEST_NAME = 44;

  const colour = (name) =>
    getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  const escaped = (text) =>
    text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const short = (name) => {
    const most = narrow.matches ? 30 : LONGEST_NAME;
    const room = most - 1;
    const cut = name.length > most
      ? name.slice(0, Math.floor(room / 3)) + "\u2026" + name.slice(-Math.ceil((2 * room) / 3))
      : name;
    return escaped(cut);
  };

  // A shade between the first and the last in an order; distinct colours without an order.
  function shades(count, ordered) {
    if (!ordered) return (at) => colour(`c${at % 8}`);
    const [from, to] = ["first", "last"].map((name) =>
      colour(name).match(/[0-9a-f]{2}/gi).map((pair) => parseInt(pair, 16)));
    return (at) => {
      const share = count > 1 ? at / (count - 1) : 0;
      return `rgb(${from.map((low, i) => Math.round(low + share * (to[i] - low))).join(",")})`;
    };
  }

  function layout(x, y, more = {}) {
    const axis = { gridcolor: colour("line"), zeroline: false, linecolor: colour("line"),
      ticks: "outside", tickcolor: colour("line"), automargin: true };
    return {
      font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: colour("quiet") },
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      margin: { l: 56, r: 12, t: 12, b: 44 }, hovermode: "closest",
      hoverlabel: { bgcolor: colour("paper"), bordercolor: colour("line"),
        font: { color: colour("ink") } },
      legend: { orientation: "h", y: narrow.matches ? -0.3 : -0.2, yanchor: "top", x: 0,
        traceorder: "reversed", font: { size: 11 } },
      xaxis: { ...axis, ...x, title: { text: x.title, standoff: 8 } },
      yaxis: { ...axis, ...y, title: { text: y.title, standoff: 8 } },
      ...more,
    };
  }

  // Ticks at each decade; at few decades also at 2 and 5 between them.
  function ticks(traces) {
    const values = traces.flatMap((trace) => trace.y);
    return Math.max(...values) / Math.min(...values) < 300 ? "D2" : 1;
  }

  const distinct = (values) => [...new Set(values.filter((value) => value !== null))];

  const charts = {
    spectra(listing, shown, { matrix }) {
      const shade = shades(listing.entries.length, listing.by !== null);
      const drawn = shown.filter((at) => listing.entries[at].spectra[matrix]);
      const named = drawn.length <= SHOWN_NAMES && drawn.length > 1;
      const traces = drawn.map((at) => {
        const [ranks, values] = listing.entries[at].spectra[matrix];
        const lead = listing.by !== null && at === drawn[0];
        return { x: ranks, y: values, type: "scatter", mode: "lines",
          name: short(listing.entries[at].name), showlegend: named, opacity: lead ? 1 : 0.85,
          line: { color: shade(at), width: lead ? 2.6 : 1.4 },
          hovertemplate: "%{fullData.name}<br>rank %{x}: %{y:.4g}<extra></extra>" };
      }).reverse();
      // A spectrum starts above both lines and ends below: the floor has room on the left, below
      // it, the edge on the right, above it.
      const left = { x: 0, xanchor: "left", yanchor: "top", text: "1/q, view noise" };
      const right = { x: 1, xanchor: "right", yanchor: "bottom", text: "edge of noise" };
      const lines = matrix !== "lda" ? [] : [
        ...distinct(drawn.map((at) => listing.entries[at].floor)).map((y) => [y, left]),
        ...distinct(drawn.map((at) => listing.entries[at].edge)).map((y) => [y, right]),
      ];
      return [traces, layout(
        { type: "log", title: "rank of the eigenvalue", dtick: 1 },
        { type: "log", title: "eigenvalue", exponentformat: "power", dtick: ticks(traces) },
        { shapes: lines.map(([y]) => ({ type: "line", xref: "paper", x0: 0, x1: 1, y0: y, y1: y,
            line: { color: colour("floor"), width: 1, dash: "dot" } })),
          annotations: lines.map(([y, label]) => ({ ...label, xref: "paper", y: Math.log10(y),
            showarrow: false, font: { size: 11, color: colour("floor") } })) })];
    },

    parameter(listing, shown, { metric, against }) {
      const values = shown.map((at) => listing.entries[at].parameters[against] ?? null);
      const numbers = values.filter((value) => typeof value === "number");
      const [least, most] = [Math.min(...numbers), Math.max(...numbers)];
      const category = numbers.length < values.filter((value) => value !== null).length;
      const log = !category && least > 0 && most / least >= 50;
      const at = shown.filter((_, place) => values[place] !== null);
      const text = (value) => (category ? escaped(String(value)) : value);
      return points(listing, at, metric, (entry) => text(entry.parameters[against]), {
        title: escaped(against), type: category ? "category" : log ? "log" : "linear",
        ...(log ? { dtick: 1, exponentformat: "power" } : {}) });
    },

    oracle(listing, shown, { metric }) {
      const at = shown.filter((place) => listing.entries[place].accuracy !== null);
      return points(listing, at, metric, (entry) => 100 * entry.accuracy,
        { title: "accuracy, percent" });
    },

    convergence(listing, shown, { against, metric }) {
      const traces = shown.flatMap((at) => {
        const lines = listing.entries[at].convergence?.[against] ?? {};
        const drawn = Object.entries(lines).filter(([name]) => !metric || name === metric);
        return drawn.map(([name, [counts, shares]], place) => ({
          x: counts, y: shares, type: "scatter", mode: "lines+markers",
          name: metric ? short(listing.entries[at].name) : name, marker: { size: 5 },
          showlegend: !metric || shown.length <= SHOWN_NAMES,
          line: { color: colour(`c${(metric ? at : place) % 8}`), width: 1.5,
            dash: !metric && place > 7 ? "dot" : "solid" },
          hovertemplate: "%{fullData.name}<br>%{x}: %{y:.1%}<extra></extra>" }));
      }).reverse();
      const counts = distinct(traces.flatMap((trace) => trace.x)).sort((a, b) => a - b);
      return [traces, layout(
        { type: "log", title: against === "samples" ? "n, samples" : "q, views of each",
          tickvals: counts, ticktext: counts.map(String) },
        { title: "share of the value of all", tickformat: ".0%" })];
    },
  };

  function points(listing, at, metric, abscissa, x) {
    const valued = at.filter((place) => listing.entries[place].values[metric]);
    const ordered = listing.by !== null && metric === listing.by;
    const shade = shades(listing.entries.length, ordered);
    const values = valued.map((place) => listing.entries[place].values[metric]);
    const reaches = values.some((value) => value.length > 1);
    const trace = {
      x: valued.map((place) => abscissa(listing.entries[place])), y: values.map(([value]) => value),
      text: valued.map((place) => short(listing.entries[place].name)), type: "scatter",
      mode: "markers", showlegend: false,
      marker: { size: 8, color: valued.map((place) => ordered ? shade(place) : colour("accent")) },
      hovertemplate: "%{text}<br>%{x}: %{y:.4g}<extra></extra>",
      error_y: { type: "data", symmetric: false, visible: reaches, thickness: 1, width: 0,
        color: colour("quiet"), array: values.map(([value, , high]) => (high ?? value) - value),
        arrayminus: values.map(([value, low]) => value - (low ?? value)) },
    };
    return [[trace], layout(x, { title: metric })];
  }

  // Positions of the entries that pass the filter; all if the table has no row per entry.
  function shownEntries(section, listing) {
    const rows = [...section.querySelectorAll("tbody tr[data-at]")];
    if (!rows.length) return [...listing.entries.keys()];
    return rows.filter((row) => !row.hidden).map((row) => Number(row.dataset.at))
      .sort((a, b) => a - b);
  }

  function draw(section, listing) {
    const shown = shownEntries(section, listing);
    for (const figure of section.querySelectorAll("figure")) {
      const chosen = Object.fromEntries(
        [...figure.querySelectorAll("select")].map((select) => [select.name, select.value]));
      const [traces, format] = charts[figure.dataset.chart](listing, shown, chosen);
      Plotly.react(figure.querySelector(".plot"), traces, format,
        { responsive: true, displayModeBar: false });
    }
  }

  function sort(table, header) {
    const at = [...header.parentNode.children].indexOf(header);
    const key = (row) => row.children[at].dataset.key;
    const texts = [...table.tBodies[0].rows].some((row) => key(row) && isNaN(key(row)));
    // The first click sorts numbers from the largest, names and places from the first.
    const rising = header.cellIndex < 2 || texts ? "ascending" : "descending";
    const other = rising === "ascending" ? "descending" : "ascending";
    const order = header.ariaSort === rising ? other : rising;
    for (const each of header.parentNode.children) if (each.ariaSort) each.ariaSort = "none";
    header.ariaSort = order;
    const sign = order === "ascending" ? 1 : -1;
    const compare = (a, b) => {
      const [x, y] = [key(a), key(b)];
      if (x === undefined || y === undefined) return (x === undefined) - (y === undefined);
      return sign * (texts ? x.localeCompare(y, undefined, { numeric: true }) : x - y);
    };
    table.tBodies[0].append(...[...table.tBodies[0].rows].sort(compare));
  }

  function filter(section, listing, text) {
    const wanted = text.toLowerCase();
    const rows = [...section.querySelectorAll("tbody tr[data-at]")];
    for (const row of rows) row.hidden = !row.dataset.name.toLowerCase().includes(wanted);
    const left = rows.filter((row) => !row.hidden).length;
    section.querySelector(".tools output").textContent = `${left} of ${rows.length}`;
    draw(section, listing);
  }

  const sections = [...document.querySelectorAll("section.listing")];
  sections.forEach((section, place) => {
    const listing = data[place];
    const table = section.querySelector("table");
    draw(section, listing);
    section.addEventListener("change", (event) => {
      if (event.target.matches("select")) draw(section, listing);
    });
    if (!table.querySelector("button")) return; // one file alone: nothing to order
    table.tHead.addEventListener("click", (event) => {
      const header = event.target.closest("button")?.closest("th");
      if (header) sort(table, header);
    });
    table.tBodies[0].addEventListener("mouseover", (event) => {
      const ties = event.target.closest("tr")?.dataset.ties?.split(" ") ?? [];
      for (const row of table.tBodies[0].rows) {
        row.classList.toggle("tie", ties.includes(row.dataset.at));
      }
    });
    table.addEventListener("mouseleave", () => {
      for (const row of table.tBodies[0].rows) row.classList.remove("tie");
    });
    section.querySelector(".filter")?.addEventListener("input", (event) =>
      filter(section, listing, event.target.value));
  });
  for (const media of [dark, narrow]) {
    media.addEventListener("change", () =>
      sections.forEach((section, place) => draw(section, data[place])));
  }
})();
