// Charts: uPlot in the page's colours, with words for who cannot see them and the same numbers as a table.

import { count, tick, value as plain } from "./format.js";
import { colour, onTheme } from "./theme.js";
import { html, useEffect, useRef, useState } from "./view.js";

const HEIGHT = 240;
const STEPS = [1, 2, 5].flatMap((step) => [0, 1, 2, 3, 4, 5].map((power) => step * 10 ** power)).sort((a, b) => a - b);
/** Colours and dashes by which up to six lines are told apart, without colour too. */
export const MARKS = [[], [6, 3], [2, 3], [9, 3, 2, 3], [12, 4], [4, 2, 1, 2]].map((dash, index) => ({ tint: `line-${index + 1}`, dash }));

/**
 * Draw lines, or stacked bars, over rounds.
 *
 * `lines` are {name, values, low, high, tint, dash}: `low` and `high` give a band. `show` turns a value into text, `ticks` the numbers
 * beside the axis. Zoom by dragging; a double click shows everything again.
 */
export function Chart({ label, rounds, lines, areBars = false, show = plain, ticks = (numbers) => numbers.map(tick) }) {
  const place = useRef(null);
  const plot = useRef(null);
  const shape = lines.map((line) => `${line.name}/${line.tint}/${Boolean(line.low)}`).join("|");
  const data = dataOf(rounds, lines, areBars);
  const latest = useRef({});
  latest.current = { data, lines };

  useEffect(() => {
    const draw = () => {
      plot.current?.destroy();
      const options = optionsOf(place.current.clientWidth, { lines, areBars, show, ticks, latest });
      plot.current = new globalThis.uPlot(options, latest.current.data, place.current);
    };
    draw();
    const resized = new ResizeObserver(([entry]) => {
      const width = Math.floor(entry.contentRect.width);
      if (width && width !== plot.current.width) plot.current.setSize({ width, height: HEIGHT });
    });
    resized.observe(place.current);
    const end = onTheme(draw);
    return () => {
      end();
      resized.disconnect();
      plot.current.destroy();
      plot.current = null;
    };
  }, [shape, areBars]);
  useEffect(() => {
    // A part that somebody zoomed into stays as it is.
    const { min, max } = plot.current.scales.x;
    const shown = plot.current.data[0];
    const isWhole = min == null || (min <= shown[0] && max >= shown.at(-1));
    plot.current.setData(data, isWhole);
    if (!isWhole) plot.current.setScale("x", { min, max });
  }, [data]);

  return html`<figure class="chart">
    <div ref=${place} role="img" aria-label=${`${label}. ${words(rounds, lines, show)}`}></div>
    <${Numbers} label=${label} rounds=${rounds} lines=${lines} show=${show} />
  </figure>`;
}

/** The chart's numbers, made only when somebody opens them. */
function Numbers({ label, rounds, lines, show }) {
  const [isOpen, setOpen] = useState(false);
  const hasSpread = lines.length === 1 && lines[0].low;
  return html`<details class="numbers" onToggle=${(event) => setOpen(event.target.open)}>
    <summary>As a table</summary>
    ${isOpen && html`<div class="scroll" tabindex="0" role="region" aria-label=${`${label}, as a table`}>
      <table class="table table-dense table-plain">
        <caption class="unseen">${label}</caption>
        <thead><tr><th scope="col" class="number">Round</th>${lines.map((line) => html`<th scope="col" class="number" key=${line.name}>${line.name}</th>`)}
          ${hasSpread && html`<th scope="col" class="number">Lowest</th><th scope="col" class="number">Highest</th>`}</tr></thead>
        <tbody>${rounds.map((round, index) => html`<tr key=${round}><th scope="row" class="number">${count(round)}</th>
          ${lines.map((line) => html`<td class="number" key=${line.name}>${show(line.values[index])}</td>`)}
          ${hasSpread && html`<td class="number">${show(lines[0].low[index])}</td><td class="number">${show(lines[0].high[index])}</td>`}
        </tr>`)}</tbody>
      </table>
    </div>`}
  </details>`;
}

function words(rounds, lines, show) {
  const parts = lines.map((line) => {
    const known = line.values.filter((one) => one != null);
    return known.length ? `${line.name} from ${show(known[0])} to ${show(known.at(-1))}` : `${line.name} without values`;
  });
  return `Rounds ${rounds[0]} to ${rounds.at(-1)}: ${parts.join("; ")}`;
}

/** Return uPlot's columns: rounds, then each line, with the two edges of its band behind it; of bars, the sums up to each part. */
function dataOf(rounds, lines, areBars) {
  if (!areBars) return [rounds, ...lines.flatMap((line) => (line.low ? [line.values, line.high, line.low] : [line.values]))];
  const sums = [];
  for (const line of lines) sums.push(line.values.map((one, index) => (one ?? 0) + (sums.at(-1)?.[index] ?? 0)));
  // The tallest first, so that each lower part is drawn over it.
  return [rounds, ...sums.reverse()];
}

function optionsOf(width, { lines, areBars, show, ticks, latest }) {
  // Where nobody points at a round, the last value of each line is told.
  const pointed = (values, place) => (place == null ? values.findLast((one) => one != null) : values[place]);
  const series = [{ label: "Round", value: (_, __, ___, place) => (place == null ? "latest" : count(latest.current.data[0][place])) }];
  const bands = [];
  const ordered = areBars ? lines.toReversed() : lines;
  for (const [index, line] of ordered.entries()) {
    const stroke = colour(line.tint);
    const at = areBars ? lines.length - 1 - index : index;
    const shown = (_, __, ___, place) => show(pointed(latest.current.lines[at]?.values ?? [], place));
    series.push({
      label: line.name,
      stroke,
      value: shown,
      width: areBars ? 0 : 2,
      dash: line.dash,
      spanGaps: true,
      // A value that stands alone makes no line.
      points: { show: (plot, place) => !areBars && plot.data[place].filter((one) => one != null).length === 1, size: 8, fill: stroke },
      ...(areBars && { fill: stroke, paths: globalThis.uPlot.paths.bars({ size: [0.8, 40] }) }),
    });
    if (line.low) {
      const edge = { class: "chart-edge", stroke: "transparent", width: 0, spanGaps: true, points: { show: false } };
      bands.push({ series: [series.length, series.length + 1], fill: `color-mix(in srgb, ${stroke} 16%, transparent)` });
      series.push({ ...edge, label: `${line.name}, highest` }, { ...edge, label: `${line.name}, lowest` });
    }
  }
  const axis = {
    stroke: colour("quiet"),
    grid: { stroke: colour("line"), width: 1 },
    ticks: { show: false },
    font: "12px system-ui, sans-serif",
  };
  return {
    width,
    height: HEIGHT,
    series,
    bands,
    padding: [12, 24, 0, 0],
    cursor: { points: { size: 7 }, y: false },
    scales: { x: { time: false, range: (plot, low, high) => edges(plot.data[0], low, high, areBars) }, y: areBars ? { range: (_, __, high) => [0, (high || 1) * 1.05] } : {} },
    axes: [
      { ...axis, incrs: STEPS, size: 34, values: (_, splits) => splits.map((split) => (Number.isInteger(split) ? count(split) : "")) },
      { ...axis, size: 64, values: (_, splits) => ticks(splits) },
    ],
  };
}

/** Return where the axis of rounds begins and ends: uPlot would have a single round stand between two that there are not. */
function edges(rounds, low, high, areBars) {
  if (rounds.length === 1) return [rounds[0] - 0.6, rounds[0] + 0.6];
  return areBars ? [low - 0.6, high + 0.6] : [low, high];
}

/** A line of a few values in the height of a word. */
export function Sparkline({ values, label }) {
  const known = values.filter((one) => one != null);
  if (known.length < 2) return html`<span class="quiet">–</span>`;
  const [low, high] = [Math.min(...known), Math.max(...known)];
  const points = known.map((one, index) => {
    const across = 2 + (96 * index) / (known.length - 1);
    const up = high === low ? 12 : 22 - (20 * (one - low)) / (high - low);
    return `${across.toFixed(1)},${up.toFixed(1)}`;
  });
  return html`<svg class="sparkline" viewBox="0 0 100 24" role="img" aria-label=${label} preserveAspectRatio="none">
    <polyline points=${points.join(" ")} fill="none" vector-effect="non-scaling-stroke" />
  </svg>`;
}
