import { parseMessage, subprotocol, type Message } from "./protocol.ts";

/** Link is one live WebSocket. */
export interface Link {
  readonly open: boolean;
  /** When it was dialled or last said something, as performance.now() counts. */
  readonly heard: number;
  close(): void;
}

export interface Listener {
  message(m: Message): void;
  /** An init segment or a fragment. */
  binary(data: ArrayBuffer): void;
  /** Once, whoever closed it, and never before dial has returned. */
  closed(): void;
}

export type Dial = (url: string, on: Listener) => Link;

/** dial never throws: an address that is not one, or is forbidden, is a socket that closes. */
export const dial: Dial = (url, on) => {
  let socket: WebSocket;
  let heard = performance.now();
  try {
    socket = new WebSocket(url, subprotocol);
  } catch {
    setTimeout(() => on.closed());
    return { open: false, heard, close: () => {} };
  }
  socket.binaryType = "arraybuffer";
  socket.onmessage = (e: MessageEvent<string | ArrayBuffer>) => {
    heard = performance.now();
    if (typeof e.data !== "string") return on.binary(e.data);
    const m = parseMessage(e.data);
    if (m) on.message(m);
  };
  let told = false;
  const closed = (): void => {
    if (!told) on.closed();
    told = true;
  };
  socket.onclose = closed;
  // It does not survive an error; Chromium says nothing else of an address that the page's policy forbids.
  socket.onerror = () => setTimeout(closed);
  return {
    get open() {
      return socket.readyState === WebSocket.OPEN;
    },
    get heard() {
      return heard;
    },
    close: () => socket.close(),
  };
};
