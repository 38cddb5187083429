import type { JSX } from "preact";
import { useCallback, useEffect, useState } from "preact/hooks";
import * as api from "../api/client.ts";
import type { Channel } from "../api/types.ts";
import { usePoll } from "../lib/poll.ts";
import { ChannelList, channelPath } from "./channel-list.tsx";
import { ChannelView } from "./channel-view.tsx";
import { Mark } from "./icons.tsx";

const pollMs = 3_000;

function chosenInPath(): string | undefined {
  const m = /^\/channels\/([^/]+)$/.exec(location.pathname);
  return m ? decodeURIComponent(m[1]!) : undefined;
}

/** Home is the page of who is logged in: channels, and the chosen one. */
export function Home(props: { onSignedOut: (why: string) => void }): JSX.Element {
  const [channels, setChannels] = useState<Channel[]>();
  const [wanted, setWanted] = useState(chosenInPath);
  const [trouble, setTrouble] = useState("");

  const onError = useCallback(
    (err: unknown): void => {
      if (api.isSignedOut(err)) props.onSignedOut("");
      else setTrouble(err instanceof Error ? err.message : String(err));
    },
    [props.onSignedOut],
  );
  const reload = useCallback(async (signal?: AbortSignal): Promise<void> => {
    try {
      const list = await api.channels(signal);
      if (signal?.aborted) return;
      setChannels(list);
      setTrouble("");
    } catch (err) {
      if (!signal?.aborted) onError(err);
    }
  }, []);
  usePoll(reload, pollMs, "channels");

  useEffect(() => {
    const back = (): void => setWanted(chosenInPath());
    addEventListener("popstate", back);
    return () => removeEventListener("popstate", back);
  }, []);

  const choose = (id: string): void => {
    if (id === chosenInPath()) return;
    history.pushState(null, "", channelPath(id));
    setWanted(id);
  };
  const logout = (): void => void api.logout().then(() => props.onSignedOut("You are logged out."), onError);

  // Without a choice: what there is to see.
  const chosen = channels?.find((c) => c.id === wanted) ?? channels?.find((c) => c.streaming) ?? channels?.[0];
  useEffect(() => {
    // Stay with it when another channel starts streaming first.
    if (chosen && chosen.id !== wanted) setWanted(chosen.id);
  }, [chosen?.id, wanted]);

  return (
    <div class="page">
      <header class="top">
        <Mark />
        <h1>Cameras</h1>
        <span class="spacer" />
        <button type="button" class="quiet" onClick={logout}>
          Log out
        </button>
      </header>
      {trouble && (
        <p class="trouble" role="alert">
          {trouble} Trying again.
        </p>
      )}
      <div class="body">
        {channels && channels.length > 0 && (
          <ChannelList channels={channels} chosen={chosen?.id} onChoose={choose} />
        )}
        {chosen && <ChannelView key={chosen.id} channel={chosen} onChanged={reload} onError={onError} />}
        {channels?.length === 0 && (
          <main class="nothing">
            <h2>No channels yet</h2>
            <p>A channel is one camera, registered with this cloud. Channels are made through the API.</p>
          </main>
        )}
      </div>
    </div>
  );
}
