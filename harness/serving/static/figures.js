// Figures of a request: what this browser sees while tokens come, and what the server says at the end.

/** Returns the rows that can be known before the end. Times are seconds since the request was sent. */
export function live(times, tokens, { cached, numLayers }) {
  const n = times.length, last = times[n - 1], lossless = tokens.some(token => token.accepted != null);
  return {
    ...depth(tokens.map(token => token.exit_layer), cached, numLayers, lossless),
    rate: n ? rate(n / last) : null,
    ttft: n ? time(times[0]) : null,
    tpot: n > 1 ? time((last - times[0]) / (n - 1)) : null,
  };
}

/** Returns all rows from `x_early_exit`; null is shown as –. */
export function final(report, { cached, measured }) {
  const n = report.exit_layers.length;
  return {
    ...depth(report.exit_layers, cached, report.num_layers, report.drafts != null),
    ...drafted(report.drafts),
    rate: n && report.total_s > 0 ? rate(n / report.total_s) : null,
    ttft: time(report.ttft_s),
    tpot: n > 1 ? time((report.total_s - report.ttft_s) / (n - 1)) : null,
    total: [time(report.total_s), report.queue_s >= 0.001 ? `${time(report.queue_s)} in the queue` : ""],
    checks: report.exit_checks,
    heads: report.lm_head_evaluations,
    energy: energy(report, measured),
  };
}

/** The first token of a cached completion comes from prefill, where nothing can be skipped: it is left out. */
function depth(layers, cached, numLayers, lossless) {
  if (lossless) return { skipped: [null, "lossless: none"], depth: [numLayers, `of ${numLayers}`] };
  const decided = cached ? layers.slice(1) : layers, all = decided.length * numLayers;
  const ran = decided.reduce((sum, layer) => sum + layer, 0);
  return {
    skipped: all ? [`${(100 * (all - ran) / all).toFixed(1)} %`, `${all - ran} of ${all}`] : null,
    depth: all ? [(ran / decided.length).toFixed(1), `of ${numLayers}`] : null,
  };
}

/** What drafts brought; nothing of lossy decoding. */
function drafted(drafts) {
  if (!drafts) return {};
  const { tokens_per_verification: each, acceptance } = drafts;
  return {
    each: each == null ? null : [each.toFixed(2), `${drafts.verifications} verifications`],
    acceptance: acceptance == null ? [null, "nothing drafted"]
      : [`${(100 * acceptance).toFixed(0)} %`, `${drafts.accepted_tokens} of ${drafts.drafted_tokens}`],
    discarded: drafts.layers_discarded,
  };
}

/** Returns joules and where they come from; never a bare number, and no number where there is none. */
export function energy({ energy_j: joules, energy_source: source }, measured) {
  if (source === "none") return [null, "no sensor"];
  if (joules == null) return [null, `${source}: no number`];
  const number = joules >= 100 ? joules.toFixed(0) : joules >= 0.01 ? joules.toPrecision(3) : `${(1000 * joules).toPrecision(3)} m`;
  const value = number.endsWith("m") ? `${number}J` : `${number} J`;
  return measured ? [value, `measured (${source.toUpperCase()})`] : [`~${value}`, `not measured: ${source}`];
}

export const rate = value => value.toFixed(value >= 100 ? 0 : 1);

export function time(seconds) {
  if (seconds == null) return null;
  if (seconds >= 1) return `${seconds.toFixed(2)} s`;
  return seconds >= 0.1 ? `${(1000 * seconds).toFixed(0)} ms` : `${(1000 * seconds).toFixed(1)} ms`;
}

/** Returns what a user waits for: for each part its share of the wait, and words; an empty share is not worth any. */
export function waits({ queue_s: queue = 0, ttft_s: first, total_s: total, prompt_tokens: read, prompt_tokens_reused: reused, prompt_tokens_shallow: shallow }) {
  const tokens = read == null ? "" : ` (${reused || "none"} of ${read} tokens reused${shallow ? `, ${shallow} shallow` : ""})`;
  const parts = { queue: [queue, "queue", ""], prompt: [first - queue, "prompt", tokens], decoding: [total - first, "decoding", ""] };
  return Object.fromEntries(Object.entries(parts).map(([part, [seconds, name, more]]) =>
    [part, [total > 0 ? seconds / total : 0, seconds >= 0.001 || part !== "queue" ? `${name} ${time(seconds)}${more}` : ""]]));
}

/** Says how two completions relate: whether they are the same, and a sentence. */
export function likeness(early, full) {
  const longest = Math.max(early.length, full.length);
  const kept = early.filter((token, place) => token.id === full[place]?.id).length;
  if (kept === longest) return [true, "Same text as full depth, token for token."];
  const first = early.findIndex((token, place) => token.id !== full[place]?.id);
  const from = first < 0 ? early.length : first;
  return [false, `Differs from full depth from token ${from + 1} on; keeps ${kept} of its ${full.length} tokens in place.`];
}
