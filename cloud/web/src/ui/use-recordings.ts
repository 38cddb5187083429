import { useEffect, useRef, useState } from "preact/hooks";
import * as api from "../api/client.ts";
import { usePoll } from "../lib/poll.ts";
import { emptyTimeline, merge, pollFrom, type Timeline } from "../lib/timeline.ts";

/** What the page shows: the last hour. */
export const windowMs = 3_600_000;
const pollMs = 5_000;
/** Between polls of the newest minutes: late footage from a hub's backlog shows up within this. */
const fullMs = 60_000;

interface State {
  channel: string;
  timeline: Timeline;
  loaded: boolean;
  now: number;
}

/** useRecordings keeps the last hour of a channel up to date. */
export function useRecordings(channel: string, onError: (err: unknown) => void): State {
  const empty = (): State => ({ channel, timeline: emptyTimeline, loaded: false, now: api.serverNow() });
  const [state, setState] = useState<State>(empty);
  const known = useRef(state);
  const lastFull = useRef(-Infinity);

  useEffect(() => {
    known.current = empty();
    lastFull.current = -Infinity;
    setState(known.current);
  }, [channel]);

  usePoll(
    async (signal) => {
      const horizon = api.serverNow() - windowMs;
      const full = performance.now() - lastFull.current > fullMs;
      const before = known.current.timeline;
      const from = pollFrom(before, horizon, full);
      try {
        const answer = await api.recordings(channel, { from: new Date(from) }, signal);
        if (signal.aborted) return;
        if (full) lastFull.current = performance.now();
        known.current = {
          channel,
          timeline: merge(before, answer, from, horizon),
          loaded: true,
          now: api.serverNow(),
        };
        setState(known.current);
      } catch (err) {
        if (!signal.aborted) onError(err);
      }
    },
    pollMs,
    channel,
  );

  return state.channel === channel ? state : empty();
}
