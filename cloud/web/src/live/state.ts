// What the live view shows, and how a channel that has no picture says so.

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
