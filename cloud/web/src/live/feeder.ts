import { spellings } from "../lib/words.ts";
import { trimTo, type Span } from "./edge.ts";
import { keyframe, videoTrack, type VideoTrack } from "./fmp4.ts";

declare global {
  interface Window {
    /** Safari on iPhones has only this one. */
    ManagedMediaSource?: typeof MediaSource;
  }
}

const Source: typeof MediaSource | undefined = window.MediaSource ?? window.ManagedMediaSource;

/** playable is the type under which this browser decodes the stream, if it does. */
export function playable(mime: string): string | undefined {
  return spellings(mime).find((m) => Source?.isTypeSupported(m));
}

type Step = { kind: "init"; mime: string; data: ArrayBuffer } | { kind: "clear" } | { kind: "data"; data: ArrayBuffer };

/** What may wait to be appended: some 20 s of 4K. More means that the browser has stopped taking it. */
const maxQueued = 64 << 20;

/**
 * Feeder carries an init segment and fragments, in order, into a <video>. After
 * an init or a jump the buffer holds new footage only, so that times may go
 * anywhere. It never throws: what the browser refuses ends it through onFail,
 * once, and then a new Feeder is needed.
 */
export class Feeder {
  readonly #video: HTMLVideoElement;
  readonly #onAppend: () => void;
  readonly #onFail: (why: string) => void;
  readonly #source: MediaSource;
  readonly #objectURL: string;
  #buffer: SourceBuffer | undefined;
  #mime = "";
  #track: VideoTrack | undefined;
  #keyframes: number[] = [];
  #steps: Step[] = [];
  #queued = 0;
  #ended = false;

  constructor(video: HTMLVideoElement, onAppend: () => void, onFail: (why: string) => void) {
    this.#video = video;
    this.#onAppend = onAppend;
    this.#onFail = onFail;
    this.#source = new Source!();
    this.#objectURL = URL.createObjectURL(this.#source);
    this.#source.addEventListener("sourceopen", () => this.#pump());
    video.disableRemotePlayback = true; // ManagedMediaSource asks for it
    video.addEventListener("error", this.#onVideoError);
    video.src = this.#objectURL;
  }

  init(mime: string, data: ArrayBuffer): void {
    // What waits belongs to the stream before; nobody needs it any more.
    this.#steps = [];
    this.#queued = 0;
    this.#push({ kind: "clear" });
    this.#push({ kind: "init", mime, data });
  }

  /** jump: the next fragment does not continue the one before. */
  jump(): void {
    this.#steps = this.#steps.filter((s) => s.kind === "init");
    this.#queued = 0;
    this.#push({ kind: "clear" });
  }

  fragment(data: ArrayBuffer): void {
    this.#push({ kind: "data", data });
  }

  buffered(): Span[] {
    const spans: Span[] = [];
    if (this.#ended || !this.#buffer) return spans;
    const b = this.#buffer.buffered;
    for (let i = 0; i < b.length; i++) spans.push({ start: b.start(i), end: b.end(i) });
    return spans;
  }

  close(): void {
    if (this.#ended) return;
    this.#ended = true;
    this.#steps = [];
    this.#video.removeEventListener("error", this.#onVideoError);
    this.#video.removeAttribute("src");
    this.#video.load(); // lets go of the decoder
    URL.revokeObjectURL(this.#objectURL);
  }

  readonly #onVideoError = (): void => {
    this.#fail("The browser could not decode the video.", this.#video.error?.message);
  };

  #fail(why: string, detail?: unknown): void {
    if (this.#ended) return;
    console.warn("live video:", why, detail ?? "");
    this.close();
    this.#onFail(why);
  }

  #push(step: Step): void {
    if (this.#ended) return;
    if (step.kind === "data") this.#queued += step.data.byteLength;
    if (this.#queued > maxQueued) return this.#fail("The browser takes no more video.");
    this.#steps.push(step);
    this.#pump();
  }

  /** Does the next step, if the last one is finished. Every step ends in "updateend", which calls this again. */
  #pump(): void {
    if (this.#ended || this.#source.readyState !== "open" || this.#buffer?.updating) return;
    try {
      for (let step = this.#steps.shift(); step; step = this.#steps.shift()) {
        if (this.#do(step)) return;
      }
      this.#trim();
    } catch (err) {
      this.#fail("The browser refused the video.", err);
    }
  }

  /** Returns whether the step goes on in the background. */
  #do(step: Step): boolean {
    if (step.kind === "init") {
      this.#prepare(step.mime);
      this.#track = videoTrack(step.data);
      this.#buffer!.appendBuffer(step.data);
      return true;
    }
    const b = this.#buffer;
    if (!b) return false; // nothing to clear, and a fragment without an init is no use
    if (step.kind === "clear") {
      this.#keyframes = [];
      b.abort(); // forgets half a fragment, if the parser holds one
      if (b.buffered.length === 0) return false;
      b.remove(0, Infinity);
      return true;
    }
    return this.#append(b, step);
  }

  #prepare(mime: string): void {
    if (!this.#buffer) {
      this.#buffer = this.#source.addSourceBuffer(mime);
      this.#buffer.addEventListener("updateend", () => {
        this.#onAppend();
        this.#pump();
      });
    } else if (mime !== this.#mime) {
      this.#buffer.changeType(mime);
    }
    this.#mime = mime;
  }

  #append(b: SourceBuffer, step: Step & { kind: "data" }): boolean {
    try {
      b.appendBuffer(step.data);
    } catch (err) {
      if (!(err instanceof DOMException) || err.name !== "QuotaExceededError" || b.buffered.length === 0) throw err;
      // Full, although trimmed: start again from this fragment's GOP or the next.
      this.#steps.unshift({ kind: "clear" }, step);
      return false;
    }
    this.#queued -= step.data.byteLength;
    const key = this.#track && keyframe(step.data, this.#track);
    if (key !== undefined) this.#keyframes.push(key);
    return true;
  }

  #trim(): void {
    const b = this.#buffer;
    if (!b || b.buffered.length === 0) return;
    const start = b.buffered.start(0);
    const to = trimTo(this.#video.currentTime, start, this.#keyframes);
    if (to === undefined) return;
    this.#keyframes = this.#keyframes.filter((k) => k >= to);
    // A hair before it, lest rounding takes the keyframe too.
    b.remove(Math.min(start, to - 0.01), to - 0.01);
  }
}
