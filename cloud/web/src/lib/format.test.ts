import assert from "node:assert/strict";
import { test } from "node:test";
import { duration, fileName, size } from "./format.ts";
import { codecName, hasSound, offlineSentence, spellings, stateWords } from "./words.ts";

test("durations and sizes", () => {
  assert.equal(duration(29_960), "30 s");
  assert.equal(duration(65_000), "1 min 5 s");
  assert.equal(duration(120_000), "2 min");
  assert.equal(duration(7_380_000), "2 h 3 min");
  assert.equal(size(0), "0 B");
  assert.equal(size(9_140_000), "9.1 MB");
  assert.equal(size(999_600), "1.0 MB");
  assert.equal(size(25_000_000), "25 MB");
});

test("a file name has no path in it", () => {
  assert.match(fileName("../Front/door: ü", 0), /^\.\._Front_door_ ü \d{4}-\d\d-\d\d \d\d-\d\d-\d\d\.mp4$/);
});

test("the API's sentence wins over ours, and a vanished hub is not live", () => {
  assert.equal(stateWords({ state: "auth", problem: "401 from camera", streaming: false }).sentence, "401 from camera");
  assert.match(stateWords({ state: "no_camera", streaming: false }).sentence, /does not answer/);
  assert.equal(stateWords({ state: "streaming", streaming: true }).tone, "live");
  assert.equal(stateWords({ state: "streaming", streaming: false }).tone, "bad");
});

test("causes are sentences", () => {
  assert.match(offlineSentence("camera_offline"), /camera did not answer/);
  assert.equal(offlineSentence("The hub said goodbye."), "The hub said goodbye.");
  assert.match(offlineSentence("ended"), /has ended/);
});

test("sound is known by its codec", () => {
  assert.ok(hasSound('video/mp4; codecs="avc1.64001f,mp4a.40.2"'));
  assert.ok(hasSound('video/mp4; codecs="avc1.64001f,fLaC"'));
  assert.ok(!hasSound('video/mp4; codecs="avc1.64001f"'));
});

test("codecs have names that people know", () => {
  assert.equal(codecName('video/mp4; codecs="hvc1.1.6.L93.90,flac"'), "H265 (HEVC)");
  assert.equal(codecName("mp4v.6C,flac"), "Motion JPEG");
  assert.equal(codecName("mp4v.20.9"), "this video format");
});

test("FLAC is asked for under both of its names, the one that plays first", () => {
  assert.deepEqual(spellings('video/mp4; codecs="avc1.64001f,flac"'), [
    'video/mp4; codecs="avc1.64001f,flac"',
    'video/mp4; codecs="avc1.64001f,fLaC"',
  ]);
  assert.deepEqual(spellings("avc1.64001f,mp4a.40.2"), ["avc1.64001f,mp4a.40.2"]);
});
