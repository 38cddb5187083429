import { offlineSentence } from "../lib/words.ts";
import { Backoff } from "./backoff.ts";
import { timing, videoTrack, type VideoTrack } from "./fmp4.ts";
import type { Dial, Link } from "./link.ts";
import type { Message } from "./protocol.ts";
import { Splice } from "./splice.ts";
import { OfflineError, StartingError, type LiveState, type Locate } from "./state.ts";

/** Screen shows what a Relay brings. */
export interface Screen {
  /** The type under which the browser decodes a stream, if it does. */
  playable(mime: string): string | undefined;
  /** Another stream begins: its times may be anywhere, so what is buffered goes. */
  begin(mime: string, init: ArrayBuffer): void;
  /** The stream goes on where it is, from another worker. */
  resume(): void;
  /** The next fragment does not continue the one before. */
  jump(): void;
  fragment(data: ArrayBuffer): void;
  offline(cause: string): void;
  /** Decode time at which the fragments end that are shown, in seconds; undefined: there are none since begin or jump. */
  edge(): number | undefined;
  /** Seconds of picture that are not played yet. */
  ahead(): number;
}

/** A socket that is silent for this long is dead, whatever TCP thinks. */
const deadMs = 15_000;
/** So is one that does not open. */
const openMs = 10_000;
/** How long a worker's word that the stream ended there is kept back from who is on the way to the next one. */
const betweenMs = 3_000;
/** Moves that are followed at once, each within calmMs of the one before; more are workers that send each other who looks on. */
const maxMoves = 4;
const calmMs = 3_000;

/** One socket, and the stream that it brings. */
interface Source {
  link: Link;
  address: string;
  dialled: number;
  mime: string;
  /** The next binary message is an init segment. */
  initNext: boolean;
  init: ArrayBuffer | undefined;
  track: VideoTrack | undefined;
  offline: string | undefined;
  /** Why we closed it. */
  end: LiveState | undefined;
}

/**
 * Relay brings one channel's live stream to a Screen, from socket to socket: when
 * the worker says that the stream has moved, the next socket is opened beside
 * the one that is shown, which is shown until the next has what comes after it.
 */
export class Relay {
  readonly #screen: Screen;
  readonly #locate: Locate;
  readonly #dial: Dial;
  readonly #now: () => number;

  #shown: Source | undefined;
  #ended: ((s: LiveState) => void) | undefined;
  /** What the screen's init is: a newcomer with another one is another stream. */
  #mime = "";
  #init: ArrayBuffer | undefined;

  /** Set while a socket is wanted beside, or instead of, the one that is shown. */
  #search: AbortController | undefined;
  #next: Source | undefined;
  #splice = new Splice();
  #since = 0;
  #moves = 0;
  #backoff = new Backoff();

  constructor(screen: Screen, locate: Locate, dial: Dial, now: () => number = () => performance.now()) {
    this.#screen = screen;
    this.#locate = locate;
    this.#dial = dial;
    this.#now = now;
  }

  /** run resolves, when no socket is left, to the state that this leaves. */
  async run(signal: AbortSignal): Promise<LiveState> {
    let url: string;
    try {
      url = await this.#locate(signal);
    } catch (err) {
      return stateOf(err);
    }
    if (signal.aborted) return { kind: "connecting" };
    return new Promise((resolve) => {
      this.#ended = resolve;
      this.#shown = this.#open(url);
    });
  }

  /** close ends run, if it runs. */
  close(): void {
    const s = this.#current();
    const shown = this.#shown;
    this.#shown = undefined;
    shown?.link.close();
    this.#end(s ? leaves(s) : lost);
  }

  /** There is a socket, and it is open. */
  get open(): boolean {
    return this.#current()?.link.open ?? false;
  }

  /** When the socket was last heard, as performance.now() counts. */
  get heard(): number {
    return this.#current()?.link.heard ?? 0;
  }

  /** tick is to be called a few times a second. */
  tick(): void {
    const now = this.#now();
    const s = this.#current();
    if (s?.link.open && s.offline === undefined && now - s.link.heard > deadMs) s.link.close();
    const next = this.#next;
    if (next && !next.link.open && now - next.dialled > openMs) next.link.close();
    this.#tell();
    this.#consider();
  }

  #current(): Source | undefined {
    return this.#shown ?? this.#next;
  }

  #open(url: string): Source {
    const on = {
      message: (m: Message) => this.#message(s, m),
      binary: (data: ArrayBuffer) => this.#binary(s, data),
      closed: () => this.#closed(s),
    };
    const s: Source = {
      link: this.#dial(url, on),
      address: address(url),
      dialled: this.#now(),
      mime: "",
      initNext: false,
      init: undefined,
      track: undefined,
      offline: undefined,
      end: undefined,
    };
    return s;
  }

  #message(s: Source, m: Message): void {
    const shown = s === this.#shown;
    if (!shown && s !== this.#next) return; // it was left
    switch (m.type) {
      case "init": {
        const mime = this.#screen.playable(m.mime);
        if (mime === undefined) {
          s.end = { kind: "unsupported", mime: m.mime };
          return s.link.close();
        }
        s.mime = mime;
        s.initNext = true;
        return;
      }
      case "jump":
        if (shown) this.#screen.jump();
        else this.#splice = new Splice();
        return;
      case "offline":
        s.offline = m.cause;
        s.init = undefined;
        if (!shown) this.#splice = new Splice();
        return this.#tell();
      case "moved":
        return this.#moved(s, m.url);
    }
  }

  /** Tells that the stream ended, unless it is expected to go on elsewhere. */
  #tell(): void {
    const cause = this.#current()?.offline;
    const between = this.#search !== undefined && this.#now() - this.#since < betweenMs;
    if (cause !== undefined && !between) this.#screen.offline(cause);
  }

  #binary(s: Source, data: ArrayBuffer): void {
    const shown = s === this.#shown;
    if (!shown && s !== this.#next) return;
    if (s.initNext) {
      s.initNext = false;
      s.init = data;
      s.track = videoTrack(data);
      s.offline = undefined;
      if (shown) this.#begin(s, data);
      else this.#splice = new Splice();
    } else if (shown) {
      this.#screen.fragment(data);
    } else if (s.init) {
      this.#splice.add(data, s.track && timing(data, s.track));
    }
    this.#consider();
  }

  #begin(s: Source, init: ArrayBuffer): void {
    this.#mime = s.mime;
    this.#init = init;
    this.#screen.begin(s.mime, init);
  }

  /** Shows the next socket instead, if it can go on from here. */
  #consider(): void {
    const next = this.#next;
    if (!next?.init) return;
    const same = next.mime === this.#mime && this.#init !== undefined && equal(next.init, this.#init);
    const take = this.#splice.decide({
      edge: same ? this.#screen.edge() : undefined,
      ahead: this.#screen.ahead(),
      alone: !this.#shown,
      now: this.#now(),
    });
    if (!take) return;
    const old = this.#shown;
    this.#shown = next;
    this.#next = undefined;
    this.#forget();
    old?.link.close();
    if (take.anew) this.#begin(next, next.init);
    else this.#screen.resume();
    for (const f of take.fragments) this.#screen.fragment(f);
  }

  #closed(s: Source): void {
    if (s === this.#shown) {
      this.#shown = undefined;
      if (!this.#next) return this.#end(leaves(s));
      this.#tell();
      this.#consider(); // what is missing will not come
    } else if (s === this.#next) {
      this.#next = undefined;
      if (this.#shown) this.#later(this.#now() - s.dialled);
      else this.#end(leaves(s));
    }
  }

  #end(why: LiveState): void {
    this.#forget();
    this.#ended?.(why);
    this.#ended = undefined;
  }

  /** Gives up the search, and its socket. */
  #forget(): void {
    this.#search?.abort();
    this.#search = undefined;
    const next = this.#next;
    this.#next = undefined;
    next?.link.close();
    this.#splice = new Splice();
  }

  #moved(s: Source, url: string): void {
    if (s === this.#shown && this.#search && (!url || address(url) === this.#next?.address)) return; // it is on the way
    const held = this.#now() - this.#since;
    this.#forget();
    this.#search = new AbortController();
    this.#since = this.#now();
    this.#moves = held > calmMs ? 1 : this.#moves + 1;
    if (held > Backoff.steady) this.#backoff = new Backoff();
    if (this.#moves > maxMoves) {
      if (this.#shown) this.#later(0);
      else this.#end(lost);
    } else if (url) {
      this.#try(url);
    } else {
      void this.#ask(this.#search.signal);
    }
  }

  #try(url: string): void {
    this.#splice = new Splice();
    this.#next = this.#open(url);
  }

  async #ask(signal: AbortSignal): Promise<void> {
    let url: string;
    try {
      url = await this.#locate(signal);
    } catch (err) {
      if (signal.aborted) return;
      if (this.#shown) this.#later(0);
      else this.#end(stateOf(err));
      return;
    }
    if (!signal.aborted) this.#try(url);
  }

  #later(held: number): void {
    const signal = this.#search!.signal;
    const timer = setTimeout(() => void this.#ask(signal), this.#backoff.next(held));
    signal.addEventListener("abort", () => clearTimeout(timer));
  }
}

const lost: LiveState = { kind: "retrying", why: "The connection was lost." };

/** What the end of a socket leaves. */
function leaves(s: Source): LiveState {
  return s.end ?? (s.offline === undefined ? lost : { kind: "offline", cause: offlineSentence(s.offline) });
}

function stateOf(err: unknown): LiveState {
  if (err instanceof StartingError) return { kind: "connecting" };
  const why = err instanceof Error ? err.message : String(err);
  return err instanceof OfflineError ? { kind: "offline", cause: why } : { kind: "retrying", why };
}

/** The URL without its ticket, which is another each time. */
function address(url: string): string {
  return url.replace(/[?&]ticket=.*/, "");
}

function equal(a: ArrayBuffer, b: ArrayBuffer): boolean {
  if (a.byteLength !== b.byteLength) return false;
  const [x, y] = [new Uint8Array(a), new Uint8Array(b)];
  return x.every((v, i) => v === y[i]);
}
