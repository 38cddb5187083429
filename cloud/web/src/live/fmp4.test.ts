import assert from "node:assert/strict";
import { test } from "node:test";
import { keyframe, timing, videoTrack, type VideoTrack } from "./fmp4.ts";
import { ascii, box, buffer, delta, key, trak, u32 } from "./fmp4.testing.ts";

const track: VideoTrack = { id: 2, timescale: 90000, defaultDuration: 0, defaultFlags: 0 };
/** A fragment with one video sample, decoded at 180000, presented `offset` later. */
function fragment(trackID: number, trun: Uint8Array, tfhd = box("tfhd", u32(0x20000, trackID))): ArrayBuffer {
  return buffer(
    box("moof", box("mfhd", u32(0, 1)), box("traf", tfhd, box("tfdt", u32(0x0100_0000, 0, 180000)), trun)),
    box("mdat", u32(1)),
  );
}

test("the video track is found behind a sound track", () => {
  const init = buffer(box("ftyp", ascii("iso5")), box("moov", trak(1, "soun", 48000), trak(2, "vide", 90000),
    box("mvex", box("trex", u32(0, 1, 1, 0, 0, 7)), box("trex", u32(0, 2, 1, 3000, 0, delta)))));
  assert.deepEqual(videoTrack(init), { id: 2, timescale: 90000, defaultDuration: 3000, defaultFlags: delta });
});

test("a keyframe is placed by its presentation time, also with a negative offset", () => {
  const trun = (flags: number, offset: number): Uint8Array =>
    box("trun", u32(0x0100_0f01, 1, 100, 3000, 4, flags, offset));
  assert.equal(keyframe(fragment(2, trun(key, 9000)), track), 2.1);
  assert.equal(keyframe(fragment(2, trun(key, -9000)), track), 1.9);
  assert.equal(keyframe(fragment(2, trun(delta, 0)), track), undefined, "no keyframe");
  assert.equal(keyframe(fragment(1, trun(key, 0)), track), undefined, "another track");
});

test("flags come from the sample, the run, the fragment or the track, in this order", () => {
  const bare = box("trun", u32(0x1, 1, 100));
  assert.equal(keyframe(fragment(2, bare), track), 2);
  assert.equal(keyframe(fragment(2, bare), { ...track, defaultFlags: delta }), undefined);
  const tfhd = box("tfhd", u32(0x20028, 2, 3000, delta));
  assert.equal(keyframe(fragment(2, bare, tfhd), track), undefined);
  assert.equal(keyframe(fragment(2, box("trun", u32(0x5, 1, 100, key)), tfhd), track), 2);
});

test("a fragment lasts as long as its frames", () => {
  const span = (f: ArrayBuffer, t = track): number[] => {
    const { start, end } = timing(f, t)!;
    return [start, end];
  };
  const three = box("trun", u32(0x0100_0f01, 3, 100, 3000, 4, key, 9000, 3000, 4, delta, 0, 12000, 4, delta, 0));
  assert.deepEqual(span(fragment(2, three)), [2, 2.2]);
  assert.equal(timing(fragment(2, three), track)?.keyframe, 2.1);
  const bare = box("trun", u32(0x1, 6, 100));
  assert.deepEqual(span(fragment(2, bare), { ...track, defaultDuration: 3000 }), [2, 2.2], "by the track");
  assert.deepEqual(span(fragment(2, bare, box("tfhd", u32(0x20028, 2, 6000, delta)))), [2, 2.4], "by the fragment");
  assert.equal(timing(fragment(2, box("trun", u32(0x1, 0, 100))), track), undefined, "without a frame");
  assert.equal(timing(fragment(1, three), track), undefined, "without video");
});

test("broken bytes give no answer", () => {
  const whole = fragment(2, box("trun", u32(0x0100_0f01, 1, 100, 3000, 4, key, 0)));
  for (let n = 0; n < whole.byteLength - 12; n++) assert.equal(keyframe(whole.slice(0, n), track), undefined);
  assert.equal(videoTrack(buffer(u32(0, 0, 0))), undefined);
  assert.equal(videoTrack(new ArrayBuffer(3)), undefined);
});
