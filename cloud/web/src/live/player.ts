import { offlineSentence } from "../lib/words.ts";
import { Backoff } from "./backoff.ts";
import { steer } from "./edge.ts";
import { Feeder, playable } from "./feeder.ts";
import { timing, videoTrack, type VideoTrack } from "./fmp4.ts";
import { dial } from "./link.ts";
import { Relay } from "./relay.ts";
import type { LiveState, Locate } from "./state.ts";

const tickMs = 250;
/** Chunks come every 200 ms; without any for this long the picture is not live. */
const quietMs = 4_000;
const maxFailures = 3;
/** How often to ask for a stream that starts. */
const startingMs = 1_000;
/** A camera's codec changes when somebody changes it: no hurry. */
const unsupportedMs = 60_000;
/** After an init or a jump, how long older fragments may still come in a burst. */
const settleMs = 2_000;

/**
 * LivePlayer shows a channel's live picture in a <video> until close(): it
 * connects, stays near the live edge, and connects again with backoff. It tells
 * every change of state.
 */
export class LivePlayer {
  readonly #video: HTMLVideoElement;
  readonly #relay: Relay;
  readonly #notify: (s: LiveState) => void;
  readonly #stop = new AbortController();

  #state: LiveState = { kind: "connecting" };
  #feeder: Feeder | undefined;
  #mime = "";
  #init: ArrayBuffer | undefined;
  #track: VideoTrack | undefined;
  /** Decode time at which the fragments end that the feeder got, seconds. */
  #edge: number | undefined;
  /** Set while fragments are left out until one that begins with a keyframe. */
  #awaitKey = false;
  /** In a row, without a live picture between. */
  #failures = 0;
  #settleUntil = 0;
  #lastTime = -1;
  #hurry: (() => void) | undefined;

  constructor(video: HTMLVideoElement, locate: Locate, notify: (s: LiveState) => void) {
    this.#video = video;
    this.#notify = notify;
    const screen = {
      playable,
      begin: (mime: string, init: ArrayBuffer) => this.#begin(mime, init),
      resume: () => this.#resume(),
      jump: () => this.#jump(),
      fragment: (data: ArrayBuffer) => this.#fragment(data),
      offline: (cause: string) => this.#set({ kind: "offline", cause: offlineSentence(cause) }),
      edge: () => this.#edge,
      ahead: () => this.#ahead(),
    };
    this.#relay = new Relay(screen, locate, dial);
    const signal = this.#stop.signal;
    const timer = setInterval(() => this.#tick(), tickMs);
    signal.addEventListener("abort", () => clearInterval(timer));
    video.addEventListener("timeupdate", () => this.#observe(), { signal });
    document.addEventListener("visibilitychange", () => void (document.hidden || this.play()), { signal });
    void this.#run();
  }

  close(): void {
    this.#stop.abort();
    this.#relay.close();
    this.#feeder?.close();
  }

  /** play is for the tap that some browsers want first. */
  play(): void {
    this.#video.play().catch((err: unknown) => {
      if (err instanceof DOMException && err.name === "NotAllowedError") this.#set({ kind: "blocked" });
    });
  }

  /** retryNow: someone else saw the channel streaming, so do not wait out the backoff. */
  retryNow(): void {
    this.#hurry?.();
    // An offline socket that was not told of the return has lost touch.
    if (this.#state.kind === "offline" && this.#quiet() > quietMs) this.#relay.close();
  }

  async #run(): Promise<void> {
    const backoff = new Backoff();
    while (!this.#stop.signal.aborted) {
      const began = performance.now();
      const end = await this.#relay.run(this.#stop.signal);
      if (this.#stop.signal.aborted) return;
      this.#set(end);
      await this.#pause(
        end.kind === "unsupported"
          ? unsupportedMs
          : end.kind === "connecting"
            ? startingMs
            : backoff.next(performance.now() - began),
      );
    }
  }

  #begin(mime: string, init: ArrayBuffer): void {
    this.#mime = mime;
    this.#init = init;
    this.#track = videoTrack(init);
    this.#awaitKey = false;
    this.#edge = undefined;
    this.#settle();
    if (this.#state.kind !== "live") this.#set({ kind: "connecting" });
    this.#feed().init(mime, init);
  }

  #resume(): void {
    if (this.#state.kind === "live") return; // and nobody sees that anything happened
    this.#settle();
    this.#set({ kind: "connecting" });
  }

  #jump(): void {
    this.#edge = undefined;
    this.#settle();
    this.#feeder?.jump();
  }

  #fragment(data: ArrayBuffer): void {
    const t = this.#track && timing(data, this.#track);
    if (this.#awaitKey && this.#track && t?.keyframe === undefined) return;
    this.#awaitKey = false;
    this.#edge = t?.end;
    this.#feeder?.fragment(data);
  }

  /** The feeder outlives connections, so that the last picture stands while there is none. */
  #feed(): Feeder {
    this.#feeder ??= new Feeder(
      this.#video,
      () => this.#steer(),
      (why) => this.#recover(why),
    );
    return this.#feeder;
  }

  /**
   * The browser gave the video up. One GOP may be at fault (Chromium refuses
   * some whose frames refer to the one before), so go on with the next one;
   * a few failures in a row are worth a new connection.
   */
  #recover(why: string): void {
    this.#feeder = undefined;
    this.#edge = undefined;
    this.#failures++;
    if (!this.#init || this.#failures >= maxFailures) {
      this.#failures = 0;
      this.#set({ kind: "retrying", why });
      this.#relay.close();
      return;
    }
    this.#set({ kind: "connecting" });
    this.#awaitKey = true;
    this.#settle();
    this.#feed().init(this.#mime, this.#init);
  }

  #settle(): void {
    this.#settleUntil = performance.now() + settleMs;
    this.#lastTime = -1;
  }

  #tick(): void {
    this.#steer();
    this.#observe();
    this.#relay.tick();
    if (this.#relay.open && this.#quiet() > quietMs && this.#state.kind === "live") this.#set({ kind: "waiting" });
  }

  /** For how long nothing came. */
  #quiet(): number {
    return performance.now() - this.#relay.heard;
  }

  #ahead(): number {
    const t = this.#video.currentTime;
    const here = this.#feeder?.buffered().find((b) => b.start <= t && t <= b.end);
    return here ? here.end - t : 0;
  }

  #steer(): void {
    const buffered = this.#feeder?.buffered() ?? [];
    if (buffered.length === 0 || this.#video.seeking) return;
    const settling = performance.now() < this.#settleUntil;
    const { currentTime, playbackRate: rate, muted } = this.#video;
    const s = steer({ currentTime, buffered, rate, muted, settling });
    if (s.rate !== rate) this.#video.playbackRate = s.rate;
    if (s.seek !== undefined) this.#video.currentTime = s.seek;
    if (this.#video.paused && this.#state.kind !== "blocked" && !document.hidden) this.play();
  }

  /** Playback that advances on fresh fragments is live, whatever was said before. */
  #observe(): void {
    const t = this.#video.currentTime;
    const moved = this.#lastTime >= 0 && t > this.#lastTime;
    this.#lastTime = this.#video.readyState >= HTMLMediaElement.HAVE_CURRENT_DATA && !this.#video.seeking ? t : -1;
    if (!moved || !this.#relay.open || this.#quiet() >= quietMs || this.#state.kind === "offline") return;
    this.#failures = 0;
    this.#set({ kind: "live", mime: this.#mime });
  }

  #pause(ms: number): Promise<void> {
    return new Promise((resolve) => {
      const done = (): void => {
        clearTimeout(timer);
        this.#hurry = undefined;
        this.#stop.signal.removeEventListener("abort", done);
        resolve();
      };
      const timer = setTimeout(done, ms);
      this.#hurry = done;
      this.#stop.signal.addEventListener("abort", done);
    });
  }

  #set(s: LiveState): void {
    if (this.#stop.signal.aborted || JSON.stringify(s) === JSON.stringify(this.#state)) return;
    this.#state = s;
    this.#notify(s);
  }
}
