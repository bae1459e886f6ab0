// A run's curves over its rounds, with their spread over the clients, and what its rounds cost.

import { get } from "../api.js";
import { Chart } from "../chart.js";
import { bytes, capital, count, seconds, secondsTicks, value, words } from "../format.js";
import { useLoaded, useNews } from "../loading.js";
import { Card, Choice, Empty, Loaded } from "../parts.js";
import { amend } from "../routing.js";
import { html, useMemo, useState } from "../view.js";

const POINTS = 400;
const ROUNDS_SHOWN = 50;
const FIRST = ["accuracy", "loss"];
// Training has the colour that it has in the timeline.
const PHASES = { select: "line-6", train: "line-1", apply: "line-3", evaluate: "line-4", commit: "line-2" };

/** Tell whether a message says that a round of the run is committed, or that the run has ended. */
export const isRoundOf = (runId) => (message) => message.data?.run_id === runId && /^(round_|run_)/.test(message.event);

export function Curves({ run }) {
  const names = useMemo(() => metricNames(run), [Object.keys(run.metrics ?? {}).join()]);
  const [chosen, setChosen] = useState([]);
  if (!names.length) {
    return html`<${Card} title="Learning" wide><${Empty} title=${run.round_number ? "This run has no metrics." : "No round is committed yet."}>
      <p>Curves appear with the first round that is evaluated.</p><//><//>`;
  }
  const shown = [0, 1].map((at) => (names.includes(chosen[at]) ? chosen[at] : names[at])).filter(Boolean);
  const choose = (at, name) => setChosen(shown.map((one, index) => (index === at ? name : one)));
  return html`<${Card} title="Learning" wide>
    <div class="curves">${shown.map((name, at) => html`<${Curve} key=${at} run=${run} name=${name} names=${names} onChoose=${(next) => choose(at, next)} />`)}</div>
    <p class="quiet small note">${legendOf(run.spec)} ${run.round_number > POINTS ? `A point is the mean of ${count(Math.ceil(run.round_number / POINTS))} rounds. ` : ""}Drag to zoom, double-click to see everything.</p>
  <//>`;
}

/** What the line and the band of a curve are. */
function legendOf(spec) {
  const mean = "mean over the clients, weighted by examples";
  if (spec.privacy?.secure_aggregation) return `Line: ${mean}. Secure aggregation shows sums alone: there is no band from the lowest to the highest client.`;
  const band = "from the lowest to the highest client";
  if (spec.evaluate.on === "coordinator") return `Line: measured on the coordinator's own data. Of what training measured: ${mean}, in a band ${band}.`;
  return `Line: ${mean}. Band: ${band}.`;
}

/** Names of a run's metrics, those that tell most first. */
export function metricNames(run) {
  const names = Object.keys(run.metrics ?? {}).filter((name) => !name.startsWith("refused_"));
  const rank = (name) => (FIRST.includes(name) ? FIRST.indexOf(name) : name.startsWith("train_") ? 20 : 10);
  return names.sort((one, other) => rank(one) - rank(other) || one.localeCompare(other));
}

function Curve({ run, name, names, onChoose }) {
  const loaded = useLoaded((signal) => get(`runs/${run.run_id}/metrics`, { names: name, points: POINTS }, signal), `${run.run_id}/${name}`);
  useNews(isRoundOf(run.run_id), loaded.reload);
  const series = loaded.data?.series[name];
  const lines = useMemo(() => series && [{ name, values: series.mean, ...spreadOf(series), tint: "accent", dash: [] }], [series]);
  return html`<div>
    <div class="chart-head">
      <${Choice} label="Metric" value=${name} options=${names.map((one) => [one, capital(words(one))])} onChange=${onChoose} />
      <span class="chart-last number">${value(run.metrics?.[name])}</span>
    </div>
    <${Loaded} from=${loaded} what=${name} lines=${6}>${({ rounds }) => lines
      ? html`<${Chart} label=${`${capital(words(name))} over the rounds`} rounds=${rounds} lines=${lines} />`
      : html`<${Empty} title=${`No round has ${words(name)}.`} />`}<//>
  </div>`;
}

function spreadOf({ low, high }) {
  return low?.some((one) => one != null) ? { low, high } : {};
}

/** Bytes and seconds of rounds, of the last ones or of those up to `last`. */
export function Costs({ run, last }) {
  const end = Math.min(Number(last) || run.round_number, run.round_number);
  const after = Math.max(0, end - ROUNDS_SHOWN);
  const query = { after, limit: ROUNDS_SHOWN };
  const loaded = useLoaded((signal) => get(`runs/${run.run_id}/summaries`, query, signal), `${run.run_id}/${last ? end : "latest"}`);
  useNews(isRoundOf(run.run_id), loaded.reload);
  const move = (to) => amend({ rounds_to: to >= run.round_number ? "" : to });
  const pager = run.round_number > ROUNDS_SHOWN && html`<nav class="pager" aria-label="Rounds shown">
    <button type="button" class="button" disabled=${after === 0} onClick=${() => move(Math.max(ROUNDS_SHOWN, after))}>Earlier</button>
    <span class="number">Rounds ${count(after + 1)}–${count(end)}</span>
    <button type="button" class="button" disabled=${end >= run.round_number} onClick=${() => move(end + ROUNDS_SHOWN)}>Later</button>
  </nav>`;
  return html`<${Card} title="Cost of a round" aside=${pager} wide>
    <${Loaded} from=${loaded} what="rounds" lines=${6}>${(found) => found.length
      ? html`<${CostCharts} rounds=${found} />`
      : html`<${Empty} title="No round is committed yet."><p>Bytes and seconds are counted for every round.</p><//>`}<//>
  <//>`;
}

function CostCharts({ rounds }) {
  const made = useMemo(() => {
    const phases = [...new Set(rounds.flatMap((round) => Object.keys(round.phase_seconds)))];
    return {
      numbers: rounds.map((round) => round.number),
      seconds: phases.map((phase) => ({
        name: phase,
        values: rounds.map((round) => round.phase_seconds[phase] ?? 0),
        tint: PHASES[phase] ?? "line-5",
      })),
      bytes: [{ name: "bytes", values: rounds.map((round) => round.bytes), tint: "accent" }],
    };
  }, [rounds]);
  return html`<div class="curves">
    <div><h3>Seconds by phase</h3><${Chart} label="Seconds of a round by phase" rounds=${made.numbers} lines=${made.seconds} areBars show=${seconds} ticks=${secondsTicks} /></div>
    <div><h3>Bytes of accepted updates</h3><${Chart} label="Bytes of a round" rounds=${made.numbers} lines=${made.bytes} areBars show=${bytes} ticks=${(numbers) => numbers.map(bytes)} /></div>
  </div>`;
}
