// Draws tokens as reports.completions does: classes, marks of white space and tips are those of its style sheet.
// What became of drafts is marked beside them.

const MARKS = { " ": "s", "\t": "t", "\n": "n" };
const UNSEEN = /[\p{C}\p{Z}]/u;

/** Returns the layers that decided a token: those before its draft if full depth accepted that, 0 where none ran. */
export const decided = token => (token.accepted ? token.drafted_at : token.exit_layer);

/** Returns how a token came about, in words. */
function origin({ exit_layer: layer, drafted_at: drafted, accepted }, numLayers) {
  if (accepted == null) return `layer ${layer} of ${numLayers}`;
  const draft = drafted ? `drafted after layer ${drafted} of ${numLayers}` : "proposed by the draft source, no layer ran";
  if (accepted) return `${draft}; accepted by full depth`;
  const full = `full depth, layer ${layer} of ${numLayers}`;
  return drafted == null ? `${full}; nothing was drafted here` : `${full}; it replaces another token, ${draft}`;
}

/** Draws one token at the end of a line. `token` is {id, text, special, exit_layer, drafted_at, accepted}; nothing of it is
 *  read as markup. */
export function draw(line, token, place, { numLayers, cached }) {
  const element = document.createElement("span");
  element.className = "tok";
  element.tabIndex = -1;
  element.dataset.layer = decided(token);
  if (token.accepted) element.classList.add("accepted");
  if (token.accepted === false && token.drafted_at != null) element.classList.add("replaced");
  let tip = cached && place === 0 ? `layer ${token.exit_layer} of ${numLayers}` : origin(token, numLayers);
  if (cached && place === 0) {
    tip += ", from prefill: full depth, no strategy is asked";
    element.classList.add("prefill");
  }
  if (token.special) tip += "; a special token, it adds no text";
  element.dataset.tip = tip;
  if (!token.text) element.classList.add("empty");
  element.append(...(token.text ? shown(token.text) : [mark("x", "∅")]));
  line.append(element);
  return element;
}

/** Marks a token that is not what full depth has at its place; `there` is full depth's token, if it has one. */
export function differ(element, there) {
  element.classList.add("differs");
  element.dataset.tip += `; full depth: ${there ? spoken(there.text) : "nothing more"}`;
}

/** Draws how many tokens left, or were drafted, at each layer; `layers` are those that a strategy decided. */
export function profile(chart, layers) {
  const counts = new Map();
  for (const layer of layers) counts.set(String(layer), (counts.get(String(layer)) ?? 0) + 1);
  const most = Math.max(1, ...counts.values());
  for (const bar of chart.querySelectorAll("i")) {
    const count = counts.get(bar.dataset.layer) ?? 0;
    bar.style.height = `${2.2 * count / most}em`;
    bar.previousElementSibling.textContent = count || "";
  }
}

/** Lets arrow keys walk through the tokens of a line, and keeps tips inside the window. */
export function walk(line) {
  line.addEventListener("keydown", event => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const all = [...line.querySelectorAll(".tok")], at = all.indexOf(document.activeElement);
    all[Math.min(all.length - 1, Math.max(0, at + step))]?.focus();
    event.preventDefault();
  });
  const turn = event => {
    const token = event.target.closest(".tok");
    token?.classList.toggle("end", token.getBoundingClientRect().left > window.innerWidth / 2);
  };
  line.addEventListener("pointerover", turn);
  line.addEventListener("focusin", turn);
}

function shown(text) {
  const parts = [];
  let plain = "";
  const flush = () => { if (plain) parts.push(plain); plain = ""; };
  for (const character of text) {
    if (character in MARKS) {
      flush();
      parts.push(mark(MARKS[character], character === "\n" ? "" : character));
      if (character === "\n") plain = "\n";
    } else if (UNSEEN.test(character)) {
      flush();
      parts.push(mark("x", code(character)));
    } else plain += character;
  }
  flush();
  return parts;
}

function mark(name, text) {
  const element = document.createElement("span");
  element.className = name;
  element.textContent = text;
  return element;
}

const code = character => ({ "\n": "↵", "\t": "→", "\r": "␍" })[character]
  ?? `⟨U+${character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`;

function spoken(text) {
  const all = [...text].map(character => (character !== " " && UNSEEN.test(character) ? code(character) : character));
  return text ? `“${all.slice(0, 40).join("")}${all.length > 40 ? "…" : ""}”` : "a token without text";
}
