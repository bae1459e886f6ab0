// Who took part in a run, and with what.

import { get, getPage } from "../api.js";
import { bytes, count, seconds, words } from "../format.js";
import { useLoaded, useNews } from "../loading.js";
import { Card, Empty, Loaded, Pager, reasons, Search, share, Table } from "../parts.js";
import { place } from "../routing.js";
import { html, useState } from "../view.js";
import { isRoundOf } from "./run_charts.js";

const LIMIT = 10;

const COLUMNS = [
  { title: "Client", isHead: true, cell: (row) => html`<a href=${place(`clients/${row.client_id}`)} title=${row.client_id}>${row.name || row.client_id.slice(0, 12)}</a>` },
  { title: "Contributed", isNumber: true, cell: (row) => share(row.contributed, row.asked) },
  { title: "Refused", cell: (row) => reasons(row.refused) || html`<span class="quiet">none</span>` },
  { title: "Bytes accepted", isNumber: true, cell: (row) => bytes(row.bytes) },
  // A masked contribution does not tell it.
  { title: "Training", isNumber: true, cell: (row) => seconds(row.train_seconds || null) },
  { title: "Last round", isNumber: true, cell: (row) => count(row.last_round || null) },
];

export function Participation({ run }) {
  const [{ offset, search }, setQuery] = useState({ offset: 0, search: "" });
  const query = { offset, search, limit: LIMIT };
  const loaded = useLoaded((signal) => getPage(`runs/${run.run_id}/participation`, query, signal), JSON.stringify([run.run_id, query]));
  useNews(isRoundOf(run.run_id), loaded.reload);
  const field = html`<${Search} label="Search by name or identity" value=${search} onChange=${(text) => setQuery({ offset: 0, search: text })} />`;
  return html`<${Card} title="Participation" aside=${(search || loaded.data?.total > LIMIT) && field} wide>
    <${Loaded} from=${loaded} what="participation" lines=${5}>${({ items, total }) => items.length
      ? html`<${Table} caption="Participation of clients in this run" columns=${COLUMNS} rows=${items} keyOf=${(row) => row.client_id} />
        <${Pager} what="clients of this run" offset=${offset} limit=${LIMIT} total=${total} onMove=${(next) => setQuery({ offset: next, search })} />`
      : search
        ? html`<${Empty} title="No client of this run fits." />`
        : html`<${Empty} title="Nobody has taken part yet."><p>Clients are listed once a round has asked them.</p><//>`}<//>
  <//>`;
}

const REFUSALS = [
  COLUMNS[0],
  { title: "Reason", cell: (row) => words(row.reason) },
  { title: "Detail", cell: (row) => row.detail || "–" },
];

/** Whom the round refused in which a run stands still; nothing where it refused nobody. */
export function Refused({ run }) {
  const loaded = useLoaded((signal) => refusedIn(run, signal), `${run.run_id}/${run.round_number}`);
  const refusals = loaded.data ?? [];
  if (!refusals.length) return null;
  return html`<${Card} title=${`Refused in round ${count(run.round_number + 1)}`} wide>
    <div class="scroll" tabindex="0" role="region" aria-label="Refusals"><${Table} caption="Refusals of the round in which the run stands still" columns=${REFUSALS} rows=${refusals} keyOf=${(row) => row.client_id} isDense /></div>
  <//>`;
}

async function refusedIn(run, signal) {
  const path = `runs/${run.run_id}/rounds`;
  const [round] = await get(path, { after: run.round_number, limit: 1 }, signal);
  if (!round?.refusals.length) return [];
  // It has the clients' names.
  const rows = await get(`${path}/${round.number}/timeline`, {}, signal);
  const name = (row) => row.name || row.client_id;
  return rows.filter((row) => row.reason).sort((a, b) => name(a).localeCompare(name(b), "en", { numeric: true }));
}
