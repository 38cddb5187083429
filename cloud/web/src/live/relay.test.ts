import assert from "node:assert/strict";
import { mock, test, type TestContext } from "node:test";
import { ascii, box, buffer, delta, key, trak, u32 } from "./fmp4.testing.ts";
import { timing, videoTrack, type VideoTrack } from "./fmp4.ts";
import type { Listener } from "./link.ts";
import { Relay, type Screen } from "./relay.ts";
import { OfflineError, type LiveState } from "./state.ts";

const mime = 'video/mp4; codecs="avc1.64001f"';

function initOf(name: string): ArrayBuffer {
  const trex = box("trex", u32(0, 1, 1, 0, 0, 0));
  return buffer(box("ftyp", ascii(name)), box("moov", trak(1, "vide", 1000), box("mvex", trex)));
}

/** A fragment of 200 ms at a time in milliseconds; whole seconds are keyframes. */
function fragmentAt(ms: number): ArrayBuffer {
  const run = box("trun", u32(0x0100_0f01, 1, 100, 200, 4, ms % 1000 ? delta : key, 0));
  const tfhd = box("tfhd", u32(0x20000, 1));
  const moof = box("moof", box("mfhd", u32(0, 1)), box("traf", tfhd, box("tfdt", u32(0x0100_0000, 0, ms)), run));
  return buffer(moof, box("mdat", u32(1)));
}

/** Socket is a worker's end of a live WebSocket. */
class Socket {
  readonly url: string;
  readonly on: Listener;
  open = true;
  heard = 0;
  readonly #clock: () => number;

  constructor(url: string, on: Listener, clock: () => number) {
    this.url = url;
    this.on = on;
    this.#clock = clock;
    this.heard = clock();
  }
  /** Either side closes. */
  close(): void {
    if (!this.open) return;
    this.open = false;
    queueMicrotask(() => this.on.closed());
  }
  init(name = "iso6"): void {
    this.heard = this.#clock();
    this.on.message({ type: "init", mime });
    this.on.binary(initOf(name));
  }
  fragments(...ms: number[]): void {
    this.heard = this.#clock();
    for (const t of ms) this.on.binary(fragmentAt(t));
  }
  moved(url: string): void {
    this.on.message({ type: "moved", url });
  }
  offline(cause: string): void {
    this.on.message({ type: "offline", cause });
  }
}

/** Rig is a Relay on a screen that writes down what it shows, among workers that are Sockets. */
class Rig {
  clock = 100_000;
  sockets: Socket[] = [];
  shown: string[] = [];
  track: VideoTrack | undefined;
  edge: number | undefined;
  ahead = 0.5;
  offline = "";
  /** What the API answers: a URL, or why not. */
  api: string | Error = "ws://w1?ticket=0";
  asked = 0;
  end: LiveState | undefined;
  readonly relay: Relay;

  constructor() {
    const screen: Screen = {
      playable: (m) => (m.includes("avc1") ? m : undefined),
      begin: (_, init) => {
        this.track = videoTrack(init);
        this.edge = undefined;
        this.shown.push("begin");
      },
      resume: () => {
        this.offline = "";
        this.shown.push("resume");
      },
      jump: () => this.shown.push("jump"),
      fragment: (data) => {
        const t = timing(data, this.track!)!;
        this.edge = t.end;
        this.shown.push(String(Math.round(t.start * 1000)));
      },
      offline: (cause) => {
        if (cause !== this.offline) this.shown.push(`offline ${cause}`);
        this.offline = cause;
      },
      edge: () => this.edge,
      ahead: () => this.ahead,
    };
    this.relay = new Relay(
      screen,
      () => {
        this.asked++;
        return typeof this.api === "string" ? Promise.resolve(this.api) : Promise.reject(this.api);
      },
      (url, on) => {
        const s = new Socket(url, on, () => this.clock);
        this.sockets.push(s);
        return s;
      },
      () => this.clock,
    );
  }

  async start(): Promise<Socket> {
    void this.relay.run(new AbortController().signal).then((end) => (this.end = end));
    await settled();
    return this.sockets[0]!;
  }

  /** Time passes. */
  async pass(ms: number): Promise<void> {
    for (; ms > 0; ms -= 250) {
      this.clock += 250;
      mock.timers.tick(250);
      await settled();
      this.relay.tick();
    }
  }

  /** What was shown since the last look. */
  look(): string {
    return this.shown.splice(0).join(" ");
  }
}

/** Lets what waits for promises run. */
const settled = async (): Promise<void> => {
  for (let i = 0; i < 10; i++) await Promise.resolve();
};

function timers(t: TestContext): void {
  mock.timers.enable({ apis: ["setTimeout"] });
  t.after(() => mock.timers.reset());
}

test("a viewer is handed from worker to worker without a picture less or more", async (t) => {
  timers(t);
  const rig = new Rig();
  const w1 = await rig.start();
  w1.init();
  w1.fragments(1000, 1200);
  assert.equal(rig.look(), "begin 1000 1200");

  w1.moved("ws://w2?ticket=1");
  const w2 = rig.sockets[1]!;
  assert.equal(w2.url, "ws://w2?ticket=1");
  w2.offline("waiting for the camera");
  w1.fragments(1400, 1600);
  assert.equal(rig.look(), "1400 1600", "shown on while the other has nothing");
  w2.init();
  assert.equal(rig.look(), "");
  w2.fragments(2000);
  assert.equal(rig.look(), "", "what is missing is on its way");
  w1.fragments(1800);
  assert.equal(rig.look(), "1800 resume 2000");
  assert.ok(!w1.open && w2.open);
  w1.fragments(2000, 2200); // it had gone on, in part
  w2.fragments(2200);
  assert.equal(rig.look(), "2200");

  w2.moved("ws://w3?ticket=2");
  const w3 = rig.sockets[2]!;
  w3.init();
  w3.fragments(2000, 2200, 2400);
  await settled();
  assert.equal(rig.look(), "resume 2400");
  assert.ok(!rig.end);
  assert.equal(rig.asked, 1);
});

test("without a URL the API is asked, and again until there is a picture", async (t) => {
  timers(t);
  const rig = new Rig();
  const w1 = await rig.start();
  w1.init();
  w1.fragments(1000);
  rig.api = new OfflineError("not yet");
  w1.moved("");
  await settled();
  assert.equal(rig.asked, 2);
  w1.moved(""); // says it again
  await settled();
  assert.equal(rig.asked, 2);
  rig.api = "ws://w2?ticket=1";
  await rig.pass(500);
  rig.sockets[1]!.close(); // fails
  await rig.pass(1250);
  assert.equal(rig.sockets.length, 3);
  w1.fragments(1200);
  assert.equal(rig.look(), "begin 1000 1200", "nobody sees any of it");
  rig.sockets[2]!.init();
  rig.sockets[2]!.fragments(1000, 1200, 1400);
  assert.equal(rig.look(), "resume 1400");
});

test("when the old worker is gone the new one goes on, also across what is missing", async (t) => {
  timers(t);
  const rig = new Rig();
  const w1 = await rig.start();
  w1.init();
  w1.fragments(1000);
  w1.moved("ws://w2?ticket=1");
  const w2 = rig.sockets[1]!;
  w1.close();
  await settled();
  assert.ok(!rig.end && rig.relay.open);
  w2.init();
  w2.fragments(2000, 2200);
  assert.equal(rig.look(), "begin 1000 resume 2000 2200");
  w2.close();
  await settled();
  assert.deepEqual(rig.end as unknown, { kind: "retrying", why: "The connection was lost." });
});

test("a stream that differs begins anew", async () => {
  const rig = new Rig();
  const w1 = await rig.start();
  w1.init();
  w1.fragments(1000);
  w1.moved("ws://w2");
  rig.sockets[1]!.init("iso7");
  assert.equal(rig.look(), "begin 1000", "shown until there is something to show");
  rig.sockets[1]!.fragments(0, 200);
  assert.equal(rig.look(), "begin 0 200");
});

test("the end of the stream at the old worker is not told who is on the way to the next", async (t) => {
  timers(t);
  const rig = new Rig();
  const w1 = await rig.start();
  w1.init();
  w1.fragments(1000);
  w1.moved("ws://w2");
  w1.offline("stopped");
  assert.equal(rig.look(), "begin 1000");
  await rig.pass(4000);
  assert.equal(rig.look(), "offline stopped", "for long");
  rig.sockets[1]!.init();
  rig.sockets[1]!.fragments(6000);
  await rig.pass(250);
  assert.equal(rig.look(), "", "there is something to play");
  rig.ahead = 0;
  await rig.pass(250);
  assert.equal(rig.look(), "resume 6000");
  rig.sockets[1]!.offline("stopped");
  assert.equal(rig.look(), "offline stopped", "nothing else is awaited");
});

test("workers that send viewers to each other are not followed in circles", async (t) => {
  timers(t);
  const rig = new Rig();
  await rig.start();
  for (let i = 0; i < 100; i++) rig.sockets.at(-1)!.moved(`ws://w${i + 2}`);
  await settled();
  assert.ok(rig.sockets.length <= 6, `${rig.sockets.length} sockets`);
  assert.equal(rig.sockets.filter((s) => s.open).length, 1);
  await rig.pass(1000);
  rig.sockets.at(-1)!.init();
  rig.sockets.at(-1)!.fragments(1000);
  assert.equal(rig.look(), "begin 1000", "but found in the end");
});

test("one that was told already is not left for its own address", async () => {
  const rig = new Rig();
  const w1 = await rig.start();
  w1.moved("ws://w2/live?ticket=1");
  w1.moved("ws://w2/live?ticket=2");
  assert.equal(rig.sockets.length, 2);
  w1.moved("ws://w3/live?ticket=3");
  await settled();
  assert.deepEqual(rig.sockets.map((s) => s.open), [true, false, true]);
});

test("dead sockets are closed", async (t) => {
  timers(t);
  const rig = new Rig();
  const w1 = await rig.start();
  w1.init();
  w1.fragments(1000);
  w1.moved("ws://w2");
  rig.sockets[1]!.open = false; // it never opens
  let closed = 0;
  rig.sockets[1]!.close = () => void closed++;
  await rig.pass(11_000);
  assert.ok(closed > 0);
  await rig.pass(5_000);
  assert.ok(!w1.open, "one that is silent");
});

test("an address that leads to what cannot be played is an answer", async (t) => {
  timers(t);
  const rig = new Rig();
  const w1 = await rig.start();
  w1.on.message({ type: "init", mime: 'video/mp4; codecs="hvc1.1"' });
  await settled();
  assert.deepEqual(rig.end, { kind: "unsupported", mime: 'video/mp4; codecs="hvc1.1"' });
});

test("close leaves no socket", async (t) => {
  timers(t);
  const rig = new Rig();
  const w1 = await rig.start();
  w1.init();
  w1.moved("ws://w2");
  rig.relay.close();
  await settled();
  assert.ok(rig.sockets.every((s) => !s.open));
  assert.deepEqual(rig.end as unknown, { kind: "retrying", why: "The connection was lost." });
});
