// The page: one run at a time, drawn as tokens come; early exit and full depth take turns at being the first.

import { connect, full as atFullDepth, isFull, named, request, short, wanted } from "./form.js";
import { final, likeness, live, time, waits } from "./figures.js";
import { Failure, complete } from "./stream.js";
import { decided, differ, draw, profile, walk } from "./tokens.js";

const byId = id => document.getElementById(id);
const facts = JSON.parse(byId("data").textContent);
const [run, stop, results] = ["run", "stop", "results"].map(byId);
const CLOCK_MS = 1000;
let state = facts.state, stopping = null, later = 0, turn = 0;

// ------------------------------------------------------------------------------------------------ the model's state

const NOTES = {
  loading: "The model is being loaded. This page notices when it is ready; nothing needs to be reloaded.",
  failed: "The model could not be loaded.",
  draining: "The server is shutting down and accepts no new requests.",
  unreachable: "The server cannot be reached. This page keeps trying.",
};

function setState(next, reason) {
  const note = byId("state-note");
  if (next !== state) byId("state-word").textContent = next;
  state = byId("state").dataset.state = note.dataset.state = next;
  note.hidden = next === "ready";
  note.textContent = [NOTES[next], next === "failed" ? reason : ""].filter(Boolean).join(" ");
  if (!stopping) run.disabled = next !== "ready";
  clearTimeout(later);
  if (next !== "ready") later = setTimeout(look, CLOCK_MS);
}

async function look() {
  try {
    const answer = await fetch("health", { cache: "no-store" });
    const said = await answer.json().catch(() => ({}));
    setState(answer.ok ? "ready" : said.status ?? "loading", said.error);
  } catch {
    setState("unreachable");
  }
}

// ------------------------------------------------------------------------------------------------------------ a run

/** One completion on the page. */
class Run {
  constructor(side, early, cold) {
    this.side = side;
    this.early = early;
    this.cold = cold;
    this.tokens = [];
    this.drawn = [];
    this.times = [];
    this.report = null;
    this.line = byId(`tokens-${side}`);
    this.line.replaceChildren();
    this.line.dataset.empty = "follows when the first is done";
    byId(`error-${side}`).hidden = byId(`wait-${side}`).hidden = true;
    profile(byId(`profile-${side}`), []);
    this.title(early);
    this.say("");
    for (const cell of document.querySelectorAll(`td[data-run="${side}"]`)) cell.textContent = "–";
  }

  async go(key, signal, each) {
    const panel = byId(`run-${this.side}`), began = performance.now();
    panel.dataset.state = "running";
    this.line.dataset.empty = "";
    this.say("waiting for the first token");
    try {
      for await (const event of complete(request(this.early, this.cold), key, signal)) {
        if (event.token && event.index > this.tokens.length) { // the last one may come again, with the ending
          this.times.push((performance.now() - began) / 1000);
          this.drawn.push(draw(this.line, event.token, this.tokens.length, facts));
          this.tokens.push(event.token);
          this.say(`${this.tokens.length} tokens`);
          const layers = this.tokens.map(decided);
          this.show(live(this.times, this.tokens, facts));
          this.wait({ ttft_s: this.times[0], total_s: this.times.at(-1) });
          profile(byId(`profile-${this.side}`), facts.cached ? layers.slice(1) : layers);
          each(this);
        }
        if (event.x_early_exit) this.finish(event.x_early_exit);
      }
    } catch (error) {
      this.say(`${signal.aborted ? "stopped after" : "failed after"} ${this.tokens.length} tokens`);
      if (signal.aborted) throw error;
      const box = byId(`error-${this.side}`);
      box.textContent = error.message;
      box.hidden = false;
      throw error;
    } finally {
      delete panel.dataset.state;
    }
  }

  finish(report) {
    this.report = report;
    this.show(final(report, facts));
    this.wait(report);
    const { strategy, options, decode, draft_max } = report;
    this.title({ strategy, ...plain({ ...options, ...(facts.lossless && { decode, draft_max }) }) });
    const ended = { eos: "the end token", stop: "a stop text", length: "the limit", deadline: "the time limit" }[report.ending] ?? report.ending;
    this.say(`${this.tokens.length} tokens, ended by ${ended}, ${time(report.total_s)}`);
  }

  title(given) {
    const setting = isFull(given) ? { strategy: given.strategy } : given; // it is full depth, however it is asked for
    byId(`name-${this.side}`).textContent = named(setting);
    const head = byId(`head-${this.side}`), { strategy, ...options } = setting;
    head.textContent = strategy;
    for (const [name, value] of Object.entries(options)) head.append(small(`${name}=${short(value)}`));
  }

  say(words) {
    byId(`progress-${this.side}`).textContent = words;
  }

  /** Draws what the wait so far went to. */
  wait(times) {
    const box = byId(`wait-${this.side}`);
    for (const [part, [share, words]] of Object.entries(waits(times))) {
      const [bar, said] = box.querySelectorAll(`[data-part="${part}"]`);
      bar.style.width = `${100 * share}%`;
      said.textContent = words;
      said.hidden = !words;
    }
    box.hidden = false;
  }

  show(rows) {
    for (const [name, value] of Object.entries(rows)) {
      const cell = document.querySelector(`td[data-run="${this.side}"][data-figure="${name}"]`);
      const [figure, under] = Array.isArray(value) ? value : [value, ""];
      cell.textContent = figure ?? "–";
      if (under) cell.append(small(under));
    }
  }
}

const small = text => Object.assign(document.createElement("small"), { textContent: text });

/** Options worth a line: not those that are empty. */
const plain = options => Object.fromEntries(Object.entries(options ?? {}).filter(([, value]) => value !== "" && value !== null));

async function start() {
  if (stopping || state !== "ready") return;
  if (!byId("form").reportValidity()) return;
  const early = wanted(), compare = byId("compare")?.checked && !isFull(early), lossless = early.decode === "lossless";
  const key = byId("key")?.value.trim() ?? "", spoken = speaker();
  stopping = new AbortController();
  const { signal } = stopping;
  results.hidden = false;
  byId("outcome").textContent = "";
  byId("verdict").hidden = true;
  byId("run-full").hidden = !compare;
  results.querySelector(".runs").classList.toggle("one", !compare);
  for (const cell of results.querySelectorAll("[data-full]")) cell.hidden = !compare;
  for (const part of results.querySelectorAll("[data-lossless]")) part.hidden = !lossless;
  busy(true);
  // Compared runs both read the whole prompt: the second would find that of the first.
  const own = new Run("early", early, compare), full = compare ? new Run("full", atFullDepth, true) : null;
  const order = full ? [own, full] : [own];
  if (full && turn % 2) order.reverse();
  byId("run-early").scrollIntoView({ block: "nearest" });
  let verdict = "";
  try {
    for (const one of order) {
      await one.go(key, signal, () => {
        if (one === own) spoken.add(own.tokens.at(-1).text);
        if (one === order[1]) mark(own, full, one.tokens.length - 1);
      });
    }
    spoken.end();
    if (full) {
      for (let place = full.tokens.length; place < own.tokens.length; place++) mark(own, full, place);
      verdict = judge(own, full);
      turn++;
    }
    byId("outcome").textContent = `Finished: ${own.tokens.length} tokens. ${verdict}`;
  } catch (error) {
    spoken.end();
    if (signal.aborted) byId("outcome").textContent = "Stopped.";
    else if (!(error instanceof Failure)) throw error;
    else if (error.status === 401) byId("key")?.focus();
    else if (error.status === 503 || error.status === 0) look();
  } finally {
    for (const one of order) if (!one.times.length) one.line.dataset.empty = "not run";
    stopping = null;
    busy(false);
  }
}

function judge(first, full) {
  const box = byId("verdict"), [same, words] = likeness(first.tokens, full.tokens);
  box.dataset.same = same;
  box.textContent = words;
  box.hidden = false;
  return words;
}

/** Underlines the early run's token where full depth has another. */
function mark(first, full, place) {
  const there = full.tokens[place];
  if (first.drawn[place] && first.tokens[place].id !== there?.id) differ(first.drawn[place], there);
}

/** Reads new text aloud in pieces a person can follow: not more often than the page's clock. */
function speaker() {
  const log = byId("spoken");
  let held = "";
  log.textContent = "";
  const flush = () => { if (held) log.append(Object.assign(document.createElement("span"), { textContent: held })); held = ""; };
  const timer = setInterval(flush, CLOCK_MS);
  return { add: text => { held += text; }, end: () => { clearInterval(timer); flush(); } };
}

function busy(is) {
  const had = document.activeElement;
  run.disabled = is || state !== "ready";
  stop.disabled = !is;
  if (is && (had === run || had === document.body)) stop.focus({ preventScroll: true });
  if (!is && (had === stop || had === document.body)) run.focus({ preventScroll: true });
}

// -------------------------------------------------------------------------------------------------- settings, copied

async function copy(event) {
  const button = event.currentTarget, text = byId(button.dataset.copy);
  let done = true;
  try {
    await navigator.clipboard.writeText(text.textContent);
  } catch { // no clipboard without https: leave the text selected
    getSelection().selectAllChildren(text);
    done = document.execCommand("copy");
  }
  button.textContent = byId("outcome").textContent = done ? "Copied" : "Selected: press Ctrl+C";
  setTimeout(() => { button.textContent = "Copy"; }, 2000);
}

// ------------------------------------------------------------------------------------------------------------- start

connect(() => { byId("sent").textContent = JSON.stringify(wanted()); });
byId("sent").textContent = JSON.stringify(wanted());
byId("form").addEventListener("submit", event => { event.preventDefault(); start(); });
stop.addEventListener("click", () => stopping?.abort());
document.addEventListener("keydown", event => {
  if (event.key === "Escape") stopping?.abort();
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) start();
});
for (const side of ["early", "full"]) walk(byId(`tokens-${side}`));
for (const button of document.querySelectorAll("[data-copy]")) button.addEventListener("click", copy);
setState(state, facts.failure);
