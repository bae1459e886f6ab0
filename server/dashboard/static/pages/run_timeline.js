// A round, client by client: when each downloaded, trained and uploaded, was refused or fell out, or did not evaluate.

import { get } from "../api.js";
import { capital, clock, count, moment, percent, seconds, words } from "../format.js";
import { useAway, useLoaded, useMessages, useNews, useNow } from "../loading.js";
import { Card, Choice, Empty, Loaded, Pager, Table } from "../parts.js";
import { amend, place } from "../routing.js";
import { html, useEffect, useMemo, useState } from "../view.js";

const LIMIT = 20;
// Rows beyond which a round is not loaded again at every look.
const MANY = 200;
const PARTS = [["download", "asked", "downloaded"], ["train", "downloaded", "trained"], ["upload", "trained", "uploaded"]];
const OUTCOMES = { accepted: "Accepted", refused: "Refused", lost: "Fell out", pending: "Under way" };
const ORDERS = [["slowest", "Slowest first"], ["trouble", "Trouble first"], ["name", "By name"]];

// Phases in which clients have been asked.
const ASKED = ["train", "apply", "evaluate", "commit"];
// What lies between two notes of one moment.
const CLOSE_SECONDS = 2;

export function Timeline({ run, picked }) {
  const open = ASKED.includes(run.phase) ? run.round_number + 1 : run.round_number;
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
      : html`<${Empty} title=${run.phase ? "No client has been asked yet." : "No round is under way."}><p>Each client's download, training and upload appear here.</p><//>`}
  <//>`;
}

function Round({ run, number, isOpen }) {
  const [order, setOrder] = useState("slowest");
  const [offset, setOffset] = useState(0);
  const loaded = useLoaded((signal) => load(run.run_id, number, isOpen, signal), run.run_id);
  const concerns = (message) =>
    message.event === "status" ? isOpen && Boolean(message.data.clients || message.data.runs?.[run.run_id]) : message.data?.run_id === run.run_id;
  useNews(concerns, loaded.reload, loaded.data?.rows.length > MANY ? 1000 : undefined);
  useEffect(() => void loaded.reload(), [number, isOpen]);
  const progress = useProgress(isOpen);
  const away = useAway(run.since);
  const ticking = useNow(isOpen ? 1 : 3600);
  const now = away || ticking;
  const rows = useMemo(() => sorted(loaded.data?.rows ?? [], order), [loaded.data, order]);
  return html`<${Loaded} from=${loaded} what="the round" lines=${6}>${({ about }) => {
    if (!rows.length) return html`<${Empty} title="No client has been asked yet." />`;
    const known = rows.flatMap(momentsOf);
    const first = Math.min(...known);
    // Who is waited for is waited for until now.
    const last = isOpen && rows.some((row) => row.outcome === "pending" && row.asked != null) ? Math.max(now, ...known) : Math.max(...known);
    const scale = known.length > 0 && { first, last };
    return html`
      <div class="timeline-head">
        <p>${summary(rows)}</p>
        <${Choice} label="Order of clients" value=${order} options=${ORDERS} onChange=${setOrder} />
      </div>
      ${notes(about, scale, isOpen).map((note) => html`<p class="quiet small note" key=${note}>${note}</p>`)}
      ${scale && html`<ul class="legend">${PARTS.map(([part]) => html`<li key=${part}><span class="swatch" data-part=${part} aria-hidden="true"></span>${capital(part)}</li>`)}
        <li><span class="swatch" data-part="wait" aria-hidden="true"></span>Waiting, or nothing heard</li></ul>`}
      <table class="timeline">
        <caption class="unseen">Round ${number}, client by client</caption>
        <thead><tr><th scope="col">Client</th><th scope="col">${scale ? html`<span class="scale"><span>0 s</span><span>${seconds(last - first)}</span></span>` : html`<span class="unseen">Times</span>`}</th><th scope="col">Outcome</th></tr></thead>
        <tbody>${rows.slice(offset, offset + LIMIT).map((row) => html`<${Line} key=${row.client_id} row=${row} scale=${scale} progress=${progress[row.client_id]} />`)}</tbody>
      </table>
      <${Pager} what="clients of this round" offset=${offset} limit=${LIMIT} total=${rows.length} onMove=${setOffset} />
      ${scale && html`<${Moments} rows=${rows.slice(offset, offset + LIMIT)} number=${number} />`}`;
  }}<//>`;
}

const lasted = (row, from, to) => seconds(row[from] == null || row[to] == null ? null : row[to] - row[from]);

const MOMENTS = [
  { title: "Client", isHead: true, cell: (row) => row.name || row.client_id.slice(0, 12) },
  { title: "Asked at", isNumber: true, cell: (row) => (row.asked == null ? "–" : html`<time title=${moment(row.asked)}>${clock(row.asked)}</time>`) },
  ...PARTS.map(([part, from, to]) => ({ title: capital(part), isNumber: true, cell: (row) => lasted(row, from, to) })),
  { title: "In all", isNumber: true, cell: (row) => lasted(row, "asked", "ended") },
];

/** The bars in numbers, for who cannot point at them. */
function Moments({ rows, number }) {
  const [isOpen, setOpen] = useState(false);
  return html`<details class="numbers" onToggle=${(event) => setOpen(event.target.open)}>
    <summary>As a table</summary>
    ${isOpen && html`<${Table} caption=${`When the clients of round ${number} did what`} columns=${MOMENTS} rows=${rows} keyOf=${(row) => row.client_id} isDense />`}
  </details>`;
}

/** Load a round's rows, and the round itself or what is told of it: {rows, about}. */
async function load(runId, number, isOpen, signal) {
  const path = `runs/${runId}`;
  const told = isOpen ? get(`${path}/rounds/${number}`, {}, signal) : get(`${path}/summaries`, { after: number - 1, limit: 1 }, signal).then(([found]) => found);
  try {
    // Without what is told of the round there are no notes, and the rows all the same.
    const [rows, about] = await Promise.all([get(`${path}/rounds/${number}/timeline`, {}, signal), told.catch(() => undefined)]);
    return { rows, about };
  } catch (problem) {
    // Between two rounds there is none that is open.
    if (isOpen && problem.status === 404) return { rows: [] };
    throw problem;
  }
}

const momentsOf = (row) => [row.asked, row.downloaded, row.trained, row.uploaded, row.ended].filter((one) => one != null);

/** What has to be said of moments that are not those of the whole round. */
function notes(about, scale, isOpen) {
  if (!scale) return [isOpen ? "The clients are being asked." : "When the clients did what is not known of this round: it was simulated, or played by an earlier release."];
  if (!about) return [];
  if (about.attempt) return [`Shown is attempt ${count(about.attempt + 1)}: what was brought before did not make a quorum.`];
  const late = scale.first - about.started_time - (about.phase_seconds.select ?? 0);
  if (late < CLOSE_SECONDS) return [];
  return [`The clients were asked anew ${seconds(late)} after the round had begun, because the coordinator was restarted or the run paused. What they did before that is not known.`];
}

/** What the stream says of the clients' progress, while the round is open. */
function useProgress(isOpen) {
  const [progress, setProgress] = useState({});
  useMessages((message) => {
    if (isOpen && message.event === "status" && message.data.clients) setProgress((old) => ({ ...old, ...message.data.clients }));
  });
  return isOpen ? progress : {};
}

function Line({ row, scale, progress }) {
  return html`<tr>
    <th scope="row"><a href=${place(`clients/${row.client_id}`)} title=${row.client_id}>${row.name || row.client_id.slice(0, 12)}</a></th>
    <td class="track-cell">${scale && html`<${Track} row=${row} ...${scale} />`}</td>
    <td class="outcome" data-outcome=${row.outcome}>${outcome(row, progress)}</td>
  </tr>`;
}

function Track({ row, first, last }) {
  const at = (time) => (100 * (time - first)) / Math.max(last - first, 0.001);
  const end = row.ended ?? (row.outcome === "pending" && row.asked != null ? last : null);
  const known = Math.max(...[row.asked, row.downloaded, row.trained, row.uploaded].filter((one) => one != null));
  const parts = PARTS.filter(([, from, to]) => row[from] != null && row[to] != null);
  const [going] = row.outcome === "pending" && row.downloaded != null ? PARTS.findLast(([, from, to]) => row[from] != null && row[to] == null) ?? [] : [];
  return html`<div class="track" aria-hidden="true">
      ${parts.map(([part, from, to]) => html`<span key=${part} class="stretch" data-part=${part} title=${`${capital(part)}: ${seconds(row[to] - row[from])}`} style=${{ left: `${at(row[from])}%`, width: `${at(row[to]) - at(row[from])}%` }}></span>`)}
      ${end != null && end > known && html`<span class=${`stretch${going ? " stretch-going" : ""}`} data-part=${going ?? "wait"} style=${{ left: `${at(known)}%`, width: `${at(end) - at(known)}%` }}></span>`}
      ${row.outcome === "refused" || row.outcome === "lost" ? html`<span class="stretch-end" data-outcome=${row.outcome} style=${{ left: `${at(end ?? known)}%` }}></span>` : ""}
    </div><span class="unseen">${parts.map(([part, from, to]) => `${part} ${seconds(row[to] - row[from])}`).join(", ") || "nothing yet"}</span>`;
}

function outcome(row, progress) {
  if (row.outcome === "pending" && progress?.phase) return `${capital(words(progress.phase))}${progress.fraction ? ` ${percent(progress.fraction)}` : ""}`;
  const isAsked = row.outcome !== "pending" || row.asked != null;
  const name = isAsked ? (OUTCOMES[row.outcome] ?? capital(row.outcome)) : "To be asked";
  return html`${row.reason ? `${name}: ${words(row.reason)}` : name}${because(row.detail)}${row.evaluation_reason &&
    html`<span class="not-evaluated">Not evaluated: ${words(row.evaluation_reason)}</span>${because(row.evaluation_detail)}`}`;
}

const because = (detail) => detail && html`<span class="quiet small detail">${detail}</span>`;

function sorted(rows, order) {
  const name = (row) => row.name || row.client_id;
  const trouble = (row) => (row.evaluation_reason && row.outcome === "accepted" ? 2.5 : ["refused", "lost", "pending", "accepted"].indexOf(row.outcome));
  const length = (row) => (row.ended ?? row.uploaded ?? Infinity) - (row.asked ?? 0);
  const ranks = { slowest: (a, b) => compared(length(b), length(a)), trouble: (a, b) => trouble(a) - trouble(b), name: () => 0 };
  return rows.toSorted((a, b) => ranks[order](a, b) || name(a).localeCompare(name(b), "en", { numeric: true }));
}

const compared = (a, b) => (a === b ? 0 : a - b);

function summary(rows) {
  const counts = Object.keys(OUTCOMES).map((outcome) => [outcome, rows.filter((row) => row.outcome === outcome).length]);
  const parts = counts.filter(([, many]) => many).map(([outcome, many]) => `${count(many)} ${OUTCOMES[outcome].toLowerCase()}`);
  const failures = rows.filter((row) => row.evaluation_reason).length;
  return `${count(rows.length)} asked: ${parts.join(", ")}.${failures ? ` ${count(failures)} did not evaluate the new model.` : ""}`;
}
