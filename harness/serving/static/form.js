// The form: sliders and fields that agree, and what they ask for.

const byId = id => document.getElementById(id);
const current = () => document.querySelector(".options:not([hidden])");

/** Connects everything; `changed` is called whenever what would be sent has changed. */
export function connect(changed) {
  for (const control of document.querySelectorAll("[data-kind]")) pair(control);
  byId("strategy").addEventListener("change", choose);
  byId("decode")?.addEventListener("change", choose);
  byId("form").addEventListener("input", () => changed());
  byId("form").addEventListener("change", () => changed());
  choose(); // a reloaded page keeps what was chosen
}

/** Returns the name of the strategy and the early_exit object of the form. */
export function wanted() {
  const chosen = current(), early = { strategy: chosen.dataset.strategy };
  for (const control of chosen.querySelectorAll("[data-option]")) {
    const field = control.querySelector("[data-value]");
    early[control.dataset.option] = field.type === "checkbox" ? field.checked : Number(exactly(field));
  }
  if (byId("decode")) early.decode = byId("decode").value;
  if (early.decode === "lossless") {
    if (byId("draft").value) early.draft = byId("draft").value;
    early.draft_max = Number(byId("draft-max").value);
  }
  return early;
}

/** The setting that never drafts and never exits, nor do its prompts. */
export const { full } = JSON.parse(byId("data").textContent);

/** Whether a setting is that one. */
export const isFull = ({ strategy, decode, draft }) => strategy === full.strategy && decode === full.decode && !draft;

/** A long default is shown short; left as it is, it is sent as it is. */
const exactly = field => (field.value === field.defaultValue && field.dataset.exact) || field.value;

/** Returns the body of a request; a cold one shares nothing of its prompt with another. */
export function request(early, cold) {
  const parameters = { max_new_tokens: Number(byId("tokens").value), details: true, early_exit: early };
  return { inputs: byId("prompt").value, parameters: cold ? { ...parameters, cache_prompt: false } : parameters };
}

/** Says a setting in one line, as on the command line. */
export const named = ({ strategy, ...options }) => [strategy, ...Object.entries(options).map(([name, value]) => `${name}=${short(value)}`)].join(":");

/** Returns a value as people read it. */
export const short = value => (typeof value === "number" ? String(Number(value.toPrecision(4))) : value);

function choose() {
  const place = Number(byId("strategy").value), all = [...document.querySelectorAll(".options")];
  for (const [number, options] of all.entries()) options.hidden = options.disabled = number !== place;
  const drafts = byId("drafts"), compare = byId("compare");
  if (drafts) drafts.hidden = drafts.disabled = byId("decode").value !== "lossless";
  if (compare) compare.disabled = isFull(wanted());
}

/** Keeps a slider and the field beside it on the same value; the field is what counts. */
function pair(control) {
  const slide = control.querySelector("[data-slide]"), field = control.querySelector("[data-value]");
  if (!slide || !field) return;
  if (field.tagName === "SELECT") {
    slide.addEventListener("input", () => { field.selectedIndex = slide.value; slide.ariaValueText = field.value; });
    field.addEventListener("input", () => { slide.value = field.selectedIndex; slide.ariaValueText = field.value; });
    slide.value = field.selectedIndex;
  } else {
    slide.addEventListener("input", () => { field.value = slide.value; });
    field.addEventListener("input", () => { if (field.validity.valid) slide.value = field.value; });
    slide.value = field.value;
  }
}
