// Light or dark: the system's choice until somebody presses the button.

import { html, useEffect, useState } from "./view.js";

const KEY = "choral.theme";
const system = matchMedia("(prefers-color-scheme: dark)");

export const isDark = () => (document.documentElement.dataset.theme ?? (system.matches ? "dark" : "light")) === "dark";

/** Call `hear` whenever the colours change. */
export function onTheme(hear) {
  addEventListener("theme", hear);
  system.addEventListener("change", hear);
  return () => {
    removeEventListener("theme", hear);
    system.removeEventListener("change", hear);
  };
}

/** Return the present value of a colour of the style sheet, as a canvas takes it. */
export function colour(name) {
  const probe = document.createElement("span");
  probe.style.color = `var(--${name})`;
  document.body.append(probe);
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}

export function ThemeButton() {
  const [dark, setDark] = useState(isDark());
  useEffect(() => onTheme(() => setDark(isDark())), []);
  const turn = () => {
    const next = isDark() ? "light" : "dark";
    document.documentElement.dataset.theme = next;
    localStorage.setItem(KEY, next);
    dispatchEvent(new Event("theme"));
  };
  return html`<button type="button" class="button button-icon" onClick=${turn} aria-label=${dark ? "Light colours" : "Dark colours"} title=${dark ? "Light colours" : "Dark colours"}>
    <svg viewBox="0 0 20 20" width="18" height="18" aria-hidden="true"><circle cx="10" cy="10" r="6.2" fill="none" stroke="currentColor" stroke-width="1.6" /><path d="M10 3.8a6.2 6.2 0 0 1 0 12.4z" fill="currentColor" /></svg>
  </button>`;
}
