import type { JSX } from "preact";
import { clockTime } from "../lib/format.ts";
import type { Row } from "../lib/timeline.ts";
import type { Recording } from "../api/types.ts";

/**
 * Strip is the hour at a glance: recorded, missing, on its way. It repeats the
 * list for the eye and the pointer, so assistive technology is spared it.
 */
export function Strip(props: {
  rows: Row[];
  now: number;
  windowMs: number;
  chosen: string | undefined;
  onChoose: (r: Recording) => void;
}): JSX.Element {
  const from = props.now - props.windowMs;
  const percent = (t: number): number => (Math.min(Math.max(t - from, 0), props.windowMs) / props.windowMs) * 100;
  const quarter = props.windowMs / 4;
  return (
    <div class="strip" aria-hidden="true">
      <div class="strip-bar">
        {props.rows.map((r) => (
          <span
            key={r.key}
            class={`seg ${r.kind} ${r.key === props.chosen ? "chosen" : ""}`}
            style={{ left: `${percent(r.start)}%`, width: `${percent(r.end) - percent(r.start)}%` }}
            title={r.kind === "gap" ? `${clockTime(r.start)}: ${r.sentence}` : clockTime(r.start)}
            onClick={r.kind === "recording" ? () => props.onChoose(r.recording) : undefined}
          />
        ))}
      </div>
      <div class="strip-scale">
        {[0, 1, 2, 3].map((i) => (
          <span key={i}>{clockTime(from + i * quarter).replace(/(\d+[:.]\d+)[:.]\d+/, "$1")}</span>
        ))}
        <span>now</span>
      </div>
    </div>
  );
}
