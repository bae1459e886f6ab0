// The latest events, of one run or of all, as they come. What repeats itself takes one line, which opens.

import { get } from "../api.js";
import { clock, count, eventName, moment } from "../format.js";
import { useLoaded, useMessages, useNews } from "../loading.js";
import { Card, Empty, Loaded } from "../parts.js";
import { place } from "../routing.js";
import { html, useState } from "../view.js";

const KEPT = 200;
const SHOWN = 30;
// Runs and clients whose names are looked up; of others the identity is shown.
const NAMED = 200;

export function Events({ runId = "", title }) {
  const loaded = useLoaded((signal) => get("events", { run_id: runId, limit: KEPT, order: "newest" }, signal), runId);
  const names = useLoaded(namesOf, "");
  useNews((message) => ["run_submitted", "client_joined"].includes(message.event), names.reload);
  const [fresh, setFresh] = useState([]);
  useMessages((message) => {
    if (message.event === "connection" && message.state === "live") loaded.reload();
    const event = message.data;
    if (message.id && (!runId || event.run_id === runId)) setFresh((old) => [event, ...old].slice(0, KEPT));
  });
  return html`<${Card} title=${title} wide>
    <${Loaded} from=${loaded} what="events" lines=${5}>${(stored) => {
      const all = new Map([...stored, ...fresh].map((event) => [event.event_id, event]));
      const groups = folded([...all.values()].sort((a, b) => b.event_id - a.event_id)).slice(0, SHOWN);
      if (!groups.length) return html`<${Empty} title="Nothing has happened yet." />`;
      // Of the oldest events there may be more than were loaded.
      const isCut = (group) => group.at(-1).event_id === stored.at(-1)?.event_id && stored.length === KEPT;
      return html`<ol class="events">${groups.map((group) => html`<li key=${group.at(-1).event_id}><${Group} events=${group} isCut=${isCut(group)} isOfRun=${Boolean(runId)} names=${names.data ?? {}} /></li>`)}</ol>`;
    }}<//>
  <//>`;
}

/** Put events beside each other, newest first, that say the same of the same run or client. */
export function folded(events) {
  const groups = [];
  for (const event of events) {
    const before = groups.at(-1)?.[0];
    if (before && ["kind", "run_id", "client_id"].every((key) => before[key] === event[key])) groups.at(-1).push(event);
    else groups.push([event]);
  }
  return groups;
}

/** Return the names of the newest runs and of clients, by identity. Whatever cannot be had is shown without. */
async function namesOf(signal) {
  const [runs, clients] = await Promise.all([get("runs", { limit: NAMED }, signal), get("clients", { limit: NAMED }, signal)]);
  return Object.fromEntries([...runs.map((run) => [run.run_id, run.spec.name]), ...clients.map((client) => [client.client_id, client.name])]);
}

function Group({ events, isCut, isOfRun, names }) {
  const [newest, ...older] = events;
  if (!older.length) return html`<${Event} event=${newest} isOfRun=${isOfRun} names=${names} />`;
  return html`<${Event} event=${newest} isOfRun=${isOfRun} names=${names} />
    <details class="events-more"><summary>and ${count(older.length)}${isCut ? " or more" : ""} like it, since ${clock(older.at(-1).time)}${isCut ? " or before" : ""}</summary>
      <ol class="events">${older.map((event) => html`<li key=${event.event_id}><${Event} event=${event} isOfRun=${isOfRun} names=${names} /></li>`)}</ol></details>`;
}

function Event({ event, isOfRun, names }) {
  return html`<div class="event">
    <time class="quiet number" title=${moment(event.time)}>${clock(event.time)}</time>
    <span><strong>${eventName(event.kind)}</strong>${event.detail && ` · ${event.detail}`}
      ${!isOfRun && event.run_id && html` <${Named} href=${place(`runs/${event.run_id}`)} name=${names[event.run_id]} identity=${event.run_id} detail=${event.detail} />`}
      ${event.client_id && html` <${Named} href=${place(`clients/${event.client_id}`)} name=${names[event.client_id]} identity=${event.client_id} detail=${event.detail} />`}</span>
  </div>`;
}

/** A link by name and identity; the name is left out where the event's detail tells it already. */
function Named({ href, name, identity, detail }) {
  return html`<a href=${href}>${name && name !== detail && `${name} `}<code>${identity.slice(0, 12)}</code></a>`;
}
