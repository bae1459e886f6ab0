// Hooks: what is loaded once, what is loaded again as news comes, and what ticks.

import { connection, listen, lostTime } from "./stream.js";
import { useCallback, useEffect, useRef, useState } from "./view.js";

/**
 * Load something whenever `key` changes. Returns {data, error, isLoading, reload}; a reload keeps the old data until the new is there.
 * `load` gets an AbortSignal.
 */
export function useLoaded(load, key) {
  const [state, setState] = useState({ key });
  const loader = useRef(load);
  loader.current = load;
  const running = useRef(null);
  const reload = useCallback(async () => {
    running.current?.abort();
    const stop = (running.current = new AbortController());
    try {
      const data = await loader.current(stop.signal);
      if (!stop.signal.aborted) setState({ key, data });
    } catch (error) {
      if (!stop.signal.aborted) setState((old) => ({ key, data: old.key === key ? old.data : undefined, error }));
    }
  }, [key]);
  useEffect(() => {
    reload();
    return () => running.current?.abort();
  }, [key]);
  const mine = state.key === key ? state : {};
  return { data: mine.data, error: mine.error, isLoading: !mine.data && !mine.error, reload };
}

/**
 * Call `act` when a message comes that `concerns` it: at once, but no sooner than `gap` milliseconds after it was last done with, so that
 * a slow answer is not given up for a newer one for ever. News take up to 0.6 s to come here, and are to be seen within a second.
 */
export function useNews(concerns, act, gap = 300) {
  const latest = useRef(null);
  latest.current = { concerns, act, gap };
  useEffect(() => {
    let done = 0;
    let timer = 0;
    let isBusy = false;
    let isDue = false;
    const run = async () => {
      timer = 0;
      [isBusy, isDue] = [true, false];
      await latest.current.act();
      [isBusy, done] = [false, performance.now()];
      if (isDue) wait();
    };
    const wait = () => {
      isDue = true;
      if (!isBusy && !timer) timer = setTimeout(run, Math.max(0, done + latest.current.gap - performance.now()));
    };
    const end = listen((message) => {
      const isBack = message.event === "connection" && message.state === "live";
      if (isBack || latest.current.concerns(message)) wait();
    });
    return () => {
      end();
      clearTimeout(timer);
      // Nothing is due any more to what still runs.
      timer = -1;
    };
  }, []);
}

/** Call `hear` with every message. */
export function useMessages(hear) {
  const latest = useRef(hear);
  latest.current = hear;
  useEffect(() => listen((message) => latest.current(message)), []);
}

/** What the stream says of runs between two events: {run_id: {state, round_number, status, waiting, since}}. */
export function useLiveStatus() {
  const [live, setLive] = useState({});
  useMessages((message) => {
    if (message.event !== "status" || !message.data.runs) return;
    const since = Date.now() / 1000;
    const news = Object.entries(message.data.runs).map(([runId, run]) => [runId, { ...run, since }]);
    setLive((old) => ({ ...old, ...Object.fromEntries(news) }));
  });
  return live;
}

/** Return a run as it was loaded, with what the stream has said of it since. */
export const latest = (stored, live) => (live?.since > stored.since ? { ...stored, ...live } : stored);

/**
 * Return since when nothing is heard that goes beyond what was heard at `since`, in seconds since the epoch; 0 while the connection holds.
 * A coordinator that is back has first to say how things stand.
 */
export function useAway(since) {
  const [, setState] = useState(connection());
  useMessages((message) => message.event === "connection" && setState(message.state));
  return connection() === "reconnecting" || since < lostTime() ? lostTime() : 0;
}

/** Return the present time in seconds since the epoch, anew every `seconds`. */
export function useNow(seconds = 1) {
  const [now, setNow] = useState(Date.now() / 1000);
  useEffect(() => {
    const timer = setInterval(() => setNow(Date.now() / 1000), 1000 * seconds);
    return () => clearInterval(timer);
  }, [seconds]);
  return now;
}

/** Return `value` once it has not changed for some milliseconds. */
export function useSettled(value, milliseconds = 300) {
  const [settled, setSettled] = useState(value);
  useEffect(() => {
    const timer = setTimeout(() => setSettled(value), milliseconds);
    return () => clearTimeout(timer);
  }, [value]);
  return settled;
}
