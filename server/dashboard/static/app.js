// The frame of the dashboard: who is signed in, the way around, the connection, and the page of the present place.

import { get, setToken, token } from "./api.js";
import { useLoaded, useMessages } from "./loading.js";
import { ClientPage } from "./pages/client.js";
import { ClientsPage } from "./pages/clients.js";
import { ComparePage } from "./pages/compare.js";
import { RunPage } from "./pages/run.js";
import { RunsPage } from "./pages/runs.js";
import { SignIn } from "./pages/sign_in.js";
import { SubmitPage } from "./pages/submit.js";
import { SystemPage } from "./pages/system.js";
import { Failure, Loading, NotFound } from "./parts.js";
import { usePlace } from "./routing.js";
import { connection, follow, unfollow } from "./stream.js";
import { ThemeButton } from "./theme.js";
import { html, render, useEffect, useLayoutEffect, useState } from "./view.js";

const PLACES = [
  ["runs", "Runs"],
  ["compare", "Compare"],
  ["clients", "Clients"],
  ["system", "System"],
];

// Too many wrong tokens came from this address.
const TOO_MANY = 429;

function App() {
  const [refusal, setRefusal] = useState(null);
  const me = useLoaded((signal) => get("me", {}, signal), "me");
  const refused = [401, 403, TOO_MANY].includes(me.error?.status) ? me.error : null;

  useEffect(() => {
    if (me.data) follow();
    // Who has to wait may have the right token.
    if (refused?.status === TOO_MANY) setRefusal(refused);
    else if (refused && token()) {
      setToken("");
      setRefusal(refused);
    }
  }, [me.data, me.error]);
  useMessages((message) => message.event === "refused" && me.reload());

  const signIn = (given) => {
    setRefusal(null);
    setToken(given);
    me.reload();
  };
  const signOut = () => {
    unfollow();
    setToken("");
    location.reload();
  };
  if (me.isLoading) return html`<main class="page"><${Loading} what="the dashboard" /></main>`;
  if (refused) return html`<${SignIn} refusal=${refusal} onToken=${signIn} />`;
  if (!me.data) return html`<main class="page"><${Failure} error=${me.error} retry=${me.reload} /></main>`;
  return html`<${Frame} me=${me.data} onSignOut=${signOut} />`;
}

function Frame({ me, onSignOut }) {
  const here = usePlace();
  const first = here.parts[0] ?? "runs";
  // A new page begins at its top, and a screen reader at its main part: before anybody can have pressed a key on it.
  useLayoutEffect(() => {
    scrollTo(0, 0);
    document.getElementById("main").focus({ preventScroll: true });
  }, [here.path]);
  const skip = (event) => {
    event.preventDefault();
    document.getElementById("main").focus();
  };
  return html`
    <a class="skip" href="#main" onClick=${skip}>Skip to content</a>
    <header class="top">
      <a class="brand" href="#/runs" aria-label="Choral, to the runs"><img src="dashboard/icon.svg" alt="" width="24" height="24" />Choral</a>
      <nav class="places" aria-label="Main">
        ${PLACES.map(([path, name]) => html`<a key=${path} href=${`#/${path}`} aria-current=${path === first ? "page" : null}>${name}</a>`)}
      </nav>
      <div class="top-end">
        <${Connection} />
        ${me.role === "operator" && html`<a class="button button-main" href="#/submit">New run</a>`}
        <${ThemeButton} />
        ${token() && html`<button type="button" class="button" onClick=${onSignOut} title=${`Signed in as ${me.name}, ${me.role}`}>Sign out</button>`}
      </div>
    </header>
    <main id="main" class="page" tabindex="-1"><${Page} key=${here.parts.join("/")} here=${here} first=${first} isOperator=${me.role === "operator"} me=${me} /></main>
  `;
}

function Page({ here, first, isOperator, me }) {
  const [, id] = here.parts;
  if (first === "runs" && id) return html`<${RunPage} runId=${id} query=${here.query} isOperator=${isOperator} />`;
  if (first === "runs") return html`<${RunsPage} query=${here.query} isOperator=${isOperator} />`;
  if (first === "compare") return html`<${ComparePage} query=${here.query} />`;
  if (first === "clients" && id) return html`<${ClientPage} clientId=${id} />`;
  if (first === "clients") return html`<${ClientsPage} query=${here.query} />`;
  if (first === "submit" && isOperator) return html`<${SubmitPage} query=${here.query} />`;
  if (first === "system") return html`<${SystemPage} me=${me} />`;
  return html`<${NotFound} title="There is no such page."><a href="#/runs">To the runs</a><//>`;
}

function Connection() {
  const [state, setState] = useState(connection());
  useMessages((message) => message.event === "connection" && setState(message.state));
  const names = { live: "Live", connecting: "Connecting …", reconnecting: "Reconnecting …" };
  return html`<span class="connection" role="status" data-state=${state}><span class="connection-mark" aria-hidden="true"></span>${names[state]}</span>`;
}

const root = document.getElementById("app");
root.replaceChildren();
render(html`<${App} />`, root);
