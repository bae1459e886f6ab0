// Numbers, times and words as people read them.

const WHOLE = new Intl.NumberFormat("en-GB");
const CLOCK = { hour: "2-digit", minute: "2-digit", second: "2-digit" };
const MOMENT = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short", year: "numeric", ...CLOCK, timeZoneName: "short" });
const DAY = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short", year: "numeric" });
const TIME = new Intl.DateTimeFormat("en-GB", CLOCK);
const AGO = new Intl.RelativeTimeFormat("en-GB", { numeric: "auto" });
const NONE = "–";

export const count = (value) => (value == null ? NONE : WHOLE.format(value));
/** A part in percent, which is nothing and all only where it is. */
export function percent(part) {
  if (part <= 0 || part >= 1) return `${100 * part} %`;
  return `${Math.min(Math.max(100 * part, 0.1), 99.9).toFixed(part < 0.1 || part > 0.99 ? 1 : 0)} %`;
}

export const plural = (value, word) => `${count(value)} ${word}${value === 1 ? "" : "s"}`;
export const shortId = (id) => (id.length > 12 ? `${id.slice(0, 10)}…` : id);
export const words = (name) => name.replaceAll("_", " ");
export const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);

/** A metric's value, to four significant digits. */
export function value(number) {
  if (number == null || !Number.isFinite(number)) return NONE;
  if (Number.isInteger(number) && Math.abs(number) < 1e6) return count(number);
  const size = Math.abs(number);
  return size >= 1e6 || size < 1e-3 ? number.toExponential(2) : number.toPrecision(4);
}

/** A value beside an axis, as short as it can be. */
export const tick = (number) => (Math.abs(number) >= 1e5 || (number && Math.abs(number) < 1e-3) ? number.toExponential(0) : String(Number(number.toPrecision(6))));

export function bytes(number) {
  if (number == null) return NONE;
  const units = ["B", "kB", "MB", "GB", "TB"];
  const rounded = Number(number.toPrecision(3));
  const step = Math.min(units.length - 1, rounded < 1000 ? 0 : Math.floor(Math.log10(rounded) / 3));
  return `${Number((rounded / 1000 ** step).toPrecision(3))} ${units[step]}`;
}

export function seconds(number) {
  if (number == null || !Number.isFinite(number)) return NONE;
  if (number === 0) return "0 s";
  if (number < 0.001) return "under 1 ms";
  if (number < 0.9995) return `${Math.round(1000 * number)} ms`;
  if (number < 59.5) return `${number.toFixed(number < 9.95 ? 1 : 0)} s`;
  if (number < 60) return "1 min";
  for (const [size, name, below, rest] of [[86_400, "d", 3600, "h"], [3600, "h", 60, "min"], [60, "min", 1, "s"]]) {
    if (number < size) continue;
    const left = Math.floor((number % size) / below);
    return `${Math.floor(number / size)} ${name}${left ? ` ${left} ${rest}` : ""}`;
  }
  return NONE;
}

/** Seconds beside an axis, all in one unit. */
export function secondsTicks(numbers) {
  const most = Math.max(...numbers);
  if (most < 1) return numbers.map((one) => `${Number((1000 * one).toPrecision(3))} ms`);
  return numbers.map((one) => (most < 120 ? `${Number(one.toPrecision(3))} s` : seconds(one)));
}

/** A moment in seconds since the epoch, in this browser's time zone, which it names. */
export const moment = (time) => (time == null ? NONE : MOMENT.format(1000 * time));

/** The same, short: the time of today, or the day of another. */
export function clock(time, now = Date.now() / 1000) {
  const [day, today] = [time, now].map((one) => DAY.format(1000 * one));
  return day === today ? TIME.format(1000 * time) : day;
}

export function ago(time, now = Date.now() / 1000) {
  if (time == null) return NONE;
  const passed = Math.max(0, now - time);
  if (passed < 10) return "just now";
  for (const [unit, size] of [["day", 86_400], ["hour", 3600], ["minute", 60]]) {
    if (passed >= size) return AGO.format(-Math.floor(passed / size), unit);
  }
  return AGO.format(-Math.floor(passed), "second");
}

/** What kinds of events are called. */
export const eventName = (kind) => capital(words(kind));
