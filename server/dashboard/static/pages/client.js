// One client: what it is and does, and how its latest contributions fared.

import { get } from "../api.js";
import { bytes, count, moment, seconds, words } from "../format.js";
import { useLoaded, useMessages, useNews } from "../loading.js";
import { Card, Empty, Facts, LastSeen, Loaded, NotFound, State, Table } from "../parts.js";
import { place, useTitle } from "../routing.js";
import { html, useState } from "../view.js";
import { Doing, stateOf } from "./clients.js";

const RUN = { title: "Run", isHead: true, cell: (row) => html`<a href=${place(`runs/${row.run_id}`, { round: row.round_number })}><code>${row.run_id}</code></a>` };
const ROUND = { title: "Round", isNumber: true, cell: (row) => count(row.round_number) };

const CONTRIBUTIONS = [
  RUN,
  ROUND,
  { title: "Examples", isNumber: true, cell: (row) => count(row.example_count) },
  { title: "Sent", isNumber: true, cell: (row) => bytes(row.byte_count) },
  { title: "Training", isNumber: true, cell: (row) => seconds(row.train_seconds || null) },
];

// What the client did not do.
const KINDS = { train: "Training", evaluate: "Evaluation" };
const REFUSALS = [RUN, ROUND, { title: "Task", cell: (row) => KINDS[row.kind] ?? KINDS.train }, { title: "Reason", cell: (row) => words(row.reason) }, { title: "Detail", cell: (row) => row.detail }];

export function ClientPage({ clientId }) {
  const loaded = useLoaded((signal) => get(`clients/${clientId}`, {}, signal), clientId);
  const [live, setLive] = useState({});
  useNews((message) => message.event !== "status" && (message.data?.client_id === clientId || message.event === "round_committed"), loaded.reload);
  useMessages((message) => {
    const news = message.event === "status" && message.data.clients?.[clientId];
    if (news) setLive(news);
  });
  useTitle(loaded.data?.name || "Client");
  if (loaded.error?.status === 404) return html`<${NotFound} title="There is no such client."><p>${loaded.error.message}</p><a href="#/clients">To the clients</a><//>`;
  return html`
    <nav class="trail" aria-label="Where this is"><a href="#/clients">Clients</a> / <span aria-current="page">${loaded.data?.name || clientId}</span></nav>
    <${Loaded} from=${loaded} what="the client" lines=${8}>${(stored) => html`<${Client} client=${{ ...stored, ...live }} />`}<//>
  `;
}

function Client({ client }) {
  return html`
    <div class="page-head"><div><h1>${client.name || "Client"} <${State} state=${stateOf(client)} /></h1><p class="quiet small"><code class="hash">${client.client_id}</code></p></div></div>
    <div class="cards">
      <${Card} title="About"><${Facts} facts=${[
        ["Doing", html`<${Doing} client=${client} />`],
        ["Device", client.device],
        ["Data", client.data_kind],
        ["Examples", `${count(client.example_count)} to train on, ${count(client.held_out_count)} held out`],
        ["Release", client.release],
        ["First seen", moment(client.first_seen_time)],
        ["Last seen", html`<${LastSeen} client=${client} />${!client.is_connected && ` (${moment(client.last_seen_time)})`}`],
      ]} /><//>
      <${Card} title="Learners it allows">${client.learners.length ? html`<ul class="chips">${client.learners.map((name) => html`<li key=${name}>${name}</li>`)}</ul>` : html`<${Empty} title="None are known." />`}<//>
      <${List} title="Latest contributions" columns=${CONTRIBUTIONS} rows=${client.contributions} none=${client.runs.some((run) => run.contributed) ? "It has contributed to none of the last rounds that asked it." : "It has contributed nothing yet."} />
      <${List} title="Refused or failed" columns=${REFUSALS} rows=${client.refusals} none="Nothing of it was refused or failed in the last rounds that asked it." />
    </div>
  `;
}

function List({ title, columns, rows = [], none }) {
  return html`<${Card} title=${title} wide>${rows.length
    ? html`<${Table} caption=${title} columns=${columns} rows=${rows} keyOf=${(row) => `${row.run_id}/${row.round_number}/${row.kind ?? ""}/${row.detail ?? ""}`} isDense />`
    : html`<${Empty} title=${none} />`}<//>`;
}
