// The event stream, read with fetch() because an EventSource cannot send a token. One for the whole page, which comes back by itself.

import { call } from "./api.js";

const FIRST_DELAY = 500;
const LONGEST_DELAY = 5_000;
// The server says something every 15 seconds.
const SILENCE = 40_000;

const listeners = new Set();
let lastId = "";
let state = "connecting";
let lost = 0;
let running = null;

/** Call `listener` with each message ({event, id, data}) and each change of the connection ({event: "connection", state}). */
export function listen(listener) {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

/** "connecting", "live" or "reconnecting". */
export const connection = () => state;

/** When the connection was lost for the last time, in seconds since the epoch; 0 if it never was. */
export const lostTime = () => lost;

/** Begin to follow, if it is not done already. */
export function follow() {
  running ??= new AbortController();
  if (!running.begun) {
    running.begun = true;
    keepReading(running.signal);
  }
}

/** End for good, as on signing out. */
export function unfollow() {
  running?.abort();
  running = null;
  lastId = "";
  state = "connecting";
}

async function keepReading(stop) {
  let delay = FIRST_DELAY;
  while (!stop.aborted) {
    try {
      await readOnce(stop, () => (delay = FIRST_DELAY));
    } catch (problem) {
      if (stop.aborted) return;
      if (problem.status === 401 || problem.status === 403) tell({ event: "refused", problem });
    }
    if (stop.aborted) return;
    change("reconnecting");
    await pause(delay, stop);
    delay = Math.min(2 * delay, LONGEST_DELAY);
  }
}

async function readOnce(stop, connected) {
  const silence = new AbortController();
  let timer = setTimeout(() => silence.abort(), SILENCE);
  try {
    const headers = { Accept: "text/event-stream", ...(lastId && { "Last-Event-ID": lastId }) };
    const response = await call("GET", "events/stream", { headers, signal: AbortSignal.any([stop, silence.signal]) });
    connected();
    change("live");
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    const feed = parser();
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
      clearTimeout(timer);
      timer = setTimeout(() => silence.abort(), SILENCE);
      feed(part.value);
    }
  } finally {
    clearTimeout(timer);
  }
}

/** Return a function that takes text as it comes and tells each whole message. */
function parser() {
  let rest = "";
  let message = { event: "message", data: [] };
  return (text) => {
    // A carriage return at the end may be half of a line's end: it waits for what follows.
    const lines = (rest + text).split(/\r\n|\n|\r(?!$)/);
    rest = lines.pop();
    for (const line of lines) {
      if (line === "") {
        if (message.id) lastId = message.id;
        if (message.data.length) tell({ ...message, data: JSON.parse(message.data.join("\n")) });
        message = { event: "message", data: [] };
        continue;
      }
      const [, field, value] = /^([^:]*):? ?(.*)$/.exec(line);
      if (field === "data") message.data.push(value);
      else if (field === "event" || field === "id") message[field] = value;
    }
  };
}

function tell(message) {
  for (const listener of [...listeners]) listener(message);
}

function change(next) {
  if (next === state) return;
  state = next;
  if (state === "reconnecting") lost = Date.now() / 1000;
  tell({ event: "connection", state });
}

function pause(milliseconds, stop) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, milliseconds);
    addEventListener("online", resolve, { once: true });
    stop.addEventListener("abort", () => (clearTimeout(timer), resolve()), { once: true });
  });
}
