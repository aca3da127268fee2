"use strict";
(() => {
  const one = (query, root = document) => root.querySelector(query);
  const all = (query, root = document) => [...root.querySelectorAll(query)];

  // Light or dark: the system's choice until the button is pressed; kept where the browser lets a file keep something.
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const keep = (theme) => { try { localStorage.setItem("diffsel-theme", theme); } catch { /* not kept */ } };
  const kept = () => { try { return localStorage.getItem("diffsel-theme"); } catch { return null; } };
  const root = document.documentElement;
  if (kept()) root.dataset.theme = kept();
  one("#theme").addEventListener("click", () => {
    const now = root.dataset.theme || (dark.matches ? "dark" : "light");
    root.dataset.theme = now === "dark" ? "light" : "dark";
    keep(root.dataset.theme);
  });

  // The class filter: cards and sections whose name or folder holds every word typed.
  const filter = one("#filter"), found = one("#found"), none = one("#none");
  const listed = all("[data-words]"), cards = all(".card"), counted = cards.length ? cards : listed;
  const sift = () => {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const each of listed) each.hidden = !words.every((word) => each.dataset.words.includes(word));
    const left = counted.filter((each) => !each.hidden).length;
    found.value = words.length ? `${left} of ${counted.length}` : "";
    if (none) none.hidden = left > 0;
  };
  filter.addEventListener("input", () => {
    sift();
    const start = one("#classes");
    if (start && filter.value) start.scrollIntoView({ block: "start" });
  });
  filter.addEventListener("keydown", (event) => {
    const first = counted.find((each) => !each.hidden);
    if (event.key !== "Enter" || !first) return;
    if (first.href) first.click(); else first.scrollIntoView({ block: "start" });
  });
  if (filter.value) sift();

  // The viewer: what was clicked, copied out of the page.  Left and right walk along its row, up and down from row to row.
  const viewer = one("#viewer"), shown = one("#shown"), heat = one("#heat");
  const rows = ".strip, .mosaics, .sources, .map, tbody", stops = "a[href^='#'], .source, .peek";
  let walk = [], here = -1;
  const target = (stop) => stop.id || (stop.hash ? decodeURIComponent(stop.hash.slice(1)) : "");
  const fact = (list, name, text) => {
    list.append(Object.assign(document.createElement("dt"), { textContent: name }));
    list.append(Object.assign(document.createElement("dd"), { textContent: text }));
  };
  const peeked = (stop) => {  // a patch whose source is not on the page: the patch itself, enlarged
    const figure = document.createElement("figure"), stage = document.createElement("div"), words = document.createElement("figcaption");
    figure.className = "source"; stage.className = "stage peeked";
    const path = Object.assign(document.createElement("p"), { className: "path", textContent: stop.title }), list = document.createElement("dl");
    stage.append(...[one("img", stop)].filter(Boolean).map((image) => image.cloneNode()));
    for (const { name, value } of stop.attributes) if (name.startsWith("data-")) fact(list, name.slice(5).replaceAll("-", " "), value);
    words.append(path, list); figure.append(stage, words);
    return figure;
  };
  const copied = (stop) => {
    if (stop.matches(".peek")) return peeked(stop);
    const source = document.getElementById(target(stop));
    if (!source || !source.classList.contains("source")) return null;
    const copy = source.cloneNode(true), stage = one(".stage", copy);
    copy.removeAttribute("id"); stage.tabIndex = -1;
    return copy;
  };
  const show = (stop) => {
    const copy = copied(stop);
    if (!copy) return false;
    shown.replaceChildren(copy);
    if (!viewer.open) viewer.showModal();
    one("#before").disabled = here <= 0;
    one("#after").disabled = here < 0 || here >= walk.length - 1;
    return true;
  };
  const along = (row) => [...new Map(all(stops, row).map((stop) => [target(stop) || stop, stop])).values()].filter((stop) => copied(stop));
  const open = (stop) => {
    const row = stop.closest(rows);
    walk = row ? along(row) : [];
    here = walk.findIndex((each) => each === stop || (target(stop) && target(each) === target(stop)));
    return show(stop);
  };
  const step = (by) => {
    if (here + by < 0 || here + by >= walk.length) return;
    here += by;
    show(walk[here]);
  };
  const turn = (by) => {
    const visible = all(rows).filter((row) => row.getClientRects().length && !row.closest("dialog"));
    const now = walk[here] && visible.indexOf(walk[here].closest(rows));
    for (let i = now + by; walk[here] && i >= 0 && i < visible.length; i += by) {
      const stop = along(visible[i])[0];
      if (stop) return open(stop);
    }
  };
  document.addEventListener("click", (event) => {
    const stop = event.target.closest("a[href^='#'], .peek") || event.target.closest("main .source");
    if (stop && open(stop)) event.preventDefault();
  });
  const steps = { ArrowLeft: () => step(-1), ArrowRight: () => step(1), ArrowUp: () => turn(-1), ArrowDown: () => turn(1) };
  document.addEventListener("keydown", (event) => {
    if (!viewer.open || event.target === heat || !steps[event.key]) return;
    event.preventDefault();
    steps[event.key]();
  });

  // Keys of the page: / filters, j and k go from class to class.
  const pass = (by) => {
    const sections = all("section.class").filter((each) => !each.hidden), edge = 90;
    const tops = sections.map((each) => each.getBoundingClientRect().top);
    const next = by > 0 ? tops.findIndex((top) => top > edge) : tops.findLastIndex((top) => top < edge - 30);
    if (sections[next]) sections[next].scrollIntoView({ block: "start" });
  };
  const keys = { "/": () => filter.focus(), j: () => pass(1), k: () => pass(-1) };
  document.addEventListener("keydown", (event) => {
    if (viewer.open || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.matches("input")) {
      if (event.key === "Escape") { filter.value = ""; sift(); filter.blur(); }
      return;
    }
    if (!keys[event.key]) return;
    event.preventDefault();
    keys[event.key]();
  });

  // On paper nothing is folded away.
  let folded = [];
  addEventListener("beforeprint", () => { folded = all("details:not([open])"); for (const each of folded) each.open = true; });
  addEventListener("afterprint", () => { for (const each of folded) each.open = false; });

  const blend = () => viewer.style.setProperty("--heat", heat.value / 100);
  heat.addEventListener("input", blend);
  blend();
  one("#before").addEventListener("click", () => step(-1));
  one("#after").addEventListener("click", () => step(1));
  one("#close").addEventListener("click", () => viewer.close());
  viewer.addEventListener("click", (event) => { if (event.target === viewer) viewer.close(); });
  if (location.hash) open(Object.assign(document.createElement("a"), { href: location.hash }));
})();
