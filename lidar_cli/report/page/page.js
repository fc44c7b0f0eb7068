"use strict";
// Sorts and filters the tables, and names what the pointer is at, in tables and charts alike.
// The page is complete without it.
(() => {
  const name = document.createElement("div");
  name.className = "pointed";
  name.hidden = true;
  document.body.append(name);

  function sort(table, header) {
    const at = header.cellIndex;
    const key = (row) => row.children[at].dataset.key;
    const rows = [...table.tBodies[0].rows];
    const texts = rows.some((row) => key(row) && isNaN(key(row)));
    // The first click sorts numbers from the largest, names and places from the first.
    const rising = at < 2 || texts ? "ascending" : "descending";
    const other = rising === "ascending" ? "descending" : "ascending";
    const order = header.ariaSort === rising ? other : rising;
    for (const each of header.parentNode.children) if (each.ariaSort) each.ariaSort = "none";
    header.ariaSort = order;
    const sign = order === "ascending" ? 1 : -1;
    table.tBodies[0].append(...rows.sort((a, b) => {
      const [x, y] = [key(a), key(b)];
      if (x === undefined || y === undefined) return (x === undefined) - (y === undefined);
      return sign * (texts ? x.localeCompare(y, undefined, { numeric: true }) : x - y);
    }));
  }

  function filter(section, text) {
    const left = new Set();
    const rows = section.querySelectorAll("tr[data-at]");
    for (const row of rows) {
      row.hidden = !row.dataset.name.toLowerCase().includes(text.toLowerCase());
      if (!row.hidden) left.add(row.dataset.at);
    }
    const count = new Set([...rows].map((row) => row.dataset.at)).size;
    section.querySelector(".tools output").textContent = `${left.size} of ${count}`;
    for (const mark of section.querySelectorAll("svg [data-at]")) {
      const shown = mark.dataset.at.split(" ").some((at) => left.has(at));
      mark.classList.toggle("filtered", !shown);
    }
  }

  // Lights every row and mark of the entries of an element; names them next to a chart's pointer.
  function point(section, element, event) {
    for (const lit of section.querySelectorAll(".lit, .tie")) lit.classList.remove("lit", "tie");
    section.classList.toggle("pointing", element !== null);
    name.hidden = !element?.dataset.title;
    if (element === null) return;
    const entries = new Set(element.dataset.at.split(" "));
    const ties = new Set(element.dataset.ties?.split(" "));
    for (const other of section.querySelectorAll("[data-at]")) {
      const places = other.dataset.at.split(" ");
      if (places.some((at) => entries.has(at))) other.classList.add("lit");
      else if (other.matches("tr") && ties.has(other.dataset.at)) other.classList.add("tie");
    }
    if (name.hidden) return;
    name.textContent = element.dataset.title;
    const { offsetWidth: width, offsetHeight: height } = name;
    const left = Math.min(event.pageX + 12, scrollX + document.documentElement.clientWidth - width - 8);
    name.style.left = `${Math.max(scrollX + 8, left)}px`;
    name.style.top = `${event.pageY > scrollY + height + 20 ? event.pageY - height - 12 : event.pageY + 20}px`;
  }

  for (const head of document.querySelectorAll("th[aria-sort] > .head")) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "head";
    button.title = head.title;
    button.append(...head.childNodes);
    head.replaceWith(button);
  }
  for (const title of document.querySelectorAll("svg [data-at] > title")) {
    const mark = title.parentNode;
    mark.dataset.title = title.textContent;
    title.remove(); // the browser's own box would show it again
    for (const line of mark.querySelectorAll("path:not(defs path)")) { // easier to point at
      const wide = line.cloneNode();
      wide.classList.add("wide");
      mark.append(wide);
    }
  }
  for (const section of document.querySelectorAll("section.listing")) {
    section.addEventListener("click", (event) => {
      const header = event.target.closest("button.head")?.closest("th");
      if (header) sort(header.closest("table"), header);
    });
    section.addEventListener("pointerover", (event) =>
      point(section, event.target.closest("[data-at]"), event));
    section.addEventListener("pointerleave", (event) => point(section, null, event));
    const tools = section.querySelector(".tools");
    if (tools) tools.hidden = false;
    tools?.addEventListener("input", (event) => filter(section, event.target.value));
  }
})();
