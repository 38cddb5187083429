import assert from "node:assert/strict";
import { test } from "node:test";
import { Splice, type Moment, type Takeover } from "./splice.ts";

/** A newcomer that brings fragments of 0.2 s that begin at these times; whole seconds are keyframes. */
function newcomer(...starts: number[]): Splice {
  const s = new Splice();
  bring(s, ...starts);
  return s;
}

function bring(s: Splice, ...starts: number[]): void {
  for (const start of starts) {
    const keyframe = Number.isInteger(start) ? start + 0.04 : undefined;
    s.add(new TextEncoder().encode(String(start)).buffer, { start, end: start + 0.2, keyframe });
  }
}

const at = (m: Partial<Moment>): Moment => ({ edge: 100, ahead: 0.5, alone: false, now: 0, ...m });

/** What is appended, in words. */
function words(t: Takeover | undefined): string {
  if (!t) return "wait";
  return [t.anew ? "anew" : "on", ...t.fragments.map((f) => new TextDecoder().decode(f))].join(" ");
}

test("what was shown already is left out, and nothing else", () => {
  const s = newcomer(99, 99.2, 99.4, 99.6, 99.8, 100, 100.2);
  assert.equal(words(s.decide(at({}))), "on 100 100.2");
  assert.equal(words(newcomer(99, 99.2, 99.4).decide(at({ edge: 99.2 }))), "on 99.2 99.4", "in the middle of a GOP");
  assert.equal(words(newcomer(99, 99.2).decide(at({ edge: 99.4 }))), "on", "level: what comes next goes on");
  assert.equal(words(newcomer(100).decide(at({ edge: 99.9999 }))), "on 100", "rounded times");
});

test("a newcomer that is behind does not show the past again", () => {
  const s = newcomer(99, 99.2);
  assert.equal(words(s.decide(at({}))), "wait");
  bring(s, 99.4, 99.6);
  assert.equal(words(s.decide(at({}))), "wait");
  bring(s, 99.8);
  assert.equal(words(s.decide(at({}))), "on");
});

test("what is missing may come from before, until there is nothing left to play", () => {
  const s = newcomer(101, 101.2);
  assert.equal(words(s.decide(at({}))), "wait");
  assert.equal(words(s.decide(at({ edge: 100.4 }))), "wait");
  assert.equal(words(s.decide(at({ edge: 101 }))), "on 101 101.2", "it came");
  assert.equal(words(s.decide(at({ edge: 100.4, ahead: 0.2 }))), "on 101 101.2", "it is late");
  assert.equal(words(s.decide(at({ edge: 100.4, alone: true }))), "on 101 101.2", "it will not come");
});

test("a stream of its own begins anew", () => {
  assert.equal(words(newcomer(99, 99.2).decide(at({ edge: undefined }))), "anew 99 99.2");
  const s = new Splice();
  s.add(new TextEncoder().encode("?").buffer, undefined);
  assert.equal(words(s.decide(at({}))), "anew ?", "whose times cannot be read");
});

test("nothing counts before a keyframe", () => {
  const s = newcomer(99.2, 99.4);
  assert.equal(words(s.decide(at({ edge: undefined, alone: true, ahead: 0 }))), "wait");
  bring(s, 100, 100.2);
  assert.equal(words(s.decide(at({ edge: undefined }))), "anew 100 100.2");
});

test("fragments that were cut otherwise go on with their whole GOP", () => {
  const s = newcomer(98, 98.2, 99, 99.2, 99.4, 99.6);
  assert.equal(words(s.decide(at({ edge: 99.5 }))), "on 99 99.2 99.4 99.6");
});

test("when time was set back the picture comes back", () => {
  const s = newcomer(50, 50.2);
  assert.equal(words(s.decide(at({ ahead: 0, now: 1000 }))), "wait");
  bring(s, 51, 51.2);
  assert.equal(words(s.decide(at({ ahead: 0.4, now: 3000 }))), "wait", "there is a picture still");
  assert.equal(words(s.decide(at({ ahead: 0, now: 3500 }))), "wait");
  assert.equal(words(s.decide(at({ ahead: 0, now: 6600 }))), "anew 51 51.2", "from its newest keyframe");
});

test("what waits is bounded", () => {
  const s = new Splice();
  const data = new ArrayBuffer(9 << 20);
  for (let i = 0; i < 5; i++) s.add(data, { start: i, end: i + 1, keyframe: i === 0 ? 0 : undefined });
  assert.equal(s.decide(at({ edge: 6 })), undefined); // here it lets go of what was shown
  s.add(data, { start: 5, end: 6, keyframe: undefined });
  assert.equal(words(s.decide(at({ edge: 5, alone: true }))), "on " + new TextDecoder().decode(data));
  assert.equal(s.decide(at({ edge: 5.5 })), undefined, "no keyframe to go on from is left");
});
