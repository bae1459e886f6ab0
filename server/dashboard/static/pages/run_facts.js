// What a run is: its settings, what protects the clients, in words, and the model that it has made.

import { download, get } from "../api.js";
import { write } from "../exact.js";
import { capital, count, plural, seconds, value, words } from "../format.js";
import { Card, Dialog, Empty, Facts, Failure, Loaded, Table } from "../parts.js";
import { useLoaded } from "../loading.js";
import { shown } from "../schema.js";
import { html, useState } from "../view.js";
import { metricNames } from "./run_charts.js";

/** Return the privacy settings of a spec as sentences. */
export function privacySentences(spec) {
  const masking = spec.privacy?.secure_aggregation;
  const sentences = ["Examples never leave the clients. What they send back are updates of the model."];
  if (!masking) {
    sentences.push("Secure aggregation is off: this coordinator sees the update of each client.");
  } else {
    sentences.push(
      "Secure aggregation is on: updates are masked, and this coordinator learns only the sum of a round, as long as the roster is honest.",
      `Of the clients of a round, ${part(masking.corrupt_fraction)} may conspire with the coordinator and learn nothing of the others; ${part(masking.dropout_fraction)} may fall out before the round is lost.`,
      `A sum is of at least ${plural(masking.minimum_cohort, "honest client")}.`,
      `Of metrics, only sums of ${masking.metrics.join(", ") || "none"} leave a client.`,
    );
  }
  sentences.push("Differential privacy is off: nothing bounds what the model itself tells of an example.");
  return sentences;
}

const part = (fraction) => `${Number((100 * fraction).toPrecision(3))} %`;

export function Privacy({ spec }) {
  return html`<${Card} title="Privacy"><ul class="sentences">${privacySentences(spec).map((sentence) => html`<li key=${sentence}>${sentence}</li>`)}</ul><//>`;
}

export function Settings({ spec }) {
  const { cohort, local, server, learner } = spec;
  const parameters = Object.entries(learner).filter(([name]) => name !== "name");
  const asked = cohort.size ? plural(cohort.size, "client") : `${part(cohort.fraction)} of the clients present`;
  const goal = spec.stop_when;
  const facts = [
    ["Learner", `${learner.name}${parameters.length ? `, ${parameters.map(([name, set]) => `${words(name)} ${Array.isArray(set) ? `[${shown(set)}]` : shown(set)}`).join(", ")}` : ""}`],
    ["Rounds", goal ? `up to ${count(spec.rounds)}, until ${goal.metric} is ${goal.at_least != null ? `at least ${goal.at_least}` : `at most ${goal.at_most}`}` : count(spec.rounds)],
    ["Cohort", `${asked}, quorum ${count(cohort.quorum ?? cohort.size ?? 1)}, closes after ${seconds(cohort.deadline_seconds)} at the latest`],
    ["On a client", `${plural(local.epochs, "epoch")}, batches of ${count(local.batch_size)}, ${optimizer(local.optimizer)}`],
    ["On the coordinator", optimizer(server.optimizer)],
    ["Weighted by", spec.weight_by],
    ["Evaluated", spec.evaluate.every ? `every ${spec.evaluate.every === 1 ? "round" : `${spec.evaluate.every} rounds`} on ${spec.evaluate.on}` : "never"],
    ["Seed", String(spec.seed)],
  ];
  return html`<${Card} title="Settings" wide><${Facts} facts=${facts} />
    <details class="numbers"><summary>The whole spec</summary><pre class="scroll" tabindex="0">${write(spec, 2)}</pre></details><//>`;
}

function optimizer({ name, ...rest }) {
  return [name, ...Object.entries(rest).map(([key, set]) => `${key.replaceAll("_", " ")} ${set}`)].join(", ");
}

export function Model({ run }) {
  const [isOpen, setOpen] = useState(false);
  if (run.round_number === 0) return html`<${Card} title="Model"><${Empty} title="No model yet."><p>There is one after the first committed round.</p><//><//>`;
  return html`<${Card} title="Model">
    <${Facts} facts=${[["After round", count(run.round_number)], ...metricNames(run).map((name) => [capital(words(name)), value(run.metrics[name])]), ["SHA-256", html`<code class="hash">${run.model_sha256}</code>`]]} />
    <div class="actions actions-start">
      <button type="button" class="button" onClick=${() => setOpen(true)}>Model card</button>
    </div>
    ${isOpen && html`<${ModelCard} run=${run} onClose=${() => setOpen(false)} />`}
  <//>`;
}

const SITES = [
  { title: "Site", isHead: true, cell: (site) => site.name || site.client_id },
  { title: "Examples", isNumber: true, cell: (site) => count(site.example_count) },
];

function ModelCard({ run, onClose }) {
  const card = useLoaded((signal) => get(`runs/${run.run_id}/card`, {}, signal), run.run_id);
  const [error, setError] = useState(null);
  const save = () => download(`runs/${run.run_id}/card`, `${run.spec.name}-card.json`).then(() => setError(null), setError);
  return html`<${Dialog} title="Model card" onClose=${onClose}>
    <${Loaded} from=${card} what="the model card">${(known) => html`
      <${Facts} facts=${[["Run", run.spec.name], ["Learner", run.spec.learner.name], ["Rounds", count(run.round_number)], ["Release", known.code_version ?? known.release], ["SHA-256", html`<code class="hash">${known.model_sha256}</code>`]]} />
      ${known.sites && html`<div class="scroll" tabindex="0" role="region" aria-label="Sites"><${Table} caption="Sites and their examples" columns=${SITES} rows=${known.sites} keyOf=${(site) => site.client_id ?? site.name} isDense /></div>`}
      <ul class="sentences">${privacySentences(run.spec).map((sentence) => html`<li key=${sentence}>${sentence}</li>`)}</ul>`}<//>
    ${error && html`<${Failure} error=${error} />`}
    <div class="actions">
      <button type="button" class="button" onClick=${save}>Save as JSON</button>
      <button type="button" class="button button-main" onClick=${onClose}>Close</button>
    </div>
  <//>`;
}
