// Parts that several pages are made of.

import { ago, capital, clock, count, moment, percent, seconds, words } from "./format.js";
import { useAway, useNow } from "./loading.js";
import { useTitle } from "./routing.js";
import { html, useEffect, useRef, useState } from "./view.js";

/** A state in a word with a mark of its own shape, so that colour is not all that tells. */
export function State({ state }) {
  return html`<span class="state" data-state=${state}><span class="state-mark" aria-hidden="true"></span>${capital(state)}</span>`;
}

/** How long ago something was, as time passes, and when on pointing at it. */
export function Ago({ time }) {
  const now = useNow(10);
  return html`<time title=${moment(time)}>${ago(time, now)}</time>`;
}

/** When a client was last seen. One that is here is seen now, as far as is known: while the coordinator is away, until it was lost. */
export function LastSeen({ client }) {
  const away = useAway(Infinity);
  if (client.is_connected && !away) return "now";
  return html`<${Ago} time=${client.is_connected ? away : client.last_seen_time} />`;
}

export function Loading({ what, lines = 3 }) {
  return html`<div class="skeleton" role="status" aria-label=${`Loading ${what}`}>
    ${Array.from({ length: lines }, (_, index) => html`<div class="skeleton-line" key=${index}></div>`)}
  </div>`;
}

export function Empty({ title, children }) {
  return html`<div class="empty"><p class="empty-title">${title}</p>${children && html`<div class="empty-text">${children}</div>`}</div>`;
}

/** A page in the place of one that is not there. */
export function NotFound({ title, children }) {
  useTitle("Not found");
  return html`<div class="empty"><h1 class="empty-title">${title}</h1><div class="empty-text">${children}</div></div>`;
}

export function Failure({ error, retry }) {
  return html`<div class="notice notice-bad" role="alert">
    <p>${error.message}</p>
    ${retry && !error.isUnknownPath && html`<button type="button" class="button" onClick=${retry}>Try again</button>`}
  </div>`;
}

/** What a loader has: its data shown by `children`, or that it loads, or what went wrong. Old data stays while a reload fails. */
export function Loaded({ from, what, lines, children }) {
  if (from.isLoading) return html`<${Loading} what=${what} lines=${lines} />`;
  return html`${from.error && html`<${Failure} error=${from.error} retry=${from.reload} />`}${from.data && children(from.data)}`;
}

/** A card with a heading. */
export function Card({ title, id, aside, children, wide = false }) {
  const heading = id ?? `card-${title.toLowerCase().replaceAll(/\W+/g, "-")}`;
  return html`<section class=${`card${wide ? " card-wide" : ""}`} aria-labelledby=${heading}>
    <div class="card-head"><h2 id=${heading}>${title}</h2>${aside}</div>
    ${children}
  </section>`;
}

/** Pages of a list: which part is shown, and the ones before and after. */
export function Pager({ offset, limit, total, onMove, what }) {
  if (total <= limit && offset === 0) return null;
  const last = Math.min(total, offset + limit);
  return html`<nav class="pager" aria-label=${`Pages of ${what}`}>
    <button type="button" class="button" disabled=${offset === 0} onClick=${() => onMove(Math.max(0, offset - limit))}>Previous</button>
    <span class="number">${total ? `${count(offset + 1)}–${count(last)} of ${count(total)}` : "None"}</span>
    <button type="button" class="button" disabled=${last >= total} onClick=${() => onMove(offset + limit)}>Next</button>
  </nav>`;
}

/**
 * A table that becomes a list of cards where it is narrow. `columns` are {title, cell(row), isNumber, isHead}.
 */
export function Table({ caption, columns, rows, keyOf, isDense = false }) {
  return html`<table class=${`table${isDense ? " table-dense" : ""}`}>
    <caption class="unseen">${caption}</caption>
    <thead><tr>${columns.map((column) => html`<th scope="col" class=${column.isNumber ? "number" : ""}>${column.title}</th>`)}</tr></thead>
    <tbody>${rows.map((row) => html`<tr key=${keyOf(row)}>${columns.map((column) => cellOf(column, row))}</tr>`)}</tbody>
  </table>`;
}

function cellOf(column, row) {
  const name = column.isNumber ? "number" : (column.name ?? "");
  if (column.isHead) return html`<th scope="row" class=${name}>${column.cell(row)}</th>`;
  return html`<td class=${name} data-title=${column.title}>${column.cell(row)}</td>`;
}

/** How far something is, as a bar with words. */
export function Progress({ done, of, label }) {
  const part = of ? Math.min(1, done / of) : 0;
  return html`<div class="progress" role="progressbar" aria-label=${label} aria-valuemin="0" aria-valuemax=${of} aria-valuenow=${done}>
    <div class="progress-bar" style=${{ width: `${100 * part}%` }}></div>
  </div>`;
}

/** Terms and their values, side by side. */
export function Facts({ facts }) {
  const known = facts.filter(([, value]) => value !== undefined && value !== null && value !== "");
  return html`<dl class="facts">${known.map(([term, value]) => html`<div key=${term}><dt>${term}</dt><dd>${value}</dd></div>`)}</dl>`;
}

/**
 * What a run waits for: "waiting for 3 of 10 updates, 41 s left", counted down here between the server's words; nobody knows what is left
 * of a wait while the coordinator is away, which may have been started again meanwhile.
 */
export function Waiting({ waiting, since }) {
  const now = useNow();
  const away = useAway(since);
  if (away) return html`<span class="waiting">The coordinator has not answered since <span class="number">${clock(away, now)}</span></span>`;
  const missing = Math.max(0, waiting.need - waiting.have);
  const left = waiting.seconds_left == null ? null : Math.max(0, waiting.seconds_left - Math.max(0, now - since));
  return html`<span class="waiting">Waiting for ${count(missing)} of ${count(waiting.need)} ${words(waiting.for)}${
    left === null ? "" : html`, <span class="number">${seconds(Math.round(left))}</span> left`
  }</span>`;
}

/**
 * A dialog over the page. It opens when it is first shown, and calls `onClose` when it is closed by whatever way; the focus goes back
 * to where it was.
 */
export function Dialog({ title, onClose, children }) {
  const dialog = useRef(null);
  useEffect(() => {
    const before = document.activeElement;
    dialog.current.showModal();
    return () => before?.isConnected && before.focus();
  }, []);
  return html`<dialog ref=${dialog} class="dialog" aria-labelledby="dialog-title" onClose=${onClose}>
    <h2 id="dialog-title">${title}</h2>
    ${children}
  </dialog>`;
}

/** Ask before something is done that matters. `act` does it; its failure is shown here, and then the dialog stays open. */
export function Confirmation({ title, action, isGrave = false, act, onClose, children }) {
  const [isBusy, setBusy] = useState(false);
  const [error, setError] = useState(null);
  const confirm = async (event) => {
    event.preventDefault();
    setBusy(true);
    try {
      await act();
      onClose();
    } catch (problem) {
      setError(problem);
      setBusy(false);
    }
  };
  return html`<${Dialog} title=${title} onClose=${onClose}>
    <form onSubmit=${confirm}>
      ${children}
      ${error && html`<${Failure} error=${error} />`}
      <div class="actions">
        <button type="button" class="button" onClick=${onClose} autofocus=${isGrave}>Cancel</button>
        <button type="submit" class=${`button ${isGrave ? "button-grave" : "button-main"}`} disabled=${isBusy}>${action}</button>
      </div>
    </form>
  <//>`;
}

/** Reasons with their counts, in words: "2 not finite, 1 too late". */
export const reasons = (refused) =>
  Object.entries(refused ?? {}).filter(([, many]) => many).map(([reason, many]) => `${count(many)} ${words(reason)}`).join(", ");

/** A part of a whole as text for people: "3 of 10 (30 %)". */
export const share = (part, whole) => (whole ? `${count(part)} of ${count(whole)} (${percent(part / whole)})` : count(part));

/** A field for a word to look for, told once typing has paused. */
export function Search({ label, value, onChange }) {
  const [text, setText] = useState(value);
  const told = useRef(value);
  useEffect(() => {
    // It was changed elsewhere, as by a button that shows everything.
    if (value !== told.current) setText((told.current = value));
  }, [value]);
  useEffect(() => {
    const timer = setTimeout(() => text !== told.current && onChange((told.current = text)), 300);
    return () => clearTimeout(timer);
  }, [text]);
  return html`<label class="field-inline"><span class="unseen">${label}</span>
    <input type="search" class="input" placeholder=${label} value=${text} onInput=${(event) => setText(event.target.value)} />
  </label>`;
}

export function Choice({ label, value, options, onChange, isShown = false }) {
  return html`<label class="field-inline"><span class=${isShown ? "field-word" : "unseen"}>${label}</span>
    <select class="input" value=${value} onChange=${(event) => onChange(event.target.value)}>
      ${options.map(([key, text]) => html`<option key=${key} value=${key} selected=${key === value}>${text}</option>`)}
    </select>
  </label>`;
}
