import type { JSX } from "preact";
import { useCallback, useEffect, useMemo, useRef, useState } from "preact/hooks";
import * as api from "../api/client.ts";
import type { Channel, Recording } from "../api/types.ts";
import { clockTime, dayName } from "../lib/format.ts";
import { at, next, rows as rowsOf } from "../lib/timeline.ts";
import { stateWords } from "../lib/words.ts";
import { Back } from "./icons.tsx";
import { LiveView } from "./live-view.tsx";
import { Playback } from "./playback.tsx";
import { Recordings } from "./recordings.tsx";
import { Strip } from "./strip.tsx";
import { useRecordings, windowMs } from "./use-recordings.ts";

/** ChannelView is one channel: its live picture or a recording of it, and its last hour. */
export function ChannelView(props: {
  channel: Channel;
  onChanged: () => Promise<void>;
  onError: (err: unknown) => void;
}): JSX.Element {
  const { channel } = props;
  const [playing, setPlaying] = useState<Recording>();
  const [refusal, setRefusal] = useState("");
  const { timeline, loaded, now } = useRecordings(channel.id, props.onError);
  const rows = useMemo(() => rowsOf(timeline), [timeline]);

  useEffect(() => {
    document.title = `${channel.name} · Cameras`;
  }, [channel.name]);

  // On a phone the list is long, and what was chosen plays above it.
  const watch = useRef<HTMLElement>(null);
  useEffect(() => {
    if (playing) watch.current?.scrollIntoView({ block: "nearest" });
  }, [playing?.id]);

  const command = useCallback(
    async (run: (id: string) => Promise<unknown>): Promise<void> => {
      setRefusal("");
      try {
        await run(channel.id);
      } catch (err) {
        if (api.isSignedOut(err)) return props.onError(err);
        setRefusal(err instanceof Error ? err.message : String(err));
      }
      await props.onChanged();
    },
    [channel.id],
  );

  const words = stateWords(channel);
  // What follows in the timeline plays on; at its end the live picture returns.
  const playNext = (): void => setPlaying(playing && next(timeline, playing));

  return (
    <>
      <main class="watch" ref={watch}>
        {playing ? (
          <Playback channel={channel.id} recording={playing} onEnded={playNext} />
        ) : (
          <LiveView channel={channel} onStart={() => void command(api.start)} />
        )}
        <div class="caption">
          <div>
            <h2>{channel.name}</h2>
            <p class="hint" data-testid="caption">
              {playing ? `Recording of ${dayName(at(playing.start))}, ${clockTime(at(playing.start))}` : words.label}
            </p>
          </div>
          <span class="spacer" />
          {playing && (
            <button type="button" class="back" data-testid="back-to-live" onClick={() => setPlaying(undefined)}>
              <Back /> Back to live
            </button>
          )}
          {!playing && channel.mode === "on_demand" && channel.streaming && (
            <button type="button" class="quiet" onClick={() => void command(api.stop)}>
              Stop
            </button>
          )}
        </div>
        {refusal && (
          <p class="trouble" role="alert">
            {refusal}
          </p>
        )}
        <Strip rows={rows} now={now} windowMs={windowMs} chosen={playing?.id} onChoose={setPlaying} />
      </main>
      <Recordings channel={channel} rows={rows} loaded={loaded} chosen={playing?.id} onChoose={setPlaying} />
    </>
  );
}
