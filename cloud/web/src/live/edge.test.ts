import assert from "node:assert/strict";
import { test } from "node:test";
import { hurryLag, seekLag, steer, target, trimTo, type Situation } from "./edge.ts";

const at = (s: Partial<Situation>): Situation =>
  ({ currentTime: 100, buffered: [{ start: 90, end: 100.6 }], rate: 1, muted: false, settling: false, ...s });

test("near the edge nothing is touched", () => {
  assert.deepEqual(steer(at({})), { rate: 1 });
  assert.deepEqual(steer(at({ buffered: [] })), { rate: 1 });
});

test("a lag is caught up by playing faster, until well below it", () => {
  const lag = (l: number, rate: number): number =>
    steer(at({ buffered: [{ start: 90, end: 100 + l }], rate })).rate;
  assert.ok(lag(hurryLag + 0.1, 1) > 1);
  const muted = steer(at({ buffered: [{ start: 90, end: 102 }], muted: true })).rate;
  assert.ok(muted > lag(2, 1), "faster still when nobody hears it");
  assert.equal(lag(hurryLag - 0.1, 1), 1, "does not begin below");
  assert.ok(lag(hurryLag - 0.1, 1.1) > 1, "but goes on");
  assert.equal(lag(0.8, 1.1), 1);
});

test("a long lag is jumped over", () => {
  const end = 100 + seekLag + 1;
  assert.deepEqual(steer(at({ buffered: [{ start: 90, end }] })), { seek: end - target, rate: 1 });
});

test("the burst after opening is jumped over early", () => {
  assert.equal(steer(at({ buffered: [{ start: 100, end: 102 }], settling: true })).seek, 102 - target);
  assert.equal(steer(at({ buffered: [{ start: 100, end: 100.8 }], settling: true })).seek, undefined);
});

test("outside the buffer playback goes to the newest footage, never before its start", () => {
  assert.equal(steer(at({ currentTime: 0, buffered: [{ start: 5000, end: 5000.2 }] })).seek, 5000);
  assert.equal(steer(at({ currentTime: 9000, buffered: [{ start: 10, end: 20 }] })).seek, 20 - target);
});

test("a hole is crossed when playback reaches it", () => {
  const buffered = [{ start: 90, end: 100.1 }, { start: 101, end: 101.4 }];
  assert.equal(steer(at({ buffered })).seek, 101);
  assert.equal(steer(at({ buffered, currentTime: 99.9 })).seek, undefined, "plays up to it");
});

test("trimming ends at a keyframe that is long played", () => {
  assert.equal(trimTo(100, 60, [60, 70, 80, 90, 100]), 90);
  assert.equal(trimTo(100, 85, [85, 90, 100]), undefined, "too little to bother");
  assert.equal(trimTo(200, 60, [60]), undefined, "one endless GOP is kept whole");
});
