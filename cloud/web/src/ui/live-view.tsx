import type { JSX } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import * as api from "../api/client.ts";
import type { Channel } from "../api/types.ts";
import { codecName, hasSound, startable, stateWords } from "../lib/words.ts";
import { LivePlayer } from "../live/player.ts";
import { OfflineError, StartingError, type LiveState } from "../live/state.ts";
import { Fullscreen, Muted, NoPicture, Play, Sound } from "./icons.tsx";

/** Conflict, gone or not streaming now: there is a cause, and no hurry. */
const offlineStatus = new Set([404, 409, 410, 503]);

async function locate(channel: string, wake: boolean, signal: AbortSignal): Promise<string> {
  try {
    return (await api.live(channel, wake, signal)).mse;
  } catch (err) {
    if (api.isStarting(err)) throw new StartingError();
    if (err instanceof api.APIError && offlineStatus.has(err.status)) throw new OfflineError(err.message);
    throw err;
  }
}

/** LiveView is the live picture of one channel, or a slate that says why there is none. */
export function LiveView(props: { channel: Channel; onStart: () => void }): JSX.Element {
  const { channel } = props;
  const video = useRef<HTMLVideoElement>(null);
  const player = useRef<LivePlayer>(undefined);
  const stage = useRef<HTMLDivElement>(null);
  const [state, setState] = useState<LiveState>({ kind: "connecting" });
  const [muted, setMuted] = useState(true);

  useEffect(() => {
    setState({ kind: "connecting" });
    // Who opens the page wakes a channel on demand, once: a stop, here or
    // elsewhere, is not taken back by a page that stands open.
    let wake = true;
    const find = async (signal: AbortSignal): Promise<string> => {
      try {
        const url = await locate(channel.id, wake, signal);
        wake = false;
        return url;
      } catch (err) {
        wake &&= err instanceof api.Unreachable; // it did not hear
        throw err;
      }
    };
    const p = new LivePlayer(video.current!, find, setState);
    player.current = p;
    return () => p.close();
  }, [channel.id]);

  useEffect(() => {
    if (channel.streaming) player.current?.retryNow();
  }, [channel.streaming]);

  const slate = slateOf(state, channel);
  const live = state.kind === "live";
  const sound = live && hasSound(state.mime);
  return (
    <div class="stage" ref={stage}>
      <video
        ref={video}
        data-testid="live-video"
        data-channel={channel.id}
        aria-label={`Live picture of ${channel.name}`}
        muted={muted}
        autoPlay
        playsInline
        class={slate && state.kind !== "connecting" ? "dimmed" : ""}
      />
      {slate && (
        <div class="slate" role="status">
          {slate.busy ? <span class="spinner" aria-hidden="true" /> : <NoPicture />}
          <p class="slate-title">{slate.title}</p>
          {slate.sentence && <p>{slate.sentence}</p>}
          {slate.action === "start" && (
            <button class="primary" type="button" onClick={props.onStart}>
              <Play /> Start
            </button>
          )}
          {slate.action === "play" && (
            <button class="primary" type="button" onClick={() => player.current?.play()}>
              <Play /> Play
            </button>
          )}
        </div>
      )}
      <div class="overlay">
        <span class={`badge ${live ? "live" : ""}`} data-testid="live-state" data-state={state.kind}>
          {badges[state.kind]}
        </span>
        <span class="spacer" />
        {sound && (
          <button
            class="round"
            type="button"
            aria-label={muted ? "Turn sound on" : "Turn sound off"}
            title={muted ? "Turn sound on" : "Turn sound off"}
            data-testid="unmute"
            onClick={() => setMuted(!muted)}
          >
            {muted ? <Muted /> : <Sound />}
          </button>
        )}
        {live && (
          <button
            class="round"
            type="button"
            aria-label="Full screen"
            title="Full screen"
            onClick={() => toggleFullscreen(stage.current, video.current)}
          >
            <Fullscreen />
          </button>
        )}
      </div>
    </div>
  );
}

const badges: Record<LiveState["kind"], string> = {
  connecting: "Connecting",
  live: "Live",
  waiting: "Waiting",
  offline: "Offline",
  retrying: "Reconnecting",
  blocked: "Paused",
  unsupported: "Cannot play",
};

interface Slate {
  title: string;
  sentence?: string;
  busy?: boolean;
  action?: "start" | "play";
}

/** What stands over the picture; nothing when it is live. */
function slateOf(s: LiveState, c: Channel): Slate | undefined {
  switch (s.kind) {
    case "live":
      return undefined;
    case "connecting":
      return { title: "Connecting", busy: true };
    case "waiting":
      return { title: "Waiting for video", sentence: "The connection stands, but no video is arriving.", busy: true };
    case "retrying":
      return { title: "Reconnecting", sentence: s.why, busy: true };
    case "blocked":
      return { title: "Paused by the browser", action: "play" };
    case "unsupported":
      return {
        title: `This browser cannot play ${codecName(s.mime)}`,
        sentence:
          "The camera is recorded all the same, and recordings can be downloaded. " +
          "To watch here, set the camera to H264, use its low stream, or open this page in a browser that plays it.",
      };
    case "offline": {
      const words = stateWords(c);
      const slate: Slate = { title: words.tone === "live" ? "Offline" : words.label, sentence: words.sentence || s.cause };
      return startable(c.state) ? { ...slate, action: "start" } : slate;
    }
  }
}

/** iPhones know full screen for the <video> alone. */
function toggleFullscreen(stage: HTMLElement | null, video: (HTMLVideoElement & { webkitEnterFullscreen?: () => void }) | null): void {
  if (document.fullscreenElement) void document.exitFullscreen();
  else if (stage?.requestFullscreen) void stage.requestFullscreen();
  else video?.webkitEnterFullscreen?.();
}
