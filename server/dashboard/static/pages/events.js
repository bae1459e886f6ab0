// The latest events, of one run or of all, as they come.

import { get } from "../api.js";
import { ago, eventName, moment } from "../format.js";
import { useLoaded, useMessages } from "../loading.js";
import { Card, Empty, Loaded } from "../parts.js";
import { place } from "../routing.js";
import { html, useState } from "../view.js";

const SHOWN = 30;

export function Events({ runId = "", title }) {
  const loaded = useLoaded((signal) => get("events", { run_id: runId, limit: SHOWN, order: "newest" }, signal), runId);
  const [fresh, setFresh] = useState([]);
  useMessages((message) => {
    if (message.event === "connection" && message.state === "live") loaded.reload();
    const event = message.data;
    if (message.id && (!runId || event.run_id === runId)) setFresh((old) => [event, ...old].slice(0, SHOWN));
  });
  return html`<${Card} title=${title} wide>
    <${Loaded} from=${loaded} what="events" lines=${5}>${(stored) => {
      const all = new Map([...stored, ...fresh].map((event) => [event.event_id, event]));
      const shown = [...all.values()].sort((a, b) => b.event_id - a.event_id).slice(0, SHOWN);
      if (!shown.length) return html`<${Empty} title="Nothing has happened yet." />`;
      return html`<ol class="events">${shown.map((event) => html`<li key=${event.event_id}>
        <time class="quiet number" title=${moment(event.time)}>${ago(event.time)}</time>
        <span><strong>${eventName(event.kind)}</strong>${event.detail && ` · ${event.detail}`}
          ${!runId && event.run_id && html` <a href=${place(`runs/${event.run_id}`)}><code>${event.run_id}</code></a>`}
          ${event.client_id && html` <a href=${place(`clients/${event.client_id}`)}><code>${event.client_id.slice(0, 12)}</code></a>`}</span>
      </li>`)}</ol>`;
    }}<//>
  <//>`;
}
