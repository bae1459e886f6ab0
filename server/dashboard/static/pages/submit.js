// A new run: a form made from the schema of the spec, beside the same spec as text, checked by the coordinator as it is typed.

import { get, post } from "../api.js";
import { Fields } from "../form.js";
import { count } from "../format.js";
import { useLoaded, useMessages, useSettled } from "../loading.js";
import { Failure, Loaded } from "../parts.js";
import { go, useTitle } from "../routing.js";
import { mergePatch, withValue } from "../schema.js";
import { SpecText } from "../spec_text.js";
import { html, useEffect, useRef, useState } from "../view.js";

const FIRST_LEARNER = "mlp";

export function SubmitPage({ query }) {
  useTitle("New run");
  const start = useLoaded((signal) => beginning(query.clone, signal), query.clone ?? "");
  useMessages((message) => message.event === "connection" && message.state === "live" && start.error && start.reload());
  return html`
    <div class="page-head"><div><h1>New run</h1>
      ${query.clone && html`<p class="quiet">From <a href=${`#/runs/${query.clone}`}><code>${query.clone}</code></a>: what you change here is changed in the clone.</p>`}</div></div>
    <${Loaded} from=${start} what="the form" lines=${12}>${(known) => html`<${Editor} ...${known} />`}<//>
  `;
}

async function beginning(cloned, signal) {
  const [schema, learners] = await Promise.all([get("spec/schema", {}, signal), get("learners", {}, signal).catch(noneKnown)]);
  const model = cloned && (await get(`runs/${cloned}`, {}, signal));
  const spec = model ? model.spec : learners.length ? await exampleOf(FIRST_LEARNER, signal) : { learner: { name: FIRST_LEARNER } };
  return { schema, learners, spec, cloned };
}

/** A coordinator that cannot tell its learners takes specs all the same: the learner is written by hand. */
function noneKnown(problem) {
  if (problem.isUnknownPath) return [];
  throw problem;
}

const exampleOf = async (name, signal) => (await get(`learners/${encodeURIComponent(name)}`, {}, signal)).example;

function Editor({ schema, learners, spec, cloned }) {
  const [document, setDocument] = useState(spec);
  const [verdict, setVerdict] = useState(null);
  const [failure, setFailure] = useState(null);
  const [isBusy, setBusy] = useState(false);
  const [typed, setTyped] = useState(null);
  const form = useRef(null);
  const check = useVerdict(document, setVerdict, setFailure);
  const errors = Object.fromEntries((verdict?.errors ?? []).map(({ path, message }) => [path, message]));
  // What cannot be read is not what would be submitted.
  const isUnread = typed?.document === document && Boolean(typed.problem);
  const isSound = check === "settled" && verdict?.valid && !isUnread;

  const changeLearner = async (name) => {
    try {
      const example = await exampleOf(name);
      // What was said of the run stays; what belongs to the old learner goes.
      setDocument((old) => ({ ...old, learner: example.learner, local: example.local ?? old.local }));
    } catch (error) {
      setFailure(error);
    }
  };
  const change = (path, value) => setDocument((old) => withValue(old, path, value));
  const submit = async (event) => {
    event.preventDefault();
    setBusy(true);
    setFailure(null);
    try {
      const path = cloned ? `runs/${cloned}/clone` : "runs";
      const made = await post(path, cloned ? mergePatch(spec, document) : document);
      go(`runs/${made.run_id}`);
    } catch (error) {
      setBusy(false);
      setFailure(error);
      if (error.errors?.length) setVerdict({ valid: false, errors: error.errors });
      form.current.querySelector('[aria-invalid="true"]')?.focus();
    }
  };
  return html`<div class="editor">
    <form class="editor-form card" onSubmit=${submit} ref=${form} aria-label="The spec of the run" novalidate>
      <${Fields} schema=${schema} path=${[]} form=${{ root: schema, document, errors, change, changeLearner, learners }} />
      <div class="editor-end">
        <${Verdict} check=${check} verdict=${verdict} isUnread=${isUnread} />
        ${failure && html`<${Failure} error=${failure} />`}
        <div class="actions"><a class="button" href="#/runs">Cancel</a>
          <button type="submit" class="button button-main" disabled=${isBusy || !isSound}>Submit run</button></div>
      </div>
    </form>
    <${SpecText} document=${document} typed=${typed} onTyped=${setTyped} onChange=${setDocument} />
  </div>`;
}

/** Have the coordinator check the document once typing pauses, and again when it was away. Returns "typing", "checking" or "settled". */
function useVerdict(document, setVerdict, setFailure) {
  const settled = useSettled(document, 300);
  const [checked, setChecked] = useState(null);
  const [returns, setReturns] = useState(0);
  useMessages((message) => message.event === "connection" && message.state === "live" && setReturns((old) => old + 1));
  useEffect(() => {
    let isOld = false;
    const tell = (verdict) => {
      if (isOld) return;
      setFailure(null);
      setVerdict(verdict);
      setChecked(settled);
    };
    post("runs/validate", settled).then(tell, (problem) => {
      if (problem.status === 422) tell({ valid: false, errors: problem.errors.length ? problem.errors : [{ path: "", message: problem.message }] });
      else if (!isOld) setFailure(problem);
    });
    return () => (isOld = true);
  }, [settled, returns]);
  if (settled !== document) return "typing";
  return checked === document ? "settled" : "checking";
}

function Verdict({ check, verdict, isUnread }) {
  const errors = verdict?.errors ?? [];
  if (isUnread) return html`<p class="verdict" role="status" data-verdict="faulty">The spec as text cannot be read. Mend it there, or change it in the form.</p>`;
  if (check === "settled" && verdict?.valid) return html`<p class="verdict" role="status" data-verdict="sound">The spec is sound.</p>`;
  if (!errors.length) return html`<p class="verdict quiet" role="status">Checking …</p>`;
  return html`<div class="verdict" role="status" data-verdict="faulty"><p>${count(errors.length)} ${errors.length === 1 ? "thing" : "things"} to mend:</p>
    <ul>${errors.map(({ path, message }) => html`<li key=${path + message}>${path && html`<a href=${`#${path}`} onClick=${(event) => lead(event, path)}><code>${path}</code></a>`} ${message}</li>`)}</ul></div>`;
}

/** Lead to the field of a problem, and open what it lies in. */
function lead(event, path) {
  event.preventDefault();
  const field = document.getElementById(path);
  for (let part = field?.closest("details"); part; part = part.parentElement.closest("details")) part.open = true;
  field?.focus();
}
