// A form made from a JSON Schema: a field for each key, with its description, rule, default and what the coordinator finds wrong.

import { get } from "./api.js";
import { capital, words } from "./format.js";
import { useLoaded } from "./loading.js";
import { kindOf, readAny, readList, readNumber, resolve, ruleOf, shown, valueAt, withValue } from "./schema.js";
import { html, useEffect, useState } from "./view.js";

/**
 * Fields for the properties of an object schema.
 *
 * `form` is {root, document, change(path, value), errors, learners}: the whole schema, the document, and problems as {path: sentence}.
 */
export function Fields({ schema, path, form }) {
  return Object.entries(schema.properties).map(([key, part]) => {
    const field = [...path, key];
    const isRequired = schema.required?.includes(key) ?? false;
    return html`<${Field} key=${field.join(".")} name=${key} path=${field} part=${part} isRequired=${isRequired} form=${form} />`;
  });
}

function Field({ name, path, part, isRequired, form }) {
  const { schema, isNullable } = resolve(part, form.root);
  const kind = kindOf(schema);
  const props = { name, path, schema, isNullable, isRequired, form };
  if (kind === "group" || kind === "named" || kind === "variants") return html`<${Group} ...${props} kind=${kind} />`;
  return html`<${Line} ...${props} kind=${kind} />`;
}

/** Fields that belong together. One that may be absent has a box to tick. */
function Group({ name, path, schema, isNullable, isRequired, form, kind }) {
  const key = path.join(".");
  const set = valueAt(form.document, path);
  const isOn = set !== undefined && set !== null;
  const problems = Object.keys(form.errors).filter((one) => one === key || one.startsWith(`${key}.`)).length;
  const inner = { group: GroupFields, named: NamedFields, variants: VariantFields }[kind];
  const turn = (event) => form.change(path, event.target.checked ? {} : undefined);
  return html`<details class="group" open=${isRequired || isOn || problems > 0}>
    <summary><span class="group-name">${capital(words(name))}</span>${problems > 0 && html`<span class="group-problems">${problems} to mend</span>`}
      ${!isOn && !isRequired && html`<span class="quiet small">${isNullable ? "off" : "defaults"}</span>`}</summary>
    <div class="group-body">
      ${schema.description && html`<p class="quiet small">${plainText(schema.description)}</p>`}
      ${form.errors[key] && html`<p class="field-error" id=${`${key}-error`}>${form.errors[key]}</p>`}
      ${isNullable && html`<label class="tick"><input type="checkbox" id=${key} checked=${isOn} onChange=${turn} /> Use ${words(name)}</label>`}
      ${(!isNullable || isOn) && html`<${inner} schema=${schema} path=${path} form=${form} />`}
    </div>
  </details>`;
}

const GroupFields = ({ schema, path, form }) => html`<${Fields} schema=${schema} path=${path} form=${form} />`;

/** One of several kinds, chosen by name, with fields of its own. */
function VariantFields({ schema, path, form }) {
  const { mapping, propertyName } = schema.discriminator;
  const chosen = valueAt(form.document, path)?.[propertyName] ?? "";
  const variant = mapping[chosen] && resolve({ $ref: mapping[chosen] }, form.root).schema;
  const { [propertyName]: _, ...properties } = variant?.properties ?? {};
  const choose = (event) => form.change(path, event.target.value ? { [propertyName]: event.target.value } : undefined);
  return html`<div class="field"><label class="field-name" for=${path.join(".")}>Kind</label>
      <select class="input" id=${path.join(".")} onChange=${choose}>${["", ...Object.keys(mapping)].map((name) => html`<option key=${name} value=${name} selected=${name === chosen}>${name || "default"}</option>`)}</select></div>
    ${variant && html`<${Fields} schema=${{ ...variant, properties }} path=${path} form=${form} />`}`;
}

/** Something chosen by name: of a learner, the fields of its own schema; of others, keys and values. */
function NamedFields({ path, schema, form }) {
  const set = valueAt(form.document, path) ?? schema.default ?? {};
  if (path.join(".") === "learner" && form.learners.length) return html`<${LearnerFields} path=${path} form=${form} />`;
  const change = (key, value) => form.change(path, withValue(set, [key], value));
  const names = Object.keys(set).filter((key) => key !== "name");
  return html`
    <${Text} id=${`${path.join(".")}.name`} name="Name" value=${shown(set.name)} read=${asText} onChange=${(next) => change("name", next)} error=${form.errors[`${path.join(".")}.name`]} />
    ${names.map((key) => html`<${Text} key=${key} id=${`${path.join(".")}.${key}`} name=${capital(words(key))} value=${shown(set[key])} read=${readAny} onChange=${(next) => change(key, next)} error=${form.errors[`${path.join(".")}.${key}`]} />`)}
    <${NewKey} path=${path} onAdd=${(key, value) => change(key, value)} />`;
}

function LearnerFields({ path, form }) {
  const set = valueAt(form.document, path) ?? {};
  const shape = useLoaded((signal) => (set.name ? get(`learners/${encodeURIComponent(set.name)}`, {}, signal) : Promise.resolve({})), set.name ?? "");
  const schema = shape.data?.parameters_schema;
  const choose = (event) => form.changeLearner(event.target.value);
  return html`<div class="field"><label class="field-name" for="learner.name">Name</label>
      <select class="input" id="learner.name" aria-invalid=${form.errors["learner.name"] ? "true" : null} onChange=${choose}>
        ${!set.name && html`<option value="">Choose one</option>`}
        ${form.learners.map(({ name, summary }) => html`<option key=${name} value=${name} selected=${name === set.name}>${name} – ${summary}</option>`)}
      </select>
      ${form.errors["learner.name"] && html`<p class="field-error">${form.errors["learner.name"]}</p>`}</div>
    ${schema && html`<${Fields} schema=${schema} path=${path} form=${{ ...form, root: schema }} />`}`;
}

function NewKey({ path, onAdd }) {
  const [key, setKey] = useState("");
  const [text, setText] = useState("");
  const add = () => {
    if (!key.trim() || !text.trim()) return;
    onAdd(key.trim(), readAny(text));
    setKey("");
    setText("");
  };
  return html`<div class="new-key">
    <input class="input" placeholder="Parameter" aria-label=${`New parameter of ${words(path.at(-1))}`} value=${key} onInput=${(event) => setKey(event.target.value)} />
    <input class="input" placeholder="Value" aria-label="Its value" value=${text} onInput=${(event) => setText(event.target.value)} />
    <button type="button" class="button" onClick=${add}>Add</button>
  </div>`;
}

/** One field with its label, description, rule and problem. */
function Line({ name, path, schema, isNullable, isRequired, form, kind }) {
  const id = path.join(".");
  const value = valueAt(form.document, path);
  const error = form.errors[id];
  const change = (next) => form.change(path, next);
  const about = [schema.description && plainText(schema.description), ruleOf(schema) && `${capital(ruleOf(schema))}.`].filter(Boolean).join(" ");
  const title = capital(words(name));
  if (kind === "choice" || kind === "flag") {
    const options = kind === "flag" ? [true, false] : schema.enum;
    const byDefault = schema.default === undefined || schema.default === null ? "none" : String(schema.default);
    return html`<div class="field"><label class="field-name" for=${id}>${title}</label>
      <select class="input" id=${id} aria-describedby=${`${id}-about`} aria-invalid=${error ? "true" : null} onChange=${(event) => change(event.target.value === "" ? undefined : options[Number(event.target.value)])}>
        ${(!isRequired || value === undefined) && html`<option value="" selected=${value === undefined}>default (${byDefault})</option>`}
        ${options.map((option, index) => html`<option key=${index} value=${index} selected=${option === value}>${String(option)}</option>`)}
      </select><${About} id=${id} about=${about} error=${error} /></div>`;
  }
  const read = { number: readNumber, text: asText, list: readList, json: readAny }[kind];
  const byDefault = schema.default === undefined || schema.default === null ? (isNullable ? "none" : "") : shown(schema.default);
  return html`<${Text} id=${id} name=${title} isRequired=${isRequired} placeholder=${byDefault && `default: ${byDefault}`} value=${shown(value ?? undefined)}
    isNumber=${kind === "number"} read=${read} onChange=${change} about=${about} error=${error} />`;
}

/** A line of text that keeps what is being typed, although "1." and "1" are the same number. */
function Text({ id, name, value, placeholder, read, onChange, about, error, isNumber, isRequired }) {
  const [text, setText] = useState(value);
  const [told, setTold] = useState(value);
  useEffect(() => {
    if (value !== told) {
      setText(value);
      setTold(value);
    }
  }, [value]);
  const type = (event) => {
    const next = read(event.target.value);
    setText(event.target.value);
    setTold(shown(next));
    onChange(next);
  };
  return html`<div class="field"><label class="field-name" for=${id}>${name}${isRequired && html`<span class="quiet"> · needed</span>`}</label>
    <input class="input" id=${id} value=${text} placeholder=${placeholder} spellcheck=${false} autocomplete="off" inputmode=${isNumber ? "decimal" : null}
      aria-invalid=${error ? "true" : null} aria-describedby=${`${id}-about`} onInput=${type} />
    <${About} id=${id} about=${about} error=${error} /></div>`;
}

function About({ id, about, error }) {
  return html`<div id=${`${id}-about`}>${error && html`<p class="field-error">${error}</p>`}${about && html`<p class="field-about">${about}</p>`}</div>`;
}

const asText = (text) => (text === "" ? undefined : text);

const plainText = (description) => description.replaceAll("`", "").replaceAll(/\s+/g, " ");
