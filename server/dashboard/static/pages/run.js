// One run: what it does now, how it learns, its rounds client by client, what it costs, and what may be done with it.

import { download, get, post } from "../api.js";
import { capital, count, moment, plural, seconds } from "../format.js";
import { latest, useLiveStatus, useLoaded, useNews, useNow } from "../loading.js";
import { Ago, Confirmation, Dialog, Facts, Failure, Loaded, NotFound, Progress, State, Waiting } from "../parts.js";
import { go, place, useTitle } from "../routing.js";
import { html, useState } from "../view.js";
import { Costs, Curves } from "./run_charts.js";
import { Participation, Refused } from "./run_clients.js";
import { Events } from "./events.js";
import { Model, Privacy, Settings } from "./run_facts.js";
import { Timeline } from "./run_timeline.js";

const MAY = { pause: ["queued", "running"], resume: ["paused"], stop: ["queued", "running", "paused"] };

export function RunPage({ runId, query, isOperator }) {
  const path = `runs/${runId}`;
  const run = useLoaded(async (signal) => ({ ...(await get(path, {}, signal)), since: Date.now() / 1000 }), runId);
  const live = useLiveStatus()[runId];
  useNews((message) => message.data?.run_id === runId && message.event !== "status", run.reload);
  useTitle(run.data?.spec.name ?? "Run");
  if (run.error?.status === 404) return html`<${NotFound} title="There is no such run."><p>${run.error.message}</p><a href="#/runs">To the runs</a><//>`;
  return html`
    <nav class="trail" aria-label="Where this is"><a href="#/runs">Runs</a> / <span aria-current="page">${run.data?.spec.name ?? runId}</span></nav>
    <${Loaded} from=${run} what="the run" lines=${10}>${(stored) => html`<${Run} run=${latest(stored, live)} query=${query} isOperator=${isOperator} reload=${run.reload} />`}<//>
  `;
}

function Run({ run, query, isOperator, reload }) {
  return html`
    <div class="page-head">
      <div><h1>${run.spec.name} <${State} state=${run.state} /></h1>
        <p class="quiet small"><code>${run.run_id}</code> · submitted <${Ago} time=${run.submitted_time} /></p></div>
      <${Actions} run=${run} isOperator=${isOperator} reload=${reload} />
    </div>
    <${Now} run=${run} />
    <div class="cards">
      ${["paused", "failed"].includes(run.state) && html`<${Refused} run=${run} />`}
      <${Curves} run=${run} />
      <${Timeline} run=${run} picked=${query.round} />
      <${Costs} run=${run} last=${query.rounds_to} />
      <${Participation} run=${run} />
      <${Privacy} spec=${run.spec} />
      <${Model} run=${run} />
      <${Settings} spec=${run.spec} />
      <${Events} runId=${run.run_id} title="Events of this run" />
    </div>
  `;
}

function Now({ run }) {
  return html`<section class="now" aria-label="State of the run" data-state=${run.state}>
    <div class="now-words">
      <p class="now-status">${run.waiting ? html`<${Waiting} waiting=${run.waiting} since=${run.since} />` : sentenceOf(run)}</p>
      <p class="quiet small">${run.waiting && run.phase && `Round ${count(run.round_number + 1)}, ${run.phase} · `}<${Span} run=${run} /></p>
    </div>
    <div class="now-rounds">
      <span class="number"><strong>${count(run.round_number)}</strong> of ${plural(run.spec.rounds, "round")}</span>
      <${Progress} label="Rounds committed" done=${run.round_number} of=${run.spec.rounds} />
    </div>
  </section>`;
}

function sentenceOf(run) {
  if (run.state === "finished" && !run.reason) return run.spec.rounds === 1 ? "The round is done" : `All ${count(run.spec.rounds)} rounds are done`;
  return capital(run.reason || run.status);
}

function Span({ run }) {
  const now = useNow(run.ended_time || run.state !== "running" ? 60 : 1);
  if (!run.started_time) return html`<span>Not started yet</span>`;
  if (run.ended_time) return html`<span>Took <span class="number">${seconds(run.ended_time - run.started_time)}</span>, ended ${moment(run.ended_time)}</span>`;
  return html`<span>Started <span class="number">${seconds(now - run.started_time)}</span> ago</span>`;
}

function Actions({ run, isOperator, reload }) {
  const [asked, setAsked] = useState("");
  const [error, setError] = useState(null);
  const act = async (verb) => {
    await post(`runs/${run.run_id}/${verb}`);
    await reload();
  };
  const save = () => download(`runs/${run.run_id}/model`, `${run.spec.name}.safetensors`).then(() => setError(null), setError);
  const may = (verb) => isOperator && MAY[verb].includes(run.state);
  const close = () => setAsked("");
  return html`<div class="tools">
    ${may("pause") && html`<button type="button" class="button" onClick=${() => setAsked("pause")}>Pause</button>`}
    ${may("resume") && html`<button type="button" class="button button-main" onClick=${() => setAsked("resume")}>Resume</button>`}
    ${may("stop") && html`<button type="button" class="button button-quiet-grave" onClick=${() => setAsked("stop")}>Stop</button>`}
    ${isOperator && html`<button type="button" class="button" onClick=${() => setAsked("clone")}>Clone</button>`}
    <a class="button" href=${place("compare", { runs: run.run_id })}>Compare</a>
    ${run.round_number > 0 && html`<button type="button" class="button" onClick=${save}>Download model</button>`}
    ${error && html`<${Failure} error=${error} />`}
    ${asked === "pause" && html`<${Confirmation} title=${`Pause ${run.spec.name}?`} action="Pause run" act=${() => act("pause")} onClose=${close}>
      <p>The round in progress is given up and played again once the run is resumed. Its last committed round is ${count(run.round_number)}.</p><//>`}
    ${asked === "resume" && html`<${Confirmation} title=${`Resume ${run.spec.name}?`} action="Resume run" act=${() => act("resume")} onClose=${close}>
      <p>It goes on with round ${count(run.round_number + 1)} of ${count(run.spec.rounds)} once it is its turn and enough clients are there.</p><//>`}
    ${asked === "stop" && html`<${Confirmation} title=${`Stop ${run.spec.name} for good?`} action="Stop run" isGrave act=${() => act("stop")} onClose=${close}>
      <p>The run ends with the model of round ${count(run.round_number)} and cannot be resumed. To go on later, pause it instead.</p><//>`}
    ${asked === "clone" && html`<${Clone} run=${run} onClose=${close} />`}
  </div>`;
}

function Clone({ run, onClose }) {
  const [isBusy, setBusy] = useState(false);
  const [error, setError] = useState(null);
  const clone = async (event) => {
    event.preventDefault();
    setBusy(true);
    try {
      const made = await post(`runs/${run.run_id}/clone`, {});
      go(`runs/${made.run_id}`);
    } catch (problem) {
      setError(problem);
      setBusy(false);
    }
  };
  return html`<${Dialog} title=${`Clone ${run.spec.name}`} onClose=${onClose}>
    <form onSubmit=${clone}>
      <p>A new run with the same spec and the same seed: with the same clients it ends with the same model. Change the spec first to try something else.</p>
      <${Facts} facts=${[["Learner", run.spec.learner.name], ["Rounds", count(run.spec.rounds)], ["Seed", String(run.spec.seed)]]} />
      ${error && html`<${Failure} error=${error} />`}
      <div class="actions">
        <button type="button" class="button" onClick=${onClose}>Cancel</button>
        <a class="button" href=${place("submit", { clone: run.run_id })}>Change the spec</a>
        <button type="submit" class="button button-main" disabled=${isBusy}>Run again</button>
      </div>
    </form>
  <//>`;
}
