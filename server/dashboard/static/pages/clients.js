// The clients: who is here, what each does now, and what data it has.

import { getPage } from "../api.js";
import { capital, count, percent } from "../format.js";
import { useLoaded, useMessages, useNews } from "../loading.js";
import { Choice, Empty, LastSeen, Loaded, Pager, Progress, Search, State, Table } from "../parts.js";
import { amend, place, useTitle } from "../routing.js";
import { html, useState } from "../view.js";

const LIMIT = 50;
const STATES = [["", "All clients"], ["connected", "Connected"], ["busy", "Busy"], ["gone", "Gone"]];

/** What a client is: "busy", "connected" or "gone". */
export const stateOf = (client) => (client.is_connected ? (client.phase ? "busy" : "connected") : "gone");

const COLUMNS = [
  { title: "Client", isHead: true, cell: (row) => html`<a href=${place(`clients/${row.client_id}`)}>${row.name || row.client_id.slice(0, 12)}</a> <code class="quiet small">${row.client_id.slice(0, 12)}</code>` },
  { title: "State", cell: (row) => html`<${State} state=${stateOf(row)} />` },
  { title: "Doing", cell: (row) => html`<${Doing} client=${row} />` },
  { title: "Device", cell: (row) => row.device || "–" },
  { title: "Data", cell: (row) => row.data_kind || "–" },
  { title: "Examples", isNumber: true, cell: (row) => count(row.example_count) },
  { title: "Last seen", cell: (row) => html`<${LastSeen} client=${row} />` },
];

export function Doing({ client }) {
  if (!client.phase) return html`<span class="quiet">–</span>`;
  return html`<span class="doing"><span>${capital(client.phase)}</span>
    <${Progress} label=${`${client.phase} of ${client.name}`} done=${Math.round(100 * client.fraction)} of=${100} />
    <span class="number small">${percent(client.fraction)}</span></span>`;
}

export function ClientsPage({ query }) {
  useTitle("Clients");
  const offset = Number(query.offset) || 0;
  const filter = { state: query.state, search: query.search };
  const clients = useLoaded((signal) => getPage("clients", { ...filter, offset, limit: LIMIT }, signal), JSON.stringify([filter, offset]));
  const [live, setLive] = useState({});
  useMessages((message) => {
    if (message.event === "connection") setLive({});
    if (message.event === "status" && message.data.clients) setLive((old) => ({ ...old, ...message.data.clients }));
  });
  useNews((message) => message.event.startsWith("client_") || (filter.state && message.event === "status"), clients.reload);
  return html`
    <div class="page-head">
      <h1>Clients</h1>
      <div class="tools">
        <${Search} label="Search by name or identity" value=${query.search ?? ""} onChange=${(search) => amend({ search, offset: "" })} />
        <${Choice} label="State" value=${query.state ?? ""} options=${STATES} onChange=${(state) => amend({ state, offset: "" })} />
      </div>
    </div>
    <${Loaded} from=${clients} what="clients" lines=${8}>${({ items, total }) => items.length
      ? html`<p class="quiet list-note">${count(total)} ${query.state || query.search ? "fit the filters" : "have joined at least once"}.</p>
        <div class="card"><${Table} caption="Clients" columns=${COLUMNS} rows=${items.map((client) => ({ ...client, ...live[client.client_id] }))} keyOf=${(row) => row.client_id} /></div>
        <${Pager} what="clients" offset=${offset} limit=${LIMIT} total=${total} onMove=${(next) => amend({ offset: next || "" })} />`
      : html`<${NoClients} isFiltered=${query.state || query.search} />`}<//>
  `;
}

function NoClients({ isFiltered }) {
  if (isFiltered) return html`<${Empty} title="No client fits these filters."><button type="button" class="button" onClick=${() => amend({ search: "", state: "", offset: "" })}>Show all clients</button><//>`;
  return html`<${Empty} title="No client has joined yet."><p>On each site, with the port of this coordinator's <code>--listen</code>, 7070 unless it was given:</p><code>choral join ${location.hostname}:7070 --data …</code><//>`;
}
