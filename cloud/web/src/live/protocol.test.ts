import assert from "node:assert/strict";
import { test } from "node:test";
import { Backoff } from "./backoff.ts";
import { parseMessage } from "./protocol.ts";

test("messages are read, and what is unknown or broken is ignored", () => {
  assert.deepEqual(parseMessage('{"type":"init","mime":"video/mp4","start":"x"}'), { type: "init", mime: "video/mp4" });
  assert.deepEqual(parseMessage('{"type":"jump"}'), { type: "jump" });
  assert.deepEqual(parseMessage('{"type":"offline","cause":"c"}'), { type: "offline", cause: "c" });
  assert.deepEqual(parseMessage('{"type":"offline"}'), { type: "offline", cause: "" });
  assert.deepEqual(parseMessage('{"type":"moved","url":"wss://w2/x"}'), { type: "moved", url: "wss://w2/x" });
  assert.deepEqual(parseMessage('{"type":"moved"}'), { type: "moved", url: "" }, "ask the API");
  for (const bad of ["", "null", "3", "{}", '{"type":"init"}', '{"type":"init","mime":1}', '{"type":"new"}']) {
    assert.equal(parseMessage(bad), undefined, bad);
  }
});

test("the backoff doubles to a ceiling and starts over only after a connection that held", () => {
  const b = new Backoff(() => 1);
  assert.deepEqual([0, 0, 0, 0, 0, 0, 0].map((held) => b.next(held)), [500, 1000, 2000, 4000, 8000, 10000, 10000]);
  assert.equal(b.next(Backoff.steady - 1), 10000);
  assert.equal(b.next(Backoff.steady), 500);
  assert.equal(new Backoff(() => 0).next(0), 250);
});
