// One operating point: its numbers, settings, completions and manifest. The address after # is its permanent id.
"use strict";
(function () {
  const { h } = Leaderboard, place = document.getElementById("point");

  function message(text) { place.replaceChildren(h("p", { class: "message" }, text, " ", h("a", { href: "index.html" }, "Back to the leaderboard"))); }

  function cards(point, described) {
    return h("ul", { class: "cards" }, described.cards.filter(function (key) { return point.cells[key]; }).map(function (key) {
      const [title, about] = described.columns[key], [text, unit, source] = point.cells[key], [, value, rest] = /^(\S+(?: %)?)(.*)$/.exec(text);
      return h("li", { title: about }, h("span", { class: "label" }, title), h("span", { class: "figure" }, value + (/^(ms|s)$/.test(unit) ? " " + unit : "")),
        h("span", { class: "interval" }, source || rest.trim()));
    }));
  }

  function numbers(point, described) {
    return described.sections.map(function ([title, keys]) {
      const known = keys.filter(function (key) { return point.cells[key]; });
      return known.length ? h("details", {}, h("summary", {}, title), h("table", { class: "numbers" }, h("tbody", {}, known.map(function (key) {
        const [name, meaning] = described.columns[key];
        const source = point.cells[key][2] ? " (" + point.cells[key][2] + ")" : "";
        return h("tr", {}, h("th", { scope: "row" }, name), h("td", { class: "number" }, Leaderboard.number(point.cells[key]) + source), h("td", { class: "meaning" }, meaning));
      })))) : null;
    });
  }

  function drafts(point) {
    return point.drafts.map(function ([title, shares], place) {
      return h("details", {}, h("summary", {}, title), place ? "" : h("p", { class: "note" }, point.drafts_note),
        h("table", { class: "numbers" }, h("tbody", {}, shares.map(function ([name, share]) {
          return h("tr", {}, h("th", { scope: "row" }, name), h("td", { class: "number" }, share));
        }))));
    });
  }

  function sample(one) {
    const scores = one.scores.map(function ([title, score]) { return title + " " + score.toFixed(2); });
    const facts = [one.tokens + " tokens", one.mean_layer === null ? null : "mean layer " + one.mean_layer, one.latency_s === null ? null : (1000 * one.latency_s).toFixed(0) + " ms"];
    return h("li", { class: "sample" }, h("h3", {}, one.id), h("p", { class: "note" }, [...facts, ...scores].filter(Boolean).join(" · ")),
      h("div", { class: "pair" },
        h("div", {}, h("h4", {}, "Completion"), h("pre", { class: "completion" }, Leaderboard.markup(one.html))),
        h("div", {}, h("h4", {}, "Reference"), h("pre", {}, one.reference))));
  }

  function samples(point) {
    const of = point.samples.length < point.finished ? point.samples.length + " of " + point.finished + ", the same for every operating point" : "All " + point.finished;
    return h("section", {}, h("h2", {}, "Completions"),
      h("p", { class: "note" }, of + (point.failed ? "; " + point.failed + " more failed" : "") + ". Each token stands on the colour of the layer it left at; underlined where it is not full depth’s token, framed where it came from prefill." + (point.lossless ? " A bar below: a draft, on the colour of its layer or on none where the draft source proposed it, and full depth accepted it; a bar above: full depth’s, in place of a draft." : "")),
      h("div", { class: "scale" }, "exit layer ", point.scale.map(function ([layer, ground, ink]) { return h("span", { style: "background:" + ground + ";color:" + ink }, String(layer)); })),
      h("ol", { class: "samples" }, point.samples.map(sample)));
  }

  function manifest(run) {
    const files = h("details", {}, h("summary", {}, "manifest.json"), h("pre", { class: "manifest" }, JSON.stringify(run.manifest, null, 2)));
    const code = run.manifest.environment.git;
    const packages = Object.entries(run.manifest.environment.packages || {}).filter(function (entry) { return ["torch", "transformers"].includes(entry[0]) && entry[1]; });
    const facts = [["Run", run.name], ["Permanent id", run.id], ["Measured", run.manifest.created], ["Machine", run.machine],
      ["Hypervisor", (run.manifest.machine || {}).hypervisor], ["Code", code ? code.commit.slice(0, 12) + (code.dirty ? ", with uncommitted changes" : "") : null],
      ["Packages", packages.map(function (entry) { return entry.join(" "); }).join(", ")], ["Energy meter", run.manifest.meter.description]];
    return h("section", {}, h("h2", {}, "Run"), Leaderboard.facts(facts.filter(function (fact) { return fact[1]; })),
      h("h3", {}, "What to know about it"), h("ul", { class: "notes" }, run.notes.map(function (note) { return h("li", {}, note); })), files);
  }

  function show(point, run, described) {
    document.title = point.name + " · Early-exit leaderboard";
    place.replaceChildren(
      h("p", { class: "crumbs" }, h("a", { href: "index.html#group=" + point.group }, "← The ranking"), " · ", point.task, " · ", point.model),
      h("h1", { class: "name" }, Leaderboard.breakable(point.name), " ", Leaderboard.tags(point.bound ? "bound" : point.baseline ? "baseline" : "", false, point.unranked, point.lossless),
        point.baseline ? null : h("span", { class: "quality " + point.quality, title: Leaderboard.quality[point.quality] }, point.quality)),
      point.unranked.length ? h("div", { class: "warning", role: "note" }, h("p", {}, "Not ranked: harness submit would refuse its run. " + point.unranked.join("; ") + ".")) : "",
      point.verdict ? h("p", { class: "verdict" }, point.verdict[0].toUpperCase() + point.verdict.slice(1) + ".") : "",
      cards(point, described),
      h("div", { class: "columns" },
        h("section", {}, h("h2", {}, "Depth"), Leaderboard.bars(point.layers, point.num_layers)),
        h("section", {}, h("h2", {}, "Setting"), Leaderboard.facts(point.settings)),
        h("section", {}, h("h2", {}, "Measured on"), Leaderboard.facts(point.facts))),
      h("section", {}, h("h2", {}, "All numbers"), h("p", { class: "note" }, "95 % intervals in brackets, or [too few]: blocks or samples, to have one; * differs from full depth (Holm-corrected p ≤ 0.05)."), numbers(point, described), drafts(point)),
      samples(point), manifest(run));
    place.dataset.shown = point.id;
  }

  function open() {
    const id = location.hash.slice(1);
    if (id === "main") return;
    if (!Leaderboard.isId(id)) { message("This address names no operating point."); return; }
    Promise.all([Leaderboard.load("data/points/" + id + ".js", "point " + id), Leaderboard.load("data/columns.js", "columns")])
      .then(function ([point, described]) {
        if (!Leaderboard.isId(point.run)) throw new Error("run");
        return Leaderboard.load("data/runs/" + point.run + ".js", "run").then(function (run) { show(point, run, described); });
      })
      .catch(function () { message("This site has no operating point " + id + "."); });
  }

  window.addEventListener("hashchange", open);
  open();
})();
