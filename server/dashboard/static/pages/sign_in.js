// Asks for a bearer token, and says so when one was refused.

import { useTitle } from "../routing.js";
import { html, useState } from "../view.js";

export function SignIn({ refusal, onToken }) {
  useTitle("Sign in");
  const [given, setGiven] = useState("");
  const submit = (event) => {
    event.preventDefault();
    if (given.trim()) onToken(given.trim());
  };
  return html`<main class="sign-in" id="main">
    <form class="card" onSubmit=${submit}>
      <p class="brand"><img src="dashboard/icon.svg" alt="" width="28" height="28" />Choral</p>
      <h1>Sign in</h1>
      <p class="quiet">This coordinator asks for a bearer token. Its operator creates one with <code>choral token</code>.</p>
      ${refusal && html`<div class="notice notice-bad" role="alert" id="refusal"><p>${refusal.status !== 429 && html`<strong>The token was refused.</strong> `}${refusal.message}</p></div>`}
      <label class="field" for="token">
        <span class="field-name">Token</span>
        <input id="token" class="input" type="password" autocomplete="off" spellcheck=${false} autofocus
          aria-invalid=${refusal ? "true" : null} aria-describedby=${refusal ? "refusal" : null}
          value=${given} onInput=${(event) => setGiven(event.target.value)} />
      </label>
      <button class="button button-main" type="submit">Sign in</button>
      <p class="quiet small">The token stays in this tab and is forgotten when the tab is closed.</p>
    </form>
  </main>`;
}
