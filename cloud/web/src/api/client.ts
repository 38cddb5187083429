// Calls to the REST API of the origin that served this page.

import type { Channel, ChannelPage, LiveURLs, Order, Problem, RecordingPage } from "./types.ts";
import type { Timeline } from "../lib/timeline.ts";

/** APIError is an answer other than 2xx; its message is a sentence for people. */
export class APIError extends Error {
  readonly status: number;
  /** What kind of problem it is; programs decide by it. */
  readonly type: string;
  constructor(status: number, problem: Problem) {
    super(problem.detail || problem.title || `The cloud answered with status ${status}.`);
    this.name = "APIError";
    this.status = status;
    this.type = problem.type ?? "";
  }
}

/** Unreachable: no answer came at all. */
export class Unreachable extends Error {
  constructor(cause: unknown) {
    super("The cloud cannot be reached.", { cause });
    this.name = "Unreachable";
  }
}

export function isSignedOut(err: unknown): boolean {
  return err instanceof APIError && err.status === 401;
}

// A list that never ends is a server's mistake that must not hang the page.
const maxPages = 20;
// An answer that takes longer is no answer.
const timeoutMs = 10_000;

let clockOffset = 0;

/** serverNow is the cloud's clock: recordings are stamped by it, and the clock here may be wrong. */
export function serverNow(): number {
  return Date.now() + clockOffset;
}

async function call<T>(method: string, path: string, signal?: AbortSignal, body?: unknown): Promise<T> {
  const deadline = new AbortController();
  const timer = setTimeout(() => deadline.abort(), timeoutMs);
  const give = (): void => deadline.abort();
  signal?.addEventListener("abort", give);
  const init: RequestInit = {
    method,
    credentials: "same-origin",
    headers: { Accept: "application/json" },
    signal: deadline.signal,
  };
  if (body !== undefined) {
    init.body = JSON.stringify(body);
    init.headers = { ...init.headers, "Content-Type": "application/json" };
  }
  let res: Response;
  let text: string;
  try {
    res = await fetch(path, init);
    text = await res.text();
  } catch (err) {
    if (signal?.aborted) throw err;
    throw new Unreachable(err);
  } finally {
    clearTimeout(timer);
    signal?.removeEventListener("abort", give);
  }
  const date = Date.parse(res.headers.get("Date") ?? "");
  if (!Number.isNaN(date)) {
    // The header has whole seconds; follow it only when it is plainly another clock.
    const offset = date - Date.now();
    clockOffset = Math.abs(offset) > 5_000 ? offset : 0;
  }
  if (!res.ok) throw new APIError(res.status, problemOf(text));
  return (text === "" ? undefined : JSON.parse(text)) as T;
}

function problemOf(text: string): Problem {
  try {
    return (JSON.parse(text) as Problem | null) ?? {};
  } catch {
    return {}; // not JSON: some proxy's page
  }
}

function channelPath(id: string, rest = ""): string {
  return `/api/v1/channels/${encodeURIComponent(id)}${rest}`;
}

/** login trades a single-use code or a bearer token for the session cookie. */
export function login(with_: { code: string } | { token: string }): Promise<void> {
  return call("POST", "/api/v1/login", undefined, with_);
}

export function logout(): Promise<void> {
  return call("DELETE", "/api/v1/login");
}

export async function channels(signal?: AbortSignal): Promise<Channel[]> {
  const all: Channel[] = [];
  let cursor = "";
  for (let i = 0; i < maxPages; i++) {
    const query = cursor ? `?cursor=${encodeURIComponent(cursor)}` : "";
    const page = await call<ChannelPage>("GET", `/api/v1/channels${query}`, signal);
    all.push(...(page.channels ?? []));
    cursor = page.next_cursor ?? "";
    if (!cursor) break;
  }
  return all;
}

/** recordings fetches every page of what overlaps [from, to); without to, until now. */
export async function recordings(
  id: string,
  range: { from: Date; to?: Date },
  signal?: AbortSignal,
): Promise<Timeline> {
  const all: Timeline = { recordings: [], gaps: [], pending: [] };
  let cursor = "";
  for (let i = 0; i < maxPages; i++) {
    const query = new URLSearchParams({ from: range.from.toISOString() });
    if (range.to) query.set("to", range.to.toISOString());
    if (cursor) query.set("cursor", cursor);
    const page = await call<RecordingPage>("GET", channelPath(id, `/recordings?${query}`), signal);
    all.recordings.push(...(page.recordings ?? []));
    all.gaps.push(...(page.gaps ?? []));
    all.pending.push(...(page.pending ?? []));
    cursor = page.next_cursor ?? "";
    if (!cursor) break;
  }
  return all;
}

/**
 * live asks for the URL of the live picture; its ticket is short-lived, so ask
 * before each connection. wake starts a channel on demand that is idle.
 */
export function live(id: string, wake: boolean, signal?: AbortSignal): Promise<LiveURLs> {
  return call("GET", channelPath(id, `/live?start=${wake}`), signal);
}

/** isStarting: the stream is on its way, and to ask again in a second is of use. */
export function isStarting(err: unknown): boolean {
  return err instanceof APIError && err.type.endsWith(":starting");
}

// How long the hub may take to say how it went, seconds; less than an answer may take.
const wait_s = 5;

/** start has the channel's hub run its stream; an error says why it does not. */
export function start(id: string): Promise<Order> {
  return call("POST", channelPath(id, "/start"), undefined, { wait_s });
}

/** stop holds until the next start. */
export function stop(id: string): Promise<Order> {
  return call("POST", channelPath(id, "/stop"), undefined, { wait_s });
}
