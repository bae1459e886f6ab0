// Calls of the REST API. Every failure is a Problem with the sentence that the command line would print.

import { read as parse, write } from "./exact.js";

const ROOT = new URL("api/v1/", document.baseURI);
const TOKEN = "choral.token";
// What is said of a run or a client that is not there; any other 404 is of a path.
const NOT_FOUND = "urn:choral:problem:notfound";

/** An answer that is not a success, or none at all (status 0). */
export class Problem extends Error {
  constructor(status, detail, { errors = [], isUnknownPath = false } = {}) {
    super(detail);
    this.status = status;
    this.errors = errors;
    this.isUnknownPath = isUnknownPath;
  }
}

/** The bearer token of this tab; empty for none. */
export const token = () => sessionStorage.getItem(TOKEN) ?? "";

export function setToken(value) {
  if (value) sessionStorage.setItem(TOKEN, value);
  else sessionStorage.removeItem(TOKEN);
}

/** Return the response to a request; throw a Problem when it is not a success. */
export async function call(method, path, { query = {}, body, signal, headers = {} } = {}) {
  const url = new URL(path, ROOT);
  for (const [name, value] of Object.entries(query)) {
    for (const one of [value].flat()) if (one !== "" && one != null) url.searchParams.append(name, one);
  }
  const all = { Accept: "application/json", ...headers };
  if (token()) all.Authorization = `Bearer ${token()}`;
  if (body !== undefined) all["Content-Type"] = "application/json";
  const response = await answered(fetch(url, { method, headers: all, body: body && write(body), signal, cache: "no-store" }));
  if (!response.ok) throw await problemOf(response);
  return response;
}

/** Wait for an answer, or for the rest of it: a connection may break in the middle. */
async function answered(promise) {
  try {
    return await promise;
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, "The coordinator does not answer. It may be starting again, or the connection is down.");
  }
}

const read = async (response) => parse(await answered(response.text()));

export const get = async (path, query, signal) => read(await call("GET", path, { query, signal }));
export const post = async (path, body) => read(await call("POST", path, { body }));

/** Return one page of a list, and how many there are in all. */
export async function getPage(path, query, signal) {
  const response = await call("GET", path, { query, signal });
  const items = await read(response);
  return { items, total: Number(response.headers.get("X-Total-Count") ?? items.length) };
}

/** Let the browser save what a path answers, with the name that the server gave it. */
export async function download(path, fallback) {
  const response = await call("GET", path);
  const name = /filename="?([^";]+)"?/.exec(response.headers.get("Content-Disposition") ?? "")?.[1] ?? fallback;
  const link = document.createElement("a");
  link.href = URL.createObjectURL(await answered(response.blob()));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

async function problemOf(response) {
  const known = await response.json().catch(() => ({}));
  if (response.status === 404 && known.type !== NOT_FOUND) {
    const path = new URL(response.url).pathname;
    return new Problem(404, `This coordinator does not tell it: it knows no ${path}. It may be of another release than this page.`, { isUnknownPath: true });
  }
  const detail = typeof known.detail === "string" ? known.detail : `The coordinator answered ${response.status}.`;
  return new Problem(response.status, detail, { errors: Array.isArray(known.errors) ? known.errors : [] });
}
