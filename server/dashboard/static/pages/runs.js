// The list of runs: what each does, how far it is, how it learns, and what it waits for.

import { get, getPage } from "../api.js";
import { Sparkline } from "../chart.js";
import { capital, count, plural, value, words } from "../format.js";
import { latest, useLiveStatus, useLoaded, useNews } from "../loading.js";
import { Ago, Choice, Empty, Loaded, Pager, Progress, Search, State, Waiting } from "../parts.js";
import { amend, place, useTitle } from "../routing.js";
import { html, useEffect, useState } from "../view.js";

const LIMIT = 25;
const MOST_COMPARED = 6;
const STATES = [["", "All states"], ["queued", "Queued"], ["running", "Running"], ["paused", "Paused"], ["finished", "Finished"], ["stopped", "Stopped"], ["failed", "Failed"]];
const LED = ["accuracy", "loss", "train_accuracy", "train_loss"];

// A run's curve by its identity and round: it changes only with a round.
const curves = new Map();

export function RunsPage({ query, isOperator }) {
  useTitle("Runs");
  const offset = Number(query.offset) || 0;
  const [picked, setPicked] = useState([]);
  const filter = { state: query.state, search: query.search, order: query.order ?? "newest" };
  const key = JSON.stringify([filter, offset]);
  const runs = useLoaded(async (signal) => ({ ...(await getPage("runs", { ...filter, offset, limit: LIMIT }, signal)), since: Date.now() / 1000 }), key);
  useNews((message) => /^(run_|round_)/.test(message.event), runs.reload);
  const live = useLiveStatus();
  const isFiltered = Boolean(query.state || query.search);
  const pick = (runId) => setPicked((old) => (old.includes(runId) ? old.filter((one) => one !== runId) : [...old, runId]));

  return html`
    <div class="page-head">
      <h1>Runs</h1>
      <div class="tools">
        <${Search} label="Search by name or identity" value=${query.search ?? ""} onChange=${(search) => amend({ search, offset: "" })} />
        <${Choice} label="State" value=${query.state ?? ""} options=${STATES} onChange=${(state) => amend({ state, offset: "" })} />
        <${Choice} label="Order" value=${filter.order} options=${[["newest", "Newest first"], ["oldest", "Oldest first"]]} onChange=${(order) => amend({ order, offset: "" })} />
      </div>
    </div>
    <${Loaded} from=${runs} what="runs" lines=${8}>${({ items, total, since }) => items.length
      ? html`
        <ul class="runs" aria-label="Runs">${items.map((run) => html`<${Row} key=${run.run_id} run=${run} since=${since} live=${live[run.run_id]} isPicked=${picked.includes(run.run_id)} isFull=${picked.length === MOST_COMPARED} onPick=${() => pick(run.run_id)} />`)}</ul>
        <${Pager} what="runs" offset=${offset} limit=${LIMIT} total=${total} onMove=${(next) => amend({ offset: next || "" })} />`
      : html`<${NoRuns} isFiltered=${isFiltered} isOperator=${isOperator} />`}<//>
    ${picked.length > 0 && html`<div class="bar" role="region" aria-label="Picked runs">
      <span>${plural(picked.length, "run")} picked${picked.length === MOST_COMPARED ? `, which is the most` : ""}</span>
      <button type="button" class="button" onClick=${() => setPicked([])}>Clear</button>
      <a class="button button-main" href=${place("compare", { runs: picked.join(",") })}>Compare</a>
    </div>`}
  `;
}

function NoRuns({ isFiltered, isOperator }) {
  if (isFiltered) return html`<${Empty} title="No run fits these filters."><button type="button" class="button" onClick=${() => amend({ search: "", state: "", offset: "" })}>Show all runs</button><//>`;
  return html`<${Empty} title="No runs yet.">
    <p>A run trains one model over the clients that have joined. ${isOperator ? "Describe one here, or" : "An operator submits one, for instance"} with <code>choral submit run.yaml</code>.</p>
    ${isOperator && html`<a class="button button-main" href="#/submit">New run</a>`}
  <//>`;
}

function Row({ run, since, live, isPicked, isFull, onPick }) {
  const now = latest({ ...run, since }, live);
  return html`<li class="run">
    <label class="run-pick"><input type="checkbox" checked=${isPicked} disabled=${isFull && !isPicked} onChange=${onPick} aria-label=${`Pick ${run.spec.name} to compare`} /></label>
    <div class="run-main">
      <a class="run-name" href=${place(`runs/${run.run_id}`)}>${run.spec.name}</a>
      <span class="quiet small"><code>${run.run_id}</code> · ${run.spec.learner.name} · <${Ago} time=${run.submitted_time} /></span>
    </div>
    <${State} state=${now.state} />
    <div class="run-rounds">
      <span class="number">Round ${count(now.round_number)} of ${count(run.spec.rounds)}</span>
      <${Progress} label="Rounds committed" done=${now.round_number} of=${run.spec.rounds} />
    </div>
    <${Curve} run=${run} />
    <p class="run-status">${now.waiting ? html`<${Waiting} waiting=${now.waiting} since=${now.since} />` : statusWords(now)}</p>
  </li>`;
}

function statusWords(run) {
  const said = run.reason || run.status || "";
  return said === run.state ? "" : capital(said);
}

function Curve({ run }) {
  const metrics = run.metrics ?? {};
  const name = run.spec.stop_when?.metric ?? LED.find((one) => one in metrics) ?? Object.keys(metrics)[0];
  const key = `${run.run_id}/${run.round_number}/${name}`;
  const [values, setValues] = useState(curves.get(key));
  useEffect(() => {
    if (!name || curves.has(key)) return setValues(curves.get(key));
    const stop = new AbortController();
    get(`runs/${run.run_id}/metrics`, { names: name, points: 40 }, stop.signal)
      .then(({ series }) => {
        curves.set(key, series[name]?.mean ?? []);
        setValues(curves.get(key));
      })
      .catch(() => {});
    return () => stop.abort();
  }, [key]);
  if (!name || run.round_number === 0) return html`<div class="run-metric quiet"><span>No metrics yet</span></div>`;
  return html`<div class="run-metric">
    ${values && html`<${Sparkline} values=${values} label=${`${capital(words(name))} over the rounds`} />`}
    <span class="number"><span class="quiet">${words(name)}</span> ${value(metrics[name])}</span>
  </div>`;
}
