// Up to six runs in one chart, beside what they reached and where their specs differ.

import { get, getPage } from "../api.js";
import { Chart, MARKS } from "../chart.js";
import { capital, count, seconds, value, words } from "../format.js";
import { useLoaded, useNews, useSettled } from "../loading.js";
import { Card, Choice, Empty, Failure, Loaded, State, Table } from "../parts.js";
import { amend, place, useTitle } from "../routing.js";
import { shown } from "../schema.js";
import { html, useEffect, useMemo, useRef, useState } from "../view.js";

const MOST = 6;
const POINTS = 400;
const FIRST = ["accuracy", "loss"];

export function ComparePage({ query }) {
  useTitle("Compare");
  const ids = [...new Set((query.runs ?? "").split(",").filter(Boolean))].slice(0, MOST);
  const runs = useLoaded((signal) => Promise.all(ids.map((id) => found(id, signal))), ids.join());
  useNews((message) => ids.includes(message.data?.run_id) && message.event !== "status", runs.reload);
  const setIds = (next) => amend({ runs: next.join(",") });
  const remove = (id) => setIds(ids.filter((one) => one !== id));
  return html`
    <div class="page-head"><h1>Compare</h1></div>
    <${Picker} ids=${ids} onAdd=${(id) => setIds([...ids, id])} />
    ${ids.length
      ? html`<${Loaded} from=${runs} what="the runs" lines=${8}>${(all) => html`
        ${ids.filter((_, index) => !all[index]).map((id) => html`<div class="notice notice-bad" role="alert" key=${id}><p>There is no run <code>${id}</code>.</p>
          <button type="button" class="button" onClick=${() => remove(id)}>Leave it out</button></div>`)}
        ${all.some(Boolean) && html`<${Comparison} runs=${all.filter(Boolean)} query=${query} onRemove=${remove} />`}`}<//>`
      : html`<${Empty} title="No run is picked."><p>Pick up to six above, or in the <a href="#/runs">list of runs</a>.</p><//>`}
  `;
}

/** Return a run; null where there is none, which is no reason to show none of the others. */
async function found(id, signal) {
  try {
    return await get(`runs/${id}`, {}, signal);
  } catch (problem) {
    if (problem.status === 404) return null;
    throw problem;
  }
}

function Picker({ ids, onAdd }) {
  const [text, setText] = useState("");
  const search = useSettled(text);
  const found = useLoaded((signal) => getPage("runs", { search, limit: 8 + MOST, order: "newest" }, signal), search);
  const [isOpen, setOpen] = useState(false);
  const summary = useRef(null);
  if (ids.length >= MOST) return html`<p class="quiet list-note">Six runs are the most for one chart. Remove one to add another.</p>`;
  const left = (found.data?.items ?? []).filter((run) => !ids.includes(run.run_id)).slice(0, 8);
  const close = (event) => {
    if (event.key !== "Escape") return;
    setOpen(false);
    summary.current.focus();
  };
  return html`<details class="picker" open=${isOpen} onToggle=${(event) => setOpen(event.target.open)} onKeyDown=${close}>
    <summary class="button" ref=${summary}>Add a run</summary>
    <div class="picker-list">
      <input class="input" type="search" placeholder="Search by name or identity" aria-label="Search runs to add" value=${text} onInput=${(event) => setText(event.target.value)} />
      ${found.error && html`<${Failure} error=${found.error} retry=${found.reload} />`}
      ${left.length
        ? html`<ul>${left.map((run) => html`<li key=${run.run_id}><button type="button" class="picker-run" onClick=${() => onAdd(run.run_id)}>${run.spec.name} <span class="quiet small"><code>${run.run_id}</code> · round ${count(run.round_number)}</span></button></li>`)}</ul>`
        : html`<p class="quiet">No other run fits.</p>`}
    </div>
  </details>`;
}

function Comparison({ runs, query, onRemove }) {
  const names = useMemo(() => {
    const all = [...new Set(runs.flatMap((run) => Object.keys(run.metrics ?? {})))].filter((name) => !name.startsWith("refused_"));
    const rank = (name) => (FIRST.includes(name) ? FIRST.indexOf(name) : 9);
    return all.sort((one, other) => rank(one) - rank(other) || one.localeCompare(other));
  }, [runs]);
  const metric = names.includes(query.metric) ? query.metric : names[0];
  const version = runs.map((run) => `${run.run_id}/${run.round_number}`).join();
  return html`
    <ul class="picked" aria-label="Runs in this chart">${runs.map((run, index) => html`<li key=${run.run_id}>
      <span class="line-mark" data-line=${index + 1} aria-hidden="true"></span>
      <a href=${place(`runs/${run.run_id}`)}>${run.spec.name}</a> <code class="quiet small">${run.run_id}</code>
      <button type="button" class="button button-icon button-small" aria-label=${`Remove ${run.spec.name}`} onClick=${() => onRemove(run.run_id)}>×</button></li>`)}</ul>
    <div class="cards">
      <${Card} title="Curves" wide aside=${names.length > 0 && html`<${Choice} label="Metric" value=${metric} options=${names.map((name) => [name, capital(words(name))])} onChange=${(name) => amend({ metric: name })} />`}>
        ${metric ? html`<${Curves} key=${`${runs.map((run) => run.run_id).join()}/${metric}`} runs=${runs} metric=${metric} version=${version} />` : html`<${Empty} title="None of these runs has metrics yet." />`}<//>
      <${Reached} runs=${runs} names=${names} />
      <${Differences} runs=${runs} />
    </div>
  `;
}

function Curves({ runs, metric, version }) {
  const load = (signal) => Promise.all(runs.map((run) => get(`runs/${run.run_id}/metrics`, { names: metric, points: POINTS }, signal)));
  const loaded = useLoaded(load, metric);
  useEffect(() => void (loaded.data && loaded.reload()), [version]);
  const joined = useMemo(() => loaded.data && together(loaded.data, metric), [loaded.data]);
  return html`<${Loaded} from=${loaded} what="the curves" lines=${6}>${() => {
    const lines = runs.map((run, index) => ({ name: `${run.spec.name} ${run.run_id.slice(0, 4)}`, values: joined.values[index], ...MARKS[index] }));
    return joined.rounds.length ? html`<${Chart} label=${`${capital(words(metric))} of ${runs.length} runs`} rounds=${joined.rounds} lines=${lines} />
      ${runs.filter((run) => run.round_number > POINTS).map((run) => html`<p class="quiet small note" key=${run.run_id}>A point of ${run.spec.name} is the mean of ${count(Math.ceil(run.round_number / POINTS))} rounds.</p>`)}` : html`<${Empty} title=${`No round has ${words(metric)} yet.`} />`;
  }}<//>`;
}

/** Bring curves over different rounds on one list of rounds, with null where a run has no value. */
export function together(curves, metric) {
  const rounds = [...new Set(curves.flatMap((curve) => curve.rounds))].sort((a, b) => a - b);
  const values = curves.map((curve) => {
    const known = new Map(curve.rounds.map((round, index) => [round, curve.series[metric]?.mean[index] ?? null]));
    return rounds.map((round) => known.get(round) ?? null);
  });
  return { rounds, values };
}

function Reached({ runs, names }) {
  const columns = [
    { title: "Run", isHead: true, cell: (run) => html`${run.spec.name} <code class="quiet small">${run.run_id}</code>` },
    { title: "State", cell: (run) => html`<${State} state=${run.state} />` },
    { title: "Rounds", isNumber: true, cell: (run) => `${count(run.round_number)} of ${count(run.spec.rounds)}` },
    { title: "Time", isNumber: true, cell: (run) => (run.ended_time && run.started_time ? seconds(run.ended_time - run.started_time) : "–") },
    ...names.slice(0, 4).map((name) => ({ title: capital(words(name)), isNumber: true, cell: (run) => value(run.metrics?.[name]) })),
  ];
  return html`<${Card} title="What they reached" wide><${Table} caption="What the runs reached" columns=${columns} rows=${runs} keyOf=${(run) => run.run_id} /><//>`;
}

function Differences({ runs }) {
  const rows = useMemo(() => differences(runs.map((run) => run.spec)), [runs]);
  const columns = [
    { title: "Setting", isHead: true, cell: (row) => html`<code>${row.path.replaceAll(/[._]/g, "$&\u200b")}</code>` },
    ...runs.map((run, index) => ({ title: run.spec.name, cell: (row) => row.values[index] ?? "–" })),
  ];
  return html`<${Card} title="Where their specs differ" wide>${rows.length
    ? html`<div class="settings"><${Table} caption="Settings that differ" columns=${columns} rows=${rows} keyOf=${(row) => row.path} isDense /></div>`
    : html`<${Empty} title=${runs.length > 1 ? "Nowhere: their specs are the same." : "One run alone differs from none."} />`}<//>`;
}

/** Return the settings that are not the same in all specs: [{path, values}]. */
export function differences(specs) {
  const flat = specs.map((spec) => new Map(leaves(spec)));
  const paths = [...new Set(flat.flatMap((one) => [...one.keys()]))];
  return paths.map((path) => ({ path, values: flat.map((one) => one.get(path)) })).filter(({ path, values }) => path !== "name" && new Set(values).size > 1);
}

function* leaves(part, path = "") {
  if (part !== null && typeof part === "object" && !Array.isArray(part)) {
    for (const [key, inner] of Object.entries(part)) yield* leaves(inner, path ? `${path}.${key}` : key);
  } else if (part !== null) yield [path, shown(part)];
}
