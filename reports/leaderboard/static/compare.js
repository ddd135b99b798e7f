// Two operating points side by side: compare.html#ID,ID.
"use strict";
(function () {
  const { h } = Leaderboard, place = document.getElementById("compare");

  function message(text) { place.replaceChildren(h("p", { class: "message" }, text, " ", h("a", { href: "index.html" }, "Back to the leaderboard"))); }

  function header(pair) {
    return h("thead", {}, h("tr", {}, h("th", { scope: "col" }, h("span", { class: "hidden" }, "What")), pair.map(function (point) {
      return h("th", { scope: "col" }, h("a", { href: "point.html#" + point.id, class: "name" }, point.name), " ", Leaderboard.tags(point.bound ? "bound" : point.baseline ? "baseline" : "", false, point.unranked, point.lossless));
    })));
  }

  function warning(pair) {
    const [one, other] = pair.map(function (point) { return new Map(point.facts); });
    const differing = [...one].filter(function ([label, text]) { return other.get(label) !== text; });
    if (pair[0].group === pair[1].group && pair[0].run === pair[1].run) return h("p", { class: "note" }, "Same run: measured interleaved, on the same prompts.");
    if (pair[0].group === pair[1].group) return h("p", { class: "note" }, "Same ranking, different runs: compare ratios to full depth, not seconds.");
    return h("div", { class: "warning", role: "note" }, h("p", {}, "Not comparable. These two differ in more than the operating point:"),
      h("ul", {}, differing.map(function ([label, text]) { return h("li", {}, h("b", {}, label), ": " + text + " — " + (other.get(label) || "–")); })));
  }

  function table(pair, described) {
    const seen = new Set();
    return [["What it gives and saves", described.cards], ...described.sections].map(function ([title, keys]) {
      const known = keys.filter(function (key) { return !seen.has(key) && pair.some(function (point) { return point.cells[key]; }); });
      known.forEach(function (key) { seen.add(key); });
      if (!known.length) return null;
      return h("tbody", {}, h("tr", { class: "section" }, h("th", { scope: "rowgroup", colspan: "3" }, title)), known.map(function (key) {
        const sources = [...new Set(pair.map(function (point) { return (point.cells[key] || ["", "", ""])[2]; }).filter(Boolean))];
        return h("tr", {}, h("th", { scope: "row", title: described.columns[key][1] }, described.columns[key][0] + (sources.length ? " (" + sources.join("; ") + ")" : "")),
          pair.map(function (point) { return h("td", {}, Leaderboard.number(point.cells[key])); }));
      }));
    });
  }

  function completions(pair) {
    const other = new Map(pair[1].samples.map(function (sample) { return [sample.id, sample]; }));
    const both = pair[0].task === pair[1].task ? pair[0].samples.filter(function (sample) { return other.has(sample.id) && other.get(sample.id).reference === sample.reference; }) : [];
    if (!both.length) return h("p", { class: "note" }, "No completion of the same prompt is on this site for both.");
    return h("ol", { class: "samples" }, both.map(function (sample) {
      return h("li", { class: "sample" }, h("h3", {}, sample.id), h("div", { class: "pair" }, [sample, other.get(sample.id)].map(function (one, place) {
        return h("div", {}, h("h4", {}, pair[place].name, one.scores.slice(0, 1).map(function ([title, score]) { return " · " + title + " " + score; })), h("pre", { class: "completion" }, Leaderboard.markup(one.html)));
      })), h("h4", {}, "Reference"), h("pre", {}, sample.reference));
    }));
  }

  function show(pair, described) {
    document.title = pair[0].name + " and " + pair[1].name + " · Early-exit leaderboard";
    place.replaceChildren(
      h("p", { class: "crumbs" }, h("a", { href: "index.html#group=" + pair[0].group }, "← The ranking")),
      h("h1", {}, "Side by side"), warning(pair),
      h("div", { class: "scroll", role: "region", "aria-label": "Numbers of both", tabindex: "0" }, h("table", { class: "sides" }, header(pair), table(pair, described))),
      h("div", { class: "columns two" }, pair.map(function (point) {
        return h("section", {}, h("h2", {}, "Depth of ", h("span", { class: "name" }, point.name)), Leaderboard.bars(point.layers, point.num_layers));
      })),
      h("h2", {}, "Completions"), completions(pair));
    place.dataset.shown = pair.map(function (point) { return point.id; }).join(",");
  }

  function open() {
    const ids = location.hash.slice(1).split(",");
    if (ids[0] === "main") return;
    if (ids.length !== 2 || !ids.every(Leaderboard.isId)) { message("Choose two operating points in the table to compare them."); return; }
    Promise.all([...ids.map(function (id) { return Leaderboard.load("data/points/" + id + ".js", "point " + id); }), Leaderboard.load("data/columns.js", "columns")])
      .then(function ([one, other, described]) { show([one, other], described); })
      .catch(function () { message("This site does not have both operating points."); });
  }

  window.addEventListener("hashchange", open);
  open();
})();
