import { offlineSentence } from "../lib/words.ts";
import { Backoff } from "./backoff.ts";
import { steer } from "./edge.ts";
import { canPlay, Feeder } from "./feeder.ts";
import { keyframe, videoTrack, type VideoTrack } from "./fmp4.ts";
import { parseMessage, subprotocol } from "./protocol.ts";

export type LiveState =
  | { kind: "connecting" }
  | { kind: "live"; mime: string }
  /** Connected, but nothing comes. */
  | { kind: "waiting" }
  | { kind: "offline"; cause: string }
  | { kind: "retrying"; why: string }
  /** The browser wants a tap before it plays. */
  | { kind: "blocked" }
  | { kind: "unsupported"; mime: string };

/** Where the live picture is; throws OfflineError when there is none to see now, StartingError when there soon is. */
export type Locate = (signal: AbortSignal) => Promise<string>;

/** OfflineError says that asking again at once is of no use, and why. */
export class OfflineError extends Error {}

/** StartingError says that the stream is on its way. */
export class StartingError extends Error {}

const tickMs = 250;
/** Chunks come every 200 ms; without any for this long the picture is not live. */
const quietMs = 4_000;
/** A socket that is silent for this long is dead, whatever TCP thinks. */
const deadMs = 15_000;
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
  readonly #locate: Locate;
  readonly #notify: (s: LiveState) => void;
  readonly #stop = new AbortController();

  #state: LiveState = { kind: "connecting" };
  #socket: WebSocket | undefined;
  #feeder: Feeder | undefined;
  #mime = "";
  #initNext = false;
  #init: ArrayBuffer | undefined;
  #track: VideoTrack | undefined;
  /** Set while fragments are left out until one that begins with a keyframe. */
  #awaitKey = false;
  /** In a row, without a live picture between. */
  #failures = 0;
  #heard = 0;
  #settleUntil = 0;
  #lastTime = -1;
  #hurry: (() => void) | undefined;

  constructor(video: HTMLVideoElement, locate: Locate, notify: (s: LiveState) => void) {
    this.#video = video;
    this.#locate = locate;
    this.#notify = notify;
    const signal = this.#stop.signal;
    const timer = setInterval(() => this.#tick(), tickMs);
    signal.addEventListener("abort", () => clearInterval(timer));
    video.addEventListener("timeupdate", () => this.#observe(), { signal });
    document.addEventListener("visibilitychange", () => void (document.hidden || this.play()), { signal });
    void this.#run();
  }

  close(): void {
    this.#stop.abort();
    this.#socket?.close();
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
    if (this.#state.kind === "offline" && performance.now() - this.#heard > quietMs) this.#socket?.close();
  }

  async #run(): Promise<void> {
    const backoff = new Backoff();
    while (!this.#stop.signal.aborted) {
      const began = performance.now();
      const end = await this.#connection();
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

  /** One connection; resolves, when it has ended, to the state that this leaves. */
  async #connection(): Promise<LiveState> {
    let url: string;
    try {
      url = await this.#locate(this.#stop.signal);
    } catch (err) {
      if (err instanceof StartingError) return { kind: "connecting" };
      const why = err instanceof Error ? err.message : String(err);
      return err instanceof OfflineError ? { kind: "offline", cause: why } : { kind: "retrying", why };
    }
    if (this.#stop.signal.aborted) return this.#state;
    return new Promise((resolve) => {
      let end: LiveState | undefined;
      const socket = new WebSocket(url, subprotocol);
      this.#socket = socket;
      socket.binaryType = "arraybuffer";
      this.#initNext = false;
      this.#heard = performance.now();
      socket.onmessage = (e: MessageEvent<string | ArrayBuffer>) => {
        this.#heard = performance.now();
        if (typeof e.data !== "string") return this.#binary(e.data);
        const m = parseMessage(e.data);
        if (m?.type === "init") {
          if (!canPlay(m.mime)) {
            end = { kind: "unsupported", mime: m.mime };
            return socket.close();
          }
          this.#mime = m.mime;
          this.#initNext = true;
        } else if (m?.type === "jump") {
          this.#settle();
          this.#feeder?.jump();
        } else if (m?.type === "offline") {
          this.#set({ kind: "offline", cause: offlineSentence(m.cause) });
        }
      };
      socket.onclose = () => {
        if (this.#socket === socket) this.#socket = undefined;
        const lost: LiveState = { kind: "retrying", why: "The connection was lost." };
        resolve(end ?? (this.#state.kind === "offline" ? this.#state : lost));
      };
    });
  }

  #binary(data: ArrayBuffer): void {
    if (this.#initNext) {
      this.#initNext = false;
      this.#init = data;
      this.#track = videoTrack(data);
      this.#awaitKey = false;
      this.#settle();
      if (this.#state.kind !== "live") this.#set({ kind: "connecting" });
      this.#feed().init(this.#mime, data);
    } else if (!this.#awaitKey || !this.#track || keyframe(data, this.#track) !== undefined) {
      this.#awaitKey = false;
      this.#feeder?.fragment(data);
    }
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
    this.#failures++;
    if (!this.#init || this.#failures >= maxFailures) {
      this.#failures = 0;
      this.#set({ kind: "retrying", why });
      this.#socket?.close();
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
    const quiet = performance.now() - this.#heard;
    if (this.#socket?.readyState !== WebSocket.OPEN || this.#state.kind === "offline") return;
    if (quiet > deadMs) this.#socket.close();
    else if (quiet > quietMs && this.#state.kind === "live") this.#set({ kind: "waiting" });
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
    const open = this.#socket?.readyState === WebSocket.OPEN;
    const fresh = performance.now() - this.#heard < quietMs;
    if (!moved || !open || !fresh || this.#state.kind === "offline") return;
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
