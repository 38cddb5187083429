import type { JSX } from "preact";
import { useEffect, useRef } from "preact/hooks";
import type { Channel } from "../api/types.ts";
import { stateWords } from "../lib/words.ts";

/** ChannelList names every channel with its state; a problem is a sentence, not a colour. */
export function ChannelList(props: {
  channels: Channel[];
  chosen: string | undefined;
  onChoose: (id: string) => void;
}): JSX.Element {
  const nav = useRef<HTMLElement>(null);
  useEffect(() => {
    nav.current?.querySelector("[aria-current]")?.scrollIntoView({ block: "nearest", inline: "nearest" });
  }, [props.chosen]);
  return (
    <nav class="channels" aria-label="Channels" ref={nav}>
      <ul data-testid="channel-list">
        {props.channels.map((c) => {
          const words = stateWords(c);
          return (
            <li key={c.id}>
              <a
                href={channelPath(c.id)}
                class="channel"
                aria-current={c.id === props.chosen ? "page" : undefined}
                data-testid="channel"
                data-channel={c.id}
                onClick={(e) => {
                  if (e.metaKey || e.ctrlKey || e.shiftKey) return; // a new tab or window
                  e.preventDefault();
                  props.onChoose(c.id);
                }}
              >
                <span class={`dot ${words.tone}`} aria-hidden="true" />
                <span class="channel-name">{c.name || c.id}</span>
                <span class={`channel-state ${words.tone}`}>{words.label}</span>
                {words.tone === "bad" && words.sentence && <span class="channel-problem">{words.sentence}</span>}
              </a>
            </li>
          );
        })}
      </ul>
    </nav>
  );
}

export const channelPath = (id: string): string => `/channels/${encodeURIComponent(id)}`;
