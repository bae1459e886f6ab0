// Places of the dashboard, in the address behind the "#": "#/runs/ID?round=3".

import { useEffect, useState } from "./view.js";

/** Return the address of a place. */
export function place(path, query = {}) {
  const known = Object.entries(query).filter(([, value]) => value !== "" && value != null);
  const text = new URLSearchParams(known).toString();
  return `#/${path}${text && `?${text}`}`;
}

export const go = (path, query) => (location.hash = place(path, query));

/** Change the query of the present place without a step in the history. */
export function amend(changes) {
  const here = current();
  history.replaceState(null, "", place(here.path, { ...here.query, ...changes }));
  dispatchEvent(new HashChangeEvent("hashchange"));
}

/** The present place: its path, the parts of it, and its query. */
export function current() {
  const [path, text = ""] = location.hash.replace(/^#\/?/, "").split("?");
  return { path, parts: path.split("/").filter(Boolean).map(decodeURIComponent), query: Object.fromEntries(new URLSearchParams(text)) };
}

/** Name the page in the window's title. */
export function useTitle(title) {
  useEffect(() => void (document.title = `${title} · Choral`), [title]);
}

export function usePlace() {
  const [here, setHere] = useState(current);
  useEffect(() => {
    const changed = () => setHere(current());
    addEventListener("hashchange", changed);
    return () => removeEventListener("hashchange", changed);
  }, []);
  return here;
}
