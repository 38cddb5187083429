import type { JSX } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import * as api from "../api/client.ts";
import type { Recording } from "../api/types.ts";
import { at } from "../lib/timeline.ts";
import { codecName, spellings } from "../lib/words.ts";
import { NoPicture } from "./icons.tsx";

/** A second failure this soon after a fresh URL is not the URL's fault. */
const refreshMs = 10_000;

/** freshURL asks for a recording again, for the sake of its presigned URL. */
export async function freshURL(channel: string, r: Recording): Promise<string | undefined> {
  if (at(r.url_expires_at) > api.serverNow() + 5_000) return r.url;
  return refetchURL(channel, r);
}

async function refetchURL(channel: string, r: Recording): Promise<string | undefined> {
  const page = await api.recordings(channel, { from: new Date(at(r.start)), to: new Date(at(r.end)) });
  // A part may have been replaced by the whole meanwhile.
  const there = page.recordings.find((n) => n.id === r.id) ?? page.recordings.find((n) => at(n.start) <= at(r.start) && at(r.start) < at(n.end));
  return there?.url;
}

/** Playback plays one recording straight from storage, and survives the expiry of its URL. */
export function Playback(props: { channel: string; recording: Recording; onEnded: () => void }): JSX.Element {
  const { channel, recording } = props;
  const video = useRef<HTMLVideoElement>(null);
  const [why, setWhy] = useState("");
  const current = useRef(recording.id);
  const refreshed = useRef(-Infinity);

  // Only a change of recording loads: each poll brings another URL for the same object.
  useEffect(() => {
    current.current = recording.id;
    refreshed.current = -Infinity;
    setWhy("");
    void freshURL(channel, recording).then((url) => load(url, 0), failed);
  }, [recording.id]);

  const load = (url: string | undefined, time: number): void => {
    const v = video.current;
    if (!v || current.current !== recording.id) return;
    if (!url) return setWhy("This recording is no longer there.");
    v.src = url;
    if (time > 0) v.currentTime = time;
    void v.play().catch(() => undefined); // the controls are there
  };
  const failed = (err: unknown): void => setWhy(err instanceof Error ? err.message : String(err));

  const onError = (): void => {
    const v = video.current!;
    if (v.error?.code === MediaError.MEDIA_ERR_DECODE || !plays(recording.codecs)) {
      return setWhy(`This browser cannot play ${codecName(recording.codecs)}. The recording can be downloaded.`);
    }
    if (performance.now() - refreshed.current < refreshMs) return setWhy("The recording could not be loaded.");
    refreshed.current = performance.now();
    const time = v.currentTime;
    refetchURL(channel, recording).then((url) => load(url, time), failed);
  };

  return (
    <div class="stage">
      <video
        ref={video}
        data-testid="playback-video"
        data-recording={recording.id}
        aria-label="Recording"
        controls
        playsInline
        onError={onError}
        onEnded={props.onEnded}
      />
      {why && (
        <div class="slate" role="alert">
          <NoPicture />
          <p class="slate-title">Cannot play</p>
          <p>{why}</p>
        </div>
      )}
    </div>
  );
}

function plays(codecs: string): boolean {
  const video = document.createElement("video");
  return codecs === "" || spellings(codecs).some((c) => video.canPlayType(`video/mp4; codecs="${c}"`) !== "");
}
