// What all pages use. Texts of users become text nodes; only coloured completions, escaped when they were made, are markup.
"use strict";
const Leaderboard = {
  data: {},

  // Element with attributes and children (texts or elements).
  h(name, attributes, ...children) {
    const element = document.createElement(name);
    for (const [key, value] of Object.entries(attributes || {})) {
      if (value === null || value === undefined || value === false) continue;
      if (key === "class") element.className = value;
      else if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
      else element.setAttribute(key, value === true ? "" : value);
    }
    for (const child of children.flat()) if (child !== null && child !== undefined) element.append(child);
    return element;
  },

  isId(text) { return /^[0-9a-f]{16}$/.test(text); },

  // Load a data file by injecting its script; fetch() is forbidden under file://.
  load(path, kind) {
    return new Promise(function (resolve, reject) {
      const script = document.createElement("script");
      script.src = path;
      script.onload = function () { resolve(Leaderboard.data[kind]); };
      script.onerror = function () { reject(new Error(path)); };
      document.head.append(script);
    });
  },

  // A name that may break where its parts end, and nowhere else.
  breakable(text) {
    return text.split(/(?<=[:,@])/).flatMap(function (part, place) { return place ? [document.createElement("wbr"), part] : [part]; });
  },

  markup(html) {
    const holder = document.createElement("span");
    holder.innerHTML = html;
    return holder;
  },

  tags(kind, front, unranked, lossless) {
    const tags = [];
    if (lossless) tags.push(Leaderboard.h("span", { class: "tag lossless", title: "full depth verified every token" }, "lossless"));
    if (unranked && unranked.length) tags.push(Leaderboard.h("span", { class: "tag refused", title: "harness submit would refuse its run: " + unranked.join("; ") }, "not ranked"));
    if (front) tags.push(Leaderboard.h("span", { class: "tag front", title: "on the Pareto front of speed-up and text kept" }, "front"));
    if (kind === "bound") tags.push(Leaderboard.h("span", { class: "tag bound", title: "an upper bound, never ranked" }, "bound"));
    if (kind === "baseline") tags.push(Leaderboard.h("span", { class: "tag", title: "what every ratio of its run is counted against" }, "baseline"));
    return tags;
  },

  quality: {
    kept: "keeps full depth’s quality: no distinguishable loss, and the interval excludes a larger one",
    unclear: "too few samples to say whether quality is kept",
    lost: "distinguishably worse than full depth",
    undefined: "random weights: scores mean nothing",
  },

  bars(layers, total) {
    const h = Leaderboard.h;
    const counts = Object.entries(layers);
    const all = counts.reduce(function (sum, entry) { return sum + entry[1]; }, 0);
    const most = Math.max(1, ...counts.map(function (entry) { return entry[1]; }));
    return h("table", { class: "bars" }, h("caption", {}, "Share of decoded tokens by the layer they left at (of " + total + ")"),
      h("tbody", {}, counts.map(function ([layer, count]) {
        const bar = h("span", { class: "bar" });
        bar.style.width = (100 * count / most).toFixed(1) + "%";
        return h("tr", {}, h("th", { scope: "row" }, layer), h("td", { class: "track" }, bar),
          h("td", { class: "number" }, (100 * count / all).toFixed(1) + " %"));
      })));
  },

  minus(text) { return text.replace(/-(?=\d)/g, "−"); },

  facts(pairs) {
    const h = Leaderboard.h;
    return h("dl", { class: "facts" }, pairs.map(function ([label, text]) {
      return h("div", {}, h("dt", {}, label), h("dd", {}, text));
    }));
  },

  number(cell) {
    if (!cell) return "–";
    const unit = cell[1].startsWith("[") ? "" : " " + cell[1];
    return Leaderboard.minus(cell[0]) + (/^ (ms|s)$/.test(unit) ? unit : "");
  },

  // A metric's number as its form says; times in ms.
  written(metric, value) {
    if (value === null) return "–";
    const fixed = function (number, digits) { return number.toFixed(digits); };
    const text = { count: fixed(value, 0), fraction: fixed(value, 3), percent: fixed(100 * value, 1) + " %", ratio: fixed(value, 2) + "×",
      difference: (value > 0 ? "+" : "") + fixed(value, 3), seconds: fixed(1000 * value, 0) }[metric.form] ?? value.toPrecision(3);
    return Leaderboard.minus(text);
  },

  // The unit that it is written in, and what to multiply by.
  scale(metric) {
    return { percent: ["%", 100], seconds: ["ms", 1000] }[metric.form] || [metric.unit, 1];
  },
};

// Text of others as harness.appearance.visible_text shows it: what hides, reorders or cannot be seen becomes its escape.
const HIDDEN = /[^\P{C}\n\t]|[^\P{Z} ]|[\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0]/gu;

function escapeOf(character) {
  const code = character.codePointAt(0), digits = code.toString(16);
  return character === "\r" ? "\\r" : code < 256 ? "\\x" + digits.padStart(2, "0") : code < 65536 ? "\\u" + digits.padStart(4, "0") : "\\U" + digits.padStart(8, "0");
}

function visible(value) {
  if (typeof value === "string") return value.replace(HIDDEN, escapeOf);
  if (Array.isArray(value)) return value.map(visible);
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(function ([name, inner]) { return [visible(name), visible(inner)]; }));
}

// All data of a page comes through here.
function leaderboardData(kind, value) { Leaderboard.data[kind === "point" ? "point " + value.id : kind] = visible(value); }
