// Asks the server for a completion and reads it piece by piece (server-sent events over fetch, since a prompt is posted).

const WORDS = {
  400: "The server cannot do this",
  401: "The server requires its key; type it above and run again",
  403: "The server refuses this page",
  413: "The prompt is too large for this server",
  424: "The model failed on this request; the next one may work",
  429: "The server is busy",
  503: "The server takes no requests now",
};

export class Failure extends Error {
  constructor(words, status) {
    super(words);
    this.status = status;
  }
}

/** Yields every event of a completion; throws a Failure in words a person can act on, or an AbortError when stopped. */
export async function* complete(body, key, signal) {
  const headers = { "Content-Type": "application/json", Accept: "text/event-stream" };
  if (key) headers.Authorization = `Bearer ${key}`;
  let response;
  try {
    response = await fetch("generate_stream", { method: "POST", headers, body: JSON.stringify(body), signal, cache: "no-store" });
  } catch (error) {
    if (signal.aborted) throw error;
    if (!navigator.onLine || error instanceof TypeError) throw new Failure("The server cannot be reached. Is it still running?", 0);
    throw error;
  }
  const { status } = response;
  if (!response.ok) throw new Failure(`${WORDS[status] ?? "The server failed"} (${status}): ${await said(response)}`, status);
  let ended = false;
  try {
    for await (const text of messages(response.body)) {
      if (text === "[DONE]") continue;
      const event = JSON.parse(text);
      if (event.error != null) throw new Failure(`It failed half-way: ${worded(event.error)}`, 424);
      ended ||= typeof event.generated_text === "string";
      yield event;
    }
  } catch (error) {
    if (error instanceof Failure || signal.aborted) throw error;
    throw new Failure(`The answer broke off: ${error.message}.`, 0);
  }
  if (!ended) throw new Failure("The answer broke off: the server ended it without saying why.", 0);
}

/** Yields the data of every event of a stream, however it is cut into pieces. */
async function* messages(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    held += value ?? "";
    const parts = held.replace(/\r\n/g, "\n").split("\n\n");
    held = done ? "" : parts.pop();
    for (const part of parts) {
      const data = part.split("\n").filter(line => line.startsWith("data:")).map(line => line.slice(5).replace(/^ /, ""));
      if (data.length) yield data.join("\n");
    }
    if (done) return;
  }
}

async function said(response) {
  const text = await response.text();
  try {
    const read = JSON.parse(text);
    return worded(read.error ?? read.detail ?? text);
  } catch {
    return text.slice(0, 300) || response.statusText;
  }
}

const worded = error => (typeof error === "string" ? error : error.message ?? JSON.stringify(error)).slice(0, 600);
