// The coordinator itself: how it fares, who looks, and what has happened.

import { get } from "../api.js";
import { bytes, capital, count, seconds } from "../format.js";
import { useLoaded } from "../loading.js";
import { Card, Facts, Loaded } from "../parts.js";
import { useTitle } from "../routing.js";
import { html, useEffect } from "../view.js";
import { Events } from "./events.js";

const EVERY_MILLISECONDS = 5_000;

export function SystemPage({ me }) {
  useTitle("System");
  const health = useLoaded((signal) => get("health", {}, signal), "health");
  useEffect(() => {
    const timer = setInterval(health.reload, EVERY_MILLISECONDS);
    return () => clearInterval(timer);
  }, []);
  return html`
    <div class="page-head"><h1>System</h1></div>
    <div class="cards">
      <${Card} title="Coordinator"><${Loaded} from=${health.error ? { ...health, data: undefined } : health} what="the coordinator's health">${(known) => html`<${Facts} facts=${[
        ["Status", known.status === "ok" ? "Well" : capital(known.status)],
        ["Running for", seconds(known.uptime_seconds)],
        ["Clients connected", count(known.client_count)],
        // The system notes a peak a little later than what is there.
        ["Memory", `${bytes(known.rss_bytes)}, ${bytes(Math.max(known.rss_bytes, known.peak_rss_bytes))} at its peak`],
        ["Longest stall of its event loop", seconds(known.longest_stall_seconds)],
        ["Protocol version", String(known.protocol_version)],
      ]} />`}<//><//>
      <${Card} title="You"><${Facts} facts=${[
        ["Name", me.name],
        ["Role", `${capital(me.role)}: ${me.role === "operator" ? "may submit, pause, resume and stop runs" : "may look, and change nothing"}`],
        ["Time zone", Intl.DateTimeFormat().resolvedOptions().timeZone],
      ]} /><//>
      <${Events} title="Latest events" />
    </div>
  `;
}
