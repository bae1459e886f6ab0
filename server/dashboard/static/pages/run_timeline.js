// A round, client by client: when each downloaded, trained and uploaded, was refused or fell out.

import { get } from "../api.js";
import { capital, count, seconds, words } from "../format.js";
import { useLoaded, useMessages, useNews, useNow } from "../loading.js";
import { Card, Choice, Empty, Loaded, Pager } from "../parts.js";
import { amend, place } from "../routing.js";
import { html, useEffect, useMemo, useState } from "../view.js";

const LIMIT = 20;
const PARTS = [["download", "asked", "downloaded"], ["train", "downloaded", "trained"], ["upload", "trained", "uploaded"]];
const OUTCOMES = { accepted: "Accepted", refused: "Refused", lost: "Fell out", pending: "Under way" };
const ORDERS = [["slowest", "Slowest first"], ["trouble", "Trouble first"], ["name", "By name"]];

export function Timeline({ run, picked }) {
  // Of a round in progress there is something to tell once its clients are selected.
  const open = /^round \d+: (?!select)/.test(run.status) ? run.round_number + 1 : run.round_number;
  const number = Math.min(Math.max(1, Number(picked) || open), Math.max(1, open));
  const isLatest = number === open;
  const move = (to) => amend({ round: to >= open ? "" : to });
  const pick = html`<div class="pager">
    <button type="button" class="button" disabled=${number <= 1} onClick=${() => move(number - 1)} aria-label="Round before">←</button>
    <label class="round-pick">Round <input class="input number" type="number" min="1" max=${open} value=${number} onChange=${(event) => event.target.value && move(Number(event.target.value))} aria-label="Round" /></label>
    <button type="button" class="button" disabled=${isLatest} onClick=${() => move(number + 1)} aria-label="Round after">→</button>
    <button type="button" class="button" disabled=${isLatest} onClick=${() => move(open)}>Latest</button>
  </div>`;
  return html`<${Card} title="Round, client by client" aside=${open > 0 && pick} wide>
    ${open > 0
      ? html`<${Round} key=${isLatest ? "latest" : number} run=${run} number=${number} isOpen=${number > run.round_number} />`
      : html`<${Empty} title="No round has begun."><p>Each client's download, training and upload appear here.</p><//>`}
  <//>`;
}

function Round({ run, number, isOpen }) {
  const [order, setOrder] = useState("slowest");
  const [offset, setOffset] = useState(0);
  const path = `runs/${run.run_id}/rounds/${number}/timeline`;
  const loaded = useLoaded((signal) => get(path, {}, signal), run.run_id);
  const concerns = (message) =>
    message.event === "status" ? isOpen && Boolean(message.data.clients || message.data.runs?.[run.run_id]) : message.data?.run_id === run.run_id;
  useNews(concerns, loaded.reload, 1000);
  useEffect(() => void loaded.reload(), [number, isOpen]);
  const progress = useProgress(isOpen);
  const now = useNow(isOpen ? 1 : 3600);
  const rows = useMemo(() => sorted(loaded.data ?? [], order), [loaded.data, order]);
  return html`<${Loaded} from=${loaded} what="the round" lines=${6}>${() => {
    if (!rows.length) return html`<${Empty} title="No client has been asked yet." />`;
    const known = Math.max(...rows.flatMap((row) => [row.asked, row.downloaded, row.trained, row.uploaded, row.ended]).filter((one) => one != null), 0.001);
    const first = Math.min(...rows.map((row) => row.asked).filter((one) => one != null), known);
    // Who is waited for is waited for until now.
    const last = isOpen && rows.some((row) => row.outcome === "pending" && row.asked != null) ? Math.max(known, now) : known;
    return html`
      <div class="timeline-head">
        <p>${summary(rows)}</p>
        <${Choice} label="Order of clients" value=${order} options=${ORDERS} onChange=${setOrder} />
      </div>
      <ul class="legend">${PARTS.map(([part]) => html`<li key=${part}><span class="swatch" data-part=${part} aria-hidden="true"></span>${capital(part)}</li>`)}
        <li><span class="swatch" data-part="wait" aria-hidden="true"></span>Until refused, lost or closed</li></ul>
      <table class="timeline">
        <caption class="unseen">Round ${number}, client by client</caption>
        <thead><tr><th scope="col">Client</th><th scope="col"><span class="scale"><span>0 s</span><span>${seconds(last - first)}</span></span></th><th scope="col">Outcome</th></tr></thead>
        <tbody>${rows.slice(offset, offset + LIMIT).map((row) => html`<${Line} key=${row.client_id} row=${row} first=${first} last=${last} progress=${progress[row.client_id]} />`)}</tbody>
      </table>
      <${Pager} what="clients of this round" offset=${offset} limit=${LIMIT} total=${rows.length} onMove=${setOffset} />`;
  }}<//>`;
}

/** What the stream says of the clients' progress, while the round is open. */
function useProgress(isOpen) {
  const [progress, setProgress] = useState({});
  useMessages((message) => {
    if (isOpen && message.event === "status" && message.data.clients) setProgress((old) => ({ ...old, ...message.data.clients }));
  });
  return isOpen ? progress : {};
}

function Line({ row, first, last, progress }) {
  const at = (time) => (100 * (time - first)) / Math.max(last - first, 0.001);
  const end = row.ended ?? (row.outcome === "pending" ? last : null);
  const known = Math.max(...[row.asked, row.downloaded, row.trained, row.uploaded].filter((one) => one != null));
  const parts = PARTS.filter(([, from, to]) => row[from] != null && row[to] != null);
  return html`<tr>
    <th scope="row"><a href=${place(`clients/${row.client_id}`)} title=${row.client_id}>${row.name || row.client_id.slice(0, 12)}</a></th>
    <td class="track-cell"><div class="track" aria-hidden="true">
      ${parts.map(([part, from, to]) => html`<span key=${part} class="stretch" data-part=${part} title=${`${capital(part)}: ${seconds(row[to] - row[from])}`} style=${{ left: `${at(row[from])}%`, width: `${at(row[to]) - at(row[from])}%` }}></span>`)}
      ${end != null && end > known && html`<span class="stretch" data-part="wait" style=${{ left: `${at(known)}%`, width: `${at(end) - at(known)}%` }}></span>`}
      ${row.outcome === "refused" || row.outcome === "lost" ? html`<span class="stretch-end" data-outcome=${row.outcome} style=${{ left: `${at(end ?? known)}%` }}></span>` : ""}
    </div><span class="unseen">${parts.map(([part, from, to]) => `${part} ${seconds(row[to] - row[from])}`).join(", ") || "nothing yet"}</span></td>
    <td class="outcome" data-outcome=${row.outcome}>${outcome(row, progress)}</td>
  </tr>`;
}

function outcome(row, progress) {
  if (row.outcome === "pending" && progress?.phase) return `${capital(words(progress.phase))} ${Math.round(100 * progress.fraction)} %`;
  const name = OUTCOMES[row.outcome] ?? capital(row.outcome);
  return row.reason ? html`${name}: ${words(row.reason)}${row.detail && html`<span class="quiet small detail">${row.detail}</span>`}` : name;
}

function sorted(rows, order) {
  const name = (row) => row.name || row.client_id;
  const trouble = (row) => ["refused", "lost", "pending", "accepted"].indexOf(row.outcome);
  const length = (row) => (row.ended ?? row.uploaded ?? Infinity) - (row.asked ?? 0);
  const ranks = { slowest: (a, b) => compared(length(b), length(a)), trouble: (a, b) => trouble(a) - trouble(b), name: () => 0 };
  return rows.toSorted((a, b) => ranks[order](a, b) || name(a).localeCompare(name(b), "en", { numeric: true }));
}

const compared = (a, b) => (a === b ? 0 : a - b);

function summary(rows) {
  const counts = Object.keys(OUTCOMES).map((outcome) => [outcome, rows.filter((row) => row.outcome === outcome).length]);
  const parts = counts.filter(([, many]) => many).map(([outcome, many]) => `${count(many)} ${OUTCOMES[outcome].toLowerCase()}`);
  return `${count(rows.length)} asked: ${parts.join(", ")}.`;
}
