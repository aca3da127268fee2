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

  // The viewer: a tile's source, copied out of the page; arrow keys walk along the neighbours that can be clicked.
  const viewer = one("#viewer"), shown = one("#shown"), heat = one("#heat");
  let walk = [], here = -1;
  const show = (id) => {
    const source = document.getElementById(id);
    if (!source || !source.classList.contains("source")) return false;
    const copy = source.cloneNode(true);
    copy.removeAttribute("id");
    shown.replaceChildren(copy);
    if (!viewer.open) viewer.showModal();
    one("#before").disabled = here <= 0;
    one("#after").disabled = here < 0 || here >= walk.length - 1;
    return true;
  };
  const step = (by) => {
    if (here + by < 0 || here + by >= walk.length) return;
    here += by;
    show(walk[here]);
  };
  const group = ".mosaics, .clusters, .sources, .map, tbody";
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[href^='#']");
    const source = link ? null : event.target.closest("main .source");
    if (!link && !source) return;
    const id = link ? decodeURIComponent(link.getAttribute("href").slice(1)) : source.id;
    const around = (link || source).closest(group);
    const ids = around ? all("a[href^='#'], .source", around).map((e) => e.id || e.getAttribute("href").slice(1)) : [];
    walk = [...new Set(ids)];
    here = walk.indexOf(id);
    if (show(id)) event.preventDefault();
  });
  document.addEventListener("keydown", (event) => {
    if (!viewer.open || event.target === heat) return;
    if (event.key === "ArrowLeft") step(-1);
    if (event.key === "ArrowRight") step(1);
  });
  const blend = () => viewer.style.setProperty("--heat", heat.value / 100);
  heat.addEventListener("input", blend);
  blend();
  one("#before").addEventListener("click", () => step(-1));
  one("#after").addEventListener("click", () => step(1));
  one("#close").addEventListener("click", () => viewer.close());
  viewer.addEventListener("click", (event) => { if (event.target === viewer) viewer.close(); });
  if (location.hash) show(decodeURIComponent(location.hash.slice(1)));
})();
