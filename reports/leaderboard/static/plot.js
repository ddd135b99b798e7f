// The plot of one ranking. plotly is loaded after the first paint; the table has the same points for whoever cannot click.
"use strict";
(function () {
  const MANY = 1000, INTERVALS = 40;
  let loading = null, last = null;

  function colours() {
    const style = getComputedStyle(document.documentElement);
    return Object.fromEntries(["ink", "quiet", "line", "ground", "accent"].map(function (name) {
      return [name, style.getPropertyValue("--" + name).trim()];
    }));
  }

  // plotly reads a few tags in texts; ours have none.
  function plain(text) { return String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;"); }

  // Of many points keep the front and one per cell of a grid.
  function thinned(points, x, y) {
    if (points.length <= MANY) return points;
    const xs = points.map(function (p) { return p[x]; }), ys = points.map(function (p) { return p[y]; });
    const lowX = Math.min(...xs), highX = Math.max(...xs), lowY = Math.min(...ys), highY = Math.max(...ys);
    const taken = new Set();
    return points.filter(function (p) {
      const cell = Math.round(60 * (p[x] - lowX) / (highX - lowX || 1)) + " " + Math.round(36 * (p[y] - lowY) / (highY - lowY || 1));
      if (taken.has(cell) && !p.front) return false;
      taken.add(cell);
      return true;
    });
  }

  function interval(points, axis) {
    function side(index, sign) {
      return points.map(function (p) { return p.intervals[axis.key] ? sign * axis.scale * (p.intervals[axis.key][index] - p[axis.key]) : 0; });
    }
    return axis.paired
      ? { type: "data", symmetric: false, array: side(1, 1), arrayminus: side(0, -1), thickness: 1, width: 0 } : undefined;
  }

  function trace(strategy, points, x, y, looks, ink, total) {
    const [colour, symbol] = looks[strategy];
    const drawn = colour === "#000000" ? ink : colour;
    const hollow = points[0].kind === "bound";
    const many = total > 100;
    const [errorX, errorY] = [x, y].map(function (axis) { return total <= INTERVALS ? interval(points, axis) : undefined; });
    for (const error of [errorX, errorY]) if (error) error.color = drawn + "88";
    return {
      type: "scatter", mode: "markers", name: plain(strategy), meta: strategy,
      x: points.map(function (p) { return x.scale * p[x.key]; }), y: points.map(function (p) { return y.scale * p[y.key]; }),
      customdata: points.map(function (p) { return p.id; }),
      text: points.map(function (p) { return plain(p.name) + (p.kv ? "<br>KV " + plain(p.kv) : "") + (p.lossless ? "<br>lossless" : ""); }),
      hovertemplate: "%{text}<br>" + x.short + " %{x:.3g}<br>" + y.short + " %{y:.3g}<extra></extra>",
      error_x: errorX, error_y: errorY,
      marker: { color: drawn, symbol: symbol + (hollow ? "-open" : ""), size: many ? 7 : 11, opacity: many ? 0.75 : 1,
        line: { width: points.map(function (p) { return symbol === "x-thin" || hollow || p.lossless ? 2 : 0; }),
          color: points.map(function (p) { return p.lossless ? ink : drawn; }) } },
    };
  }

  function front(points, x, y, colour) {
    const steps = points.filter(function (p) { return p.front; }).sort(function (a, b) { return a[x.key] - b[x.key]; });
    return { type: "scatter", mode: "lines", name: "Pareto front", line: { shape: "vh", width: 1.5, dash: "dot", color: colour }, hoverinfo: "skip",
      x: steps.map(function (p) { return x.scale * p[x.key]; }), y: steps.map(function (p) { return y.scale * p[y.key]; }) };
  }

  function draw(points, x, y, looks, note) {
    last = [points, x, y, looks, note];
    const all = points.filter(function (p) { return p[x.key] !== null && p[y.key] !== null; });
    const shown = thinned(all, x.key, y.key);
    const place = document.getElementById("plot");
    note.textContent = !all.length ? "No row has both numbers."
      : (shown.length < all.length ? shown.length + " of " + all.length + " points drawn: the front, and one per spot. " : "") +
        "Click a point to open it." + (shown.length <= INTERVALS && shown.some(function (p) { return p.intervals[x.key] || p.intervals[y.key]; }) ? " Bars are 95 % intervals." : "");
    if (!loading) loading = Leaderboard.load("assets/plotly.min.js", "plotly");
    loading.then(function () {
      if (last[0] !== points || last[1] !== x || last[2] !== y) return;
      const colour = colours();
      const strategies = [...new Set(shown.map(function (p) { return p.strategy; }))];
      const traces = strategies.map(function (strategy) {
        return trace(strategy, shown.filter(function (p) { return p.strategy === strategy; }), x, y, looks, colour.ink, shown.length);
      });
      if (x.first && y.first) traces.unshift(front(all, x, y, colour.accent));
      const axis = { gridcolor: colour.line, zeroline: false, linecolor: colour.line, tickfont: { size: 12 }, automargin: true };
      const narrow = place.clientWidth < 600;
      const layout = {
        paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: colour.ink, family: getComputedStyle(document.body).fontFamily, size: 13 },
        margin: { l: 56, r: 12, t: 44, b: 48 }, modebar: { bgcolor: "rgba(0,0,0,0)", color: colour.quiet, activecolor: colour.ink }, height: narrow ? 380 : 400, hovermode: "closest", dragmode: narrow ? false : "zoom",
        xaxis: { ...axis, title: { text: x.title + (x.better === "higher" ? " →" : ""), standoff: 8 } }, yaxis: { ...axis, title: { text: y.title, standoff: 8 } },
        legend: narrow ? { orientation: "h", y: -0.25 } : { x: 1.01, y: 1 },
        hoverlabel: { bgcolor: colour.ground, bordercolor: colour.line, font: { color: colour.ink } },
        shapes: x.paired === "ratio" ? [{ type: "line", x0: 1, x1: 1, yref: "paper", y0: 0, y1: 1, line: { color: colour.quiet, width: 1 }, layer: "below" }] : [],
      };
      return Plotly.react(place, traces, layout, { displaylogo: false, responsive: true, modeBarButtonsToRemove: ["lasso2d", "select2d", "autoScale2d"] })
        .then(function () {
          place.dataset.drawn = String(shown.length);
          if (place.dataset.ready) return;
          place.dataset.ready = "yes";
          place.on("plotly_click", function (event) {
            const id = event.points[0].customdata;
            if (id) location.href = "point.html#" + id;
          });
        });
    }).catch(function () { note.textContent = "The plot’s library could not be loaded; the table has every point."; });
  }

  window.addEventListener("theme", function () { if (last) draw(...last); });
  Leaderboard.plot = draw;
})();
