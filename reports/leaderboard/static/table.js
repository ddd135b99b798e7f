// The front page: filters, one ranking at a time, a table in pages, and a comparison of two.
"use strict";
(function () {
  const { h } = Leaderboard, index = Leaderboard.data.index, PAGE = 50, EVERYTHING = "all";
  const byId = function (id) { return document.getElementById(id); };
  const points = index.points.map(function (line) {
    const point = Object.fromEntries(index.fields.map(function (name, place) { return [name, line[place]]; }));
    const group = index.groups[point.group], run = index.runs[point.run];
    point.intervals = {};
    index.metrics.forEach(function (metric, place) {
      const found = point.metrics[place];
      point[metric.key] = Array.isArray(found) ? found[0] : found;
      if (Array.isArray(found)) point.intervals[metric.key] = found.slice(1);
    });
    point.lossless = point.decode.startsWith("lossless");
    point.decoding = point.lossless_ranks ? "lossless" : "lossy";  // full depth is exact by itself
    point.text = [point.name, point.strategy, point.kv, run[1], run[0], group.title].join(" ").toLowerCase();
    return point;
  });
  const FACETS = ["task", "model", "hardware", "energy"], OWN = ["strategy", "kv", "decoding"];
  const state = { q: "", task: "", model: "", hardware: "", energy: "", strategy: "", kv: "", decoding: "", group: "", by: index.criteria[0][0], sort: "", down: false, page: 0,
    x: index.axes[0], y: index.axes[1] };
  const metricOf = function (key) { return index.metrics.find(function (metric) { return metric.key === key; }); };

  const criterion = function () { return index.criteria.findIndex(function (entry) { return entry[0] === state.by; }); };
  const rank = function (point) { return (state.decoding === "lossless" ? point.lossless_ranks || [null] : point.ranks)[criterion()] ?? null; };

  const COLUMNS = [
    { key: "rank", title: "Rank", of: rank, cell: function (p) { return rank(p) === null ? "–" : String(rank(p)); }, number: true, ranking: true, up: true,
      about: "1 + rows that are clearly better; rows that intervals do not tell apart share a rank" },
    { key: "name", title: "Operating point", of: function (p) { return p.name; }, cell: named, up: true, head: true },
    { key: "task", title: "Task, model, hardware", of: function (p) { return index.groups[p.group].title; },
      cell: function (p) { return index.groups[p.group].title; }, up: true, everything: true, small: true, wide: true },
    { key: "kv", title: "KV", of: function (p) { return p.kv; }, cell: function (p) { return p.kv; }, up: true, minor: true, about: "what an exited token leaves in the layers it skipped" },
    { key: "quality", title: "Quality", of: function (p) { return ["kept", "unclear", "lost", "undefined"].indexOf(p.quality); }, up: true,
      cell: function (p) { return p.kind === "baseline" ? "" : h("span", { class: "quality " + p.quality, title: Leaderboard.quality[p.quality] }, p.quality); },
      about: "whether full depth’s quality is kept" },
    ...index.metrics.filter(function (metric) { return metric.column && !index.metrics.some(function (other) { return other.below === metric.key; }); }).map(metricColumn),
    { key: "n", title: "n", number: true, minor: true, cell: function (p) { return String(p.n); }, about: "samples scored" },
    { key: "run", title: "Run", of: function (p) { return index.runs[p.run][1]; }, up: true, minor: true, small: true,
      cell: function (p) { return h("span", { title: index.runs[p.run][2] + ", " + index.runs[p.run][3] }, index.runs[p.run][1]); } },
  ];

  // The number, and below it its interval, its difference to full depth, or where an energy comes from.
  function metricColumn(metric) {
    const [unit] = Leaderboard.scale(metric), title = metric.header[0].toUpperCase() + metric.header.slice(1);
    const interval = function (of, point) {
      const bounds = point.intervals[of.key];
      return bounds ? "[" + bounds.map(function (bound) { return Leaderboard.written(of, bound).replace("×", ""); }).join(", ") + "]" : of.paired && point.kind !== "baseline" && !(of.paired === "difference" && point.asserted) ? "[too few]" : "";
    };
    const below = metric.below ? metricOf(metric.below) : null;
    return { key: metric.key, number: true, minor: metric.key !== index.axes[0], up: metric.better === "lower", ranking: metric.paired && metric.key !== index.axes[0],
      title: metric.form === "seconds" ? title + ", " + unit : title,
      about: metric.about + (below ? "; below it the difference to full depth with its 95 % interval" : metric.paired ? ", 95 % interval" : ""),
      cell: function (point) {
        const group = index.groups[point.group], value = point[metric.key];
        if (value === null) return "–";
        const more = metric.energy ? group.energy : below ? (point[below.key] === null ? "" : "Δ " + Leaderboard.written(below, point[below.key]) + " " + interval(below, point)) : interval(metric, point);
        return [h("span", { class: "value" }, (metric.energy && !group.measured ? "~" : "") + Leaderboard.written(metric, value)), more ? h("span", { class: "interval" }, more) : null];
      } };
  }

  function named(point) {
    const dot = h("span", { class: "dot", "aria-hidden": "true" });
    const colour = index.looks[point.strategy][0];
    dot.style.background = colour === "#000000" ? "currentColor" : colour;
    return [dot, h("a", { href: "point.html#" + point.id, class: "name" }, Leaderboard.breakable(point.name)), ...Leaderboard.tags(point.kind, point.front && state.group !== EVERYTHING, index.runs[point.run][4], point.lossless)];
  }

  // ------------------------------------------------------------------ filters
  function matches(point, without) {
    const group = index.groups[point.group];
    return FACETS.every(function (name) { return name === without || !state[name] || group[name] === state[name]; }) &&
      OWN.every(function (name) { return name === without || !state[name] || point[name] === state[name]; }) &&
      (!state.q || state.q.toLowerCase().split(/\s+/).every(function (word) { return point.text.includes(word); }));
  }

  function options(select, entries, chosen) {
    select.replaceChildren(...entries.map(function ([value, text]) { return h("option", { value: value, selected: value === chosen }, text); }));
    select.value = chosen;
  }

  function fillFilters() {
    const labels = { task: "All tasks", model: "All models", hardware: "All classes", energy: "All sources", strategy: "All strategies", kv: "All policies", decoding: "All" };
    const written = { lossless: "Lossless only", lossy: "Lossy only" };
    for (const name of [...FACETS, ...OWN]) {
      const counts = new Map();
      for (const point of points) {
        if (!matches(point, name)) continue;
        const value = FACETS.includes(name) ? index.groups[point.group][name] : point[name];
        counts.set(value, (counts.get(value) || 0) + 1);
      }
      if (state[name] && !counts.has(state[name])) counts.set(state[name], 0);
      const entries = [...counts].sort(function (a, b) { return a[0] < b[0] ? -1 : 1; });
      options(byId(name), [["", labels[name]], ...entries.map(function ([value, count]) { return [value, (name === "decoding" && written[value] || value) + " (" + count + ")"]; })], state[name]);
    }
  }

  // A group's title, with what tells it from others of the same; a number where only hashes would.
  function groupTitle(group) {
    const alike = index.groups.filter(function (other) { return other.title === group.title; });
    const words = function (one) {
      return [one.title, ...one.facts.filter(function ([, text], place) {
        return !/[0-9a-f]{16}/.test(text) && alike.some(function (other) { return other.facts[place][1] !== text; });
      }).map(function ([label, text]) { return label.toLowerCase() + " " + text; })].join(" · ");
    };
    const same = alike.filter(function (other) { return words(other) === words(group); });
    return words(group) + (same.length > 1 ? " · other data or weights, no. " + (same.indexOf(group) + 1) : "");
  }

  function fillGroups() {
    const counts = new Map();
    for (const point of points) if (matches(point)) counts.set(point.group, (counts.get(point.group) || 0) + 1);
    const known = [...counts.keys()].sort(function (a, b) { return a - b; });
    const ids = known.map(function (number) { return index.groups[number].id; });
    if (state.group !== EVERYTHING && !ids.includes(state.group)) {
      const before = index.groups.findIndex(function (group) { return group.id === state.group; });
      if (known.length || before < 0) state.group = ids[0] || EVERYTHING;
      else { known.push(before); counts.set(before, 0); }  // nothing matches: the choice stays for when something does
    }
    options(byId("group"), [
      ...known.map(function (number) {
        const group = index.groups[number];
        return [group.id, groupTitle(group) + " (" + counts.get(number) + ")"];
      }),
      [EVERYTHING, "All, not comparable, unranked (" + [...counts.values()].reduce(function (a, b) { return a + b; }, 0) + ")"],
    ], state.group);
    options(byId("criterion"), index.criteria, state.by);
    byId("criterion").disabled = state.group === EVERYTHING;
  }

  // ------------------------------------------------------------------ order
  function sorted(rows) {
    const ranked = state.group !== EVERYTHING;
    if (!state.sort && ranked) {
      const by = state.by;
      return rows.sort(function (a, b) {
        return (rank(a) ?? Infinity) - (rank(b) ?? Infinity) || (b[by] ?? -Infinity) - (a[by] ?? -Infinity) || (a.name < b.name ? -1 : 1);
      });
    }
    const column = COLUMNS.find(function (c) { return c.key === (state.sort || index.axes[0]); });
    const of = column.of || function (p) { return p[column.key]; };
    const sign = (state.sort ? state.down : true) ? -1 : 1;
    return rows.sort(function (a, b) {
      const one = of(a), other = of(b);
      if (one === null || other === null) return (one === null) - (other === null);  // what is missing comes last either way
      return sign * (one < other ? -1 : one > other ? 1 : 0) || (a.id < b.id ? -1 : 1);
    });
  }

  // ------------------------------------------------------------------ the table
  const chosen = [];

  function head(columns) {
    const sortedBy = state.sort || (state.group === EVERYTHING ? index.axes[0] : "rank");
    const down = state.sort ? state.down : state.group === EVERYTHING;
    return h("tr", {}, h("th", { scope: "col", class: "pick" }, h("span", { class: "hidden" }, "Compare")), columns.map(function (column) {
      const order = column.key === sortedBy ? (down ? "descending" : "ascending") : "none";
      return h("th", { scope: "col", "aria-sort": order, class: classes(column) },
        h("button", { type: "button", title: column.about, "data-sort": column.key, onclick: function () {
          if (state.sort === column.key) state.down = !state.down;
          else Object.assign(state, { sort: column.key, down: !column.up });
          state.page = 0;
          show();
          document.querySelector('[data-sort="' + column.key + '"]').focus();
        } }, column.title, h("span", { class: "arrow", "aria-hidden": "true" }, order === "none" ? "" : down ? " ↓" : " ↑")));
    }));
  }

  function classes(column) {
    return [column.number && "number", column.minor && "minor", column.small && "small", column.wide && "wide", column.key === "rank" && "rank"].filter(Boolean).join(" ");
  }

  function line(point, columns) {
    const box = h("input", { type: "checkbox", "aria-label": "Compare " + point.name, checked: chosen.includes(point.id), onchange: function () { choose(point, box.checked); } });
    return h("tr", { class: point.kind + (rank(point) === 1 && state.group !== EVERYTHING ? " first" : "") }, h("td", { class: "pick" }, box), columns.map(function (column) {
      return h(column.head ? "th" : "td", { class: classes(column), scope: column.head ? "row" : null }, column.cell(point));
    }));
  }

  function show() {
    fillFilters();
    fillGroups();
    const everything = state.group === EVERYTHING;
    const rows = sorted(points.filter(function (p) { return matches(p) && (everything || index.groups[p.group].id === state.group); }));
    const columns = COLUMNS.filter(function (c) { return (!c.ranking || !everything) && (!c.everything || everything); });
    const pages = Math.max(1, Math.ceil(rows.length / PAGE));
    state.page = Math.min(state.page, pages - 1);
    const table = byId("table");
    table.tHead.replaceChildren(head(columns));
    table.tBodies[0].replaceChildren(...rows.slice(state.page * PAGE, (state.page + 1) * PAGE).map(function (p) { return line(p, columns); }));
    byId("count").textContent = rows.length
      ? "Rows " + (state.page * PAGE + 1) + "–" + Math.min(rows.length, (state.page + 1) * PAGE) + " of " + rows.length + ranking(rows, everything)
      : "No operating point matches. Clear a filter.";
    pager(pages);
    about(everything);
    remember();
    return rows;
  }

  function ranking(rows, everything) {
    if (everything) return "";
    const first = rows.filter(function (p) { return rank(p) === 1; }).length;
    const unranked = rows.filter(function (p) { return rank(p) === null; }).length;
    if (unranked === rows.length) {
      const reasons = [...new Set(rows.flatMap(function (p) { return index.runs[p.run][4]; }))];
      if (!reasons.length) return " · nothing here can be ranked by this";
      return " · not ranked: " + reasons[0] + (reasons.length > 1 ? ", and " + (reasons.length - 1) + " more" : "");
    }
    return " · " + (first === 1 ? "one is first" : first + " share the first rank") + (unranked ? " · " + unranked + " unranked" : "");
  }

  function about(everything) {
    const place = byId("about");
    if (everything) {
      place.replaceChildren("These rows come from different machines, data or models. They are listed, not ranked: choose one ranking to compare.");
      return;
    }
    const group = index.groups.find(function (g) { return g.id === state.group; });
    place.replaceChildren(h("span", {}, group.detail), " ", h("a", { href: "#group=" + group.id, class: "link" }, "link to this ranking"));
  }

  function pager(pages) {
    const step = function (by, text) {
      const to = state.page + by;
      return h("button", { type: "button", class: "quiet", disabled: to < 0 || to >= pages, onclick: function () { state.page = to; show(); } }, text);
    };
    byId("pager").replaceChildren(...(pages > 1 ? [step(-1, "← Previous"), h("span", {}, "Page " + (state.page + 1) + " of " + pages), step(1, "Next →")] : []));
  }

  function drawPlot(rows) {
    const everything = state.group === EVERYTHING;
    byId("plot-section").hidden = everything;
    if (everything) return;
    const group = index.groups.find(function (group) { return group.id === state.group; });
    const axis = function (key) {
      const metric = metricOf(key), [unit, scale] = Leaderboard.scale(metric);
      const title = metric.title + (unit && !metric.title.includes(unit) ? ", " + unit : "");
      const source = metric.energy ? " (" + group.origin + ")" : "";
      return { ...metric, scale: scale, first: index.axes.includes(key), title: title + source, short: title + (metric.energy ? " (" + group.energy + ")" : "") };
    };
    Leaderboard.plot(rows, axis(state.x), axis(state.y), index.looks, byId("plot-note"));
  }

  // ------------------------------------------------------------------ comparison
  function choose(point, on) {
    if (on) chosen.push(point.id);
    else chosen.splice(chosen.indexOf(point.id), 1);
    if (chosen.length > 2) chosen.shift();
    show();
    basket();
    const again = document.querySelector('input[aria-label="' + CSS.escape("Compare " + point.name) + '"]');
    if (again) again.focus();
  }

  function basket() {
    const names = chosen.map(function (id) { return points.find(function (p) { return p.id === id; }).name; });
    byId("basket").hidden = !chosen.length;
    byId("basket-text").textContent = names.length === 2 ? names.join(" and ") : names.join("") + ": choose one more";
    byId("basket-go").hidden = names.length < 2;
    byId("basket-go").href = "compare.html#" + chosen.join(",");
  }

  // ------------------------------------------------------------------ address
  const KEPT = ["q", ...FACETS, ...OWN, "group", "by", "sort", "x", "y"];

  function remember() {
    const parts = KEPT.filter(function (name) { return state[name] && !(name === "by" && state.by === index.criteria[0][0]) && !(name === "x" && state.x === index.axes[0]) && !(name === "y" && state.y === index.axes[1]); })
      .map(function (name) { return name + "=" + encodeURIComponent(state[name]); });
    if (state.sort && state.down) parts.push("down=1");
    try { history.replaceState(null, "", "#" + parts.join("&")); } catch (error) { /* the address stays as it is */ }
  }

  function recall() {
    const asked = new URLSearchParams(location.hash.slice(1));
    for (const name of KEPT) if (asked.has(name)) state[name] = asked.get(name);
    state.down = asked.has("down");
    if (criterion() < 0) state.by = index.criteria[0][0];
    if (!COLUMNS.some(function (c) { return c.key === state.sort; })) state.sort = "";
    for (const [name, value] of [["x", index.axes[0]], ["y", index.axes[1]]]) if (!metricOf(state[name])) state[name] = metricOf(value) ? value : index.metrics[0].key;
    byId("q").value = state.q;
  }

  function update() { drawPlot(show()); }

  recall();
  for (const name of ["x", "y"]) options(byId(name), index.metrics.map(function (metric) { return [metric.key, metric.title]; }), state[name]);
  for (const [id, name] of [...[...FACETS, ...OWN, "group", "x", "y"].map(function (n) { return [n, n]; }), ["criterion", "by"]]) {
    byId(id).addEventListener("change", function (event) {
      Object.assign(state, { [name]: event.target.value, page: 0 });
      if (name === "by") state.sort = "";
      update();
    });
  }
  let typing = null;
  byId("q").addEventListener("input", function (event) {
    clearTimeout(typing);
    typing = setTimeout(function () { Object.assign(state, { q: event.target.value.trim(), page: 0 }); update(); }, 120);
  });
  byId("filters").addEventListener("submit", function (event) { event.preventDefault(); });
  byId("basket-clear").addEventListener("click", function () { chosen.length = 0; show(); basket(); });
  window.addEventListener("hashchange", function () { if (location.hash === "#main") return; recall(); update(); });
  const rows = show();
  performance.mark("table-ready");
  requestAnimationFrame(function () { setTimeout(function () { drawPlot(rows); }, 0); });  // after the first paint
})();
