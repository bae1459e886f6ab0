// The spec as YAML or JSON, to read, to paste and to change. What is typed here shows in the form as soon as it can be read.

import { exactly, write } from "./exact.js";
import { html, useEffect, useState } from "./view.js";

let yaml = null;
let schema = null;

/** `typed` is {document, text, problem}: what was typed last, and what it was read as; while it cannot be read, it has a problem. */
export function SpecText({ document, typed, onTyped, onChange }) {
  const [language, setLanguage] = useState("yaml");
  const [isReady, setReady] = useState(Boolean(yaml));
  useEffect(() => {
    // Loaded here alone: no other page needs it.
    import("./vendor/js-yaml/js-yaml.min.js").then(() => {
      yaml = globalThis.jsyaml;
      schema = exactSchema();
      setReady(true);
    });
  }, []);
  // What somebody is typing stays as it is, until the document is changed elsewhere.
  const { text, problem } = typed?.document === document ? typed : { text: isReady ? written(document, language) : "", problem: "" };
  const type = (event) => {
    const given = event.target.value;
    try {
      const read = yaml.load(given, { schema });
      if (read === null || typeof read !== "object" || Array.isArray(read)) throw new Error("The spec must be a mapping of keys to values.");
      onTyped({ document: read, text: given, problem: "" });
      onChange(read);
    } catch (error) {
      onTyped({ document, text: given, problem: error.reason ? `${error.reason} in line ${error.mark.line + 1}.` : error.message });
    }
  };
  const choose = (next) => {
    setLanguage(next);
    onTyped(null);
  };
  return html`<section class="card editor-text" aria-labelledby="spec-text">
    <div class="card-head"><h2 id="spec-text">As text</h2>
      <div class="segments" role="group" aria-label="Language">
        ${["yaml", "json"].map((name) => html`<button type="button" key=${name} class="segment" aria-pressed=${name === language} onClick=${() => choose(name)}>${name.toUpperCase()}</button>`)}
      </div></div>
    <textarea class="input code" aria-label="The spec as text" spellcheck=${false} rows="28" aria-invalid=${problem ? "true" : null} aria-describedby="spec-text-problem" value=${text} onInput=${type} disabled=${!isReady}></textarea>
    <p class="field-error" id="spec-text-problem" role="status">${problem}</p>
    <p class="quiet small">Save it as <code>run.yaml</code>, and <code>choral submit run.yaml</code> does the same.</p>
  </section>`;
}

function written(document, language) {
  return language === "json" ? write(document, 2) : yaml.dump(document, { schema, flowLevel: 2, lineWidth: 100 });
}

/** YAML's core schema, with whole numbers of any size. */
function exactSchema() {
  const { int } = yaml.types;
  const construct = (text) => exactly(int.construct(text), text.replaceAll("_", ""));
  return yaml.CORE_SCHEMA.extend({ implicit: [new yaml.Type(int.tag, { kind: "scalar", resolve: int.resolve, construct, predicate: (value) => typeof value === "bigint" || int.predicate(value), represent: String })] });
}
