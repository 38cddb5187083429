import assert from "node:assert/strict";
import { test } from "node:test";
import type { Gap, Recording } from "../api/types.ts";
import { at, emptyTimeline, merge, next, pollFrom, rows, type Timeline } from "./timeline.ts";

const base = Date.parse("2026-05-01T10:00:00Z");
const iso = (s: number): string => new Date(base + s * 1000).toISOString();

function rec(id: string, start: number, end: number): Recording {
  return {
    id, start: iso(start), end: iso(end), media_ms: (end - start) * 1000, bytes: 1,
    codecs: "", url: `u-${id}`, url_expires_at: iso(end + 3600),
  };
}
const gap = (id: string, start: number, end: number, sentence = "s"): Gap =>
  ({ id, start: iso(start), end: iso(end), cause: "camera_offline", sentence });
const timeline = (t: Partial<Timeline>): Timeline => ({ ...emptyTimeline, ...t });
const ids = (t: Timeline): string[] => t.recordings.map((r) => r.id);

test("a poll of the newest minutes keeps what is older and replaces what it covers", () => {
  const known = timeline({ recordings: [rec("a", 0, 30), rec("b", 30, 60)], gaps: [gap("g", 60, 90)] });
  const answer = timeline({ recordings: [{ ...rec("b", 30, 60), url: "fresh" }, rec("c", 60, 90)] });
  const got = merge(known, answer, base + 45_000, base);
  assert.deepEqual(ids(got), ["a", "b", "c"]);
  assert.equal(got.recordings[1]?.url, "fresh");
  assert.deepEqual(got.gaps, [], "the gap was filled");
});

test("what ended before the horizon is forgotten", () => {
  const known = timeline({ recordings: [rec("a", 0, 30), rec("b", 30, 60)] });
  assert.deepEqual(ids(merge(known, emptyTimeline, base + 60_000, base + 30_000)), ["b"]);
});

test("late footage is sorted into its place", () => {
  const known = timeline({ recordings: [rec("a", 0, 30), rec("c", 60, 90)] });
  const full = timeline({ recordings: [rec("c", 60, 90), rec("b", 30, 60), rec("a", 0, 30)] });
  assert.deepEqual(ids(merge(known, full, base, base)), ["a", "b", "c"]);
});

test("polls ask for the newest minutes unless a full one is due", () => {
  const known = timeline({ recordings: [rec("a", 0, 30), rec("z", 600, 630)] });
  assert.equal(pollFrom(known, base, false), at(iso(540)));
  assert.equal(pollFrom(known, base, true), base);
  assert.equal(pollFrom(emptyTimeline, base, false), base);
  assert.equal(pollFrom(known, at(iso(580)), false), at(iso(580)), "never before the horizon");
});

test("a whole recording takes the place of its parts with the next poll", () => {
  const parts = [{ ...rec("p", 30, 40), provisional: true }, { ...rec("q", 40, 55), provisional: true }];
  const known = timeline({ recordings: [rec("a", 0, 30), ...parts, rec("z", 600, 630)] });
  const from = pollFrom(known, base, false);
  assert.equal(from, at(iso(30)));
  const answer = timeline({ recordings: [rec("b", 30, 60), rec("z", 600, 630)] });
  assert.deepEqual(ids(merge(known, answer, from, base)), ["a", "b", "z"]);
});

test("rows are newest first with gaps in their place", () => {
  const got = rows(timeline({
    recordings: [rec("a", 0, 30), rec("b", 90, 120)],
    gaps: [gap("g", 30, 60), gap("h", 60, 90), gap("i", 120, 121, "other")],
    pending: [{ start: iso(121), end: iso(125) }, { start: iso(125), end: iso(130) }],
  }));
  assert.deepEqual(
    got.map((r) => [r.kind, (r.start - base) / 1000, (r.end - base) / 1000]),
    [["pending", 121, 130], ["gap", 120, 121], ["recording", 90, 120], ["gap", 30, 90], ["recording", 0, 30]],
  );
});

test("playback goes on only where no footage is missing", () => {
  const t = timeline({ recordings: [rec("a", 0, 30), rec("b", 30, 60), rec("c", 90, 120)] });
  assert.equal(next(t, t.recordings[0]!)?.id, "b");
  assert.equal(next(t, t.recordings[1]!), undefined);
});
