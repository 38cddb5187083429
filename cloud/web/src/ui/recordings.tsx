import type { JSX } from "preact";
import type { Channel, Recording } from "../api/types.ts";
import { clockTime, dayName, duration, fileName, fullTime, size } from "../lib/format.ts";
import { save } from "../lib/save.ts";
import { at, type Row } from "../lib/timeline.ts";
import { Download, Play } from "./icons.tsx";
import { freshURL } from "./playback.tsx";

/** Recordings lists the last hour, newest first, with what is missing in its place. */
export function Recordings(props: {
  channel: Channel;
  rows: Row[];
  loaded: boolean;
  chosen: string | undefined;
  onChoose: (r: Recording) => void;
}): JSX.Element {
  const { rows } = props;
  const zone = Intl.DateTimeFormat().resolvedOptions().timeZone;
  // Times alone are clear unless midnight is among them.
  const days = new Set(rows.map((r) => dayName(r.start))).size > 1;
  return (
    <section class="recordings" aria-labelledby="recordings-title">
      <header>
        <h2 id="recordings-title">Recordings</h2>
        <span class="hint" title={`Times are in ${zone}`}>
          last hour
        </span>
      </header>
      {rows.length === 0 && (
        <p class="empty">{props.loaded ? "No recordings in the last hour. The first appears about half a minute after the stream starts." : "Loading…"}</p>
      )}
      <ol data-testid="recordings">
        {rows.map((row, i) => (
          <RowItem
            key={row.key}
            row={row}
            channel={props.channel}
            day={days && (i === 0 || dayName(row.start) !== dayName(rows[i - 1]!.start))}
            chosen={row.key === props.chosen}
            onChoose={props.onChoose}
          />
        ))}
      </ol>
    </section>
  );
}

function RowItem(props: {
  row: Row;
  channel: Channel;
  day: boolean;
  chosen: boolean;
  onChoose: (r: Recording) => void;
}): JSX.Element {
  const { row } = props;
  return (
    <>
      {props.day && <li class="day">{dayName(row.start)}</li>}
      {row.kind === "recording" && <RecordingItem {...props} recording={row.recording} />}
      {row.kind === "gap" && (
        <li class="row gap" data-testid="gap-item">
          <span class="row-time">
            {clockTime(row.start)} – {clockTime(row.end)}
          </span>
          <span class="row-meta">missing {duration(row.end - row.start)}</span>
          <span class="row-why">{row.sentence}</span>
        </li>
      )}
      {row.kind === "pending" && (
        <li class="row pending" data-testid="pending-item">
          <span class="row-time">{clockTime(row.start)}</span>
          <span class="row-meta">{duration(row.end - row.start)}</span>
          <span class="row-why">Recorded; still on its way from the hub.</span>
        </li>
      )}
    </>
  );
}

function RecordingItem(props: {
  channel: Channel;
  recording: Recording;
  chosen: boolean;
  onChoose: (r: Recording) => void;
}): JSX.Element {
  const { recording: r } = props;
  const start = at(r.start);
  const name = `${clockTime(start)}, ${duration(r.media_ms)}`;
  const download = async (e: MouseEvent): Promise<void> => {
    e.preventDefault();
    const url = await freshURL(props.channel.id, r).catch(() => r.url);
    if (url) await save(url, fileName(props.channel.name, start));
  };
  return (
    <li class={`row recording ${props.chosen ? "chosen" : ""}`}>
      <button
        type="button"
        class="row-button"
        data-testid="recording-item"
        data-recording={r.id}
        aria-label={`Play recording of ${name}`}
        aria-pressed={props.chosen}
        title={fullTime(start)}
        onClick={() => props.onChoose(r)}
      >
        <Play />
        <span class="row-time">{clockTime(start)}</span>
        <span class="row-meta">
          {duration(r.media_ms)} · {size(r.bytes)}
          {r.provisional && " · the rest is on its way"}
        </span>
      </button>
      <a
        class="row-download"
        href={r.url}
        download={fileName(props.channel.name, start)}
        aria-label={`Download recording of ${name}`}
        title="Download"
        data-testid="download"
        onClick={download}
      >
        <Download />
      </a>
    </li>
  );
}
