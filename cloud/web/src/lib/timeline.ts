// The timeline of a channel, pure: what the API said, merged over many polls,
// and the rows that the page shows.

import type { Gap, Pending, Recording } from "../api/types.ts";

export interface Timeline {
  recordings: Recording[];
  gaps: Gap[];
  pending: Pending[];
}

export const emptyTimeline: Timeline = { recordings: [], gaps: [], pending: [] };

/** at is the time in milliseconds of an RFC 3339 string. */
export const at = (t: string): number => Date.parse(t);

/**
 * merge puts an answer for everything since `from` over what was known, and
 * forgets what ended before `horizon`. Inside the answer's range the answer is
 * the whole truth: a gap that it no longer has was filled.
 */
export function merge(known: Timeline, answer: Timeline, from: number, horizon: number): Timeline {
  const join = <T extends { start: string; end: string }>(old: T[], now: T[], key: (t: T) => string): T[] => {
    const all = new Map<string, T>();
    for (const t of old) if (at(t.end) <= from) all.set(key(t), t);
    for (const t of now) all.set(key(t), t);
    return [...all.values()].filter((t) => at(t.end) > horizon).sort((a, b) => at(a.start) - at(b.start));
  };
  return {
    recordings: join(known.recordings, answer.recordings, (r) => r.id),
    gaps: join(known.gaps, answer.gaps, (g) => g.id),
    pending: join(known.pending, answer.pending, (p) => p.start),
  };
}

/**
 * pollFrom says since when to ask next. Most polls ask for the newest minutes
 * only, and for what will be replaced by something whole; a full one, now and
 * then, brings late footage and fresh URLs.
 */
export function pollFrom(known: Timeline, horizon: number, full: boolean): number {
  const newest = known.recordings.at(-1);
  if (full || !newest) return horizon;
  const part = known.recordings.find((r) => r.provisional);
  return Math.max(horizon, Math.min(at(newest.start) - 60_000, at((part ?? newest).start)));
}

export type Row =
  | { kind: "recording"; key: string; start: number; end: number; recording: Recording }
  | { kind: "gap"; key: string; start: number; end: number; sentence: string }
  | { kind: "pending"; key: string; start: number; end: number };

/** rows are what the list shows, newest first; gaps that touch and have one cause are one row. */
export function rows(t: Timeline): Row[] {
  const out: Row[] = t.recordings.map((r) => ({
    kind: "recording",
    key: r.id,
    start: at(r.start),
    end: at(r.end),
    recording: r,
  }));
  let last: Extract<Row, { kind: "gap" }> | undefined;
  for (const g of t.gaps) {
    const [start, end] = [at(g.start), at(g.end)];
    if (last && last.sentence === g.sentence && start <= last.end) {
      last.end = Math.max(last.end, end);
      continue;
    }
    last = { kind: "gap", key: g.id, start, end, sentence: g.sentence };
    out.push(last);
  }
  let open: Extract<Row, { kind: "pending" }> | undefined;
  for (const p of t.pending) {
    const [start, end] = [at(p.start), at(p.end)];
    if (open && start <= open.end) {
      open.end = Math.max(open.end, end);
      continue;
    }
    open = { kind: "pending", key: `pending-${p.start}`, start, end };
    out.push(open);
  }
  return out.sort((a, b) => b.start - a.start || b.end - a.end);
}

/** next is the recording that goes on where r ends, if there is one without a hole between. */
export function next(t: Timeline, r: Recording): Recording | undefined {
  const end = at(r.end);
  // Recordings of a span abut exactly; a second covers a clock step.
  return t.recordings.find((n) => at(n.start) >= end - 1 && at(n.start) <= end + 1000 && n.id !== r.id);
}
