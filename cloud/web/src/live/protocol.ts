// Text messages of the live WebSocket, subprotocol "vms.mse.v1". Binary
// messages are an init segment right after each "init", else fragments.

export const subprotocol = "vms.mse.v1";

export type Message =
  | { type: "init"; mime: string }
  /** Fragments were skipped or time jumped; the next one begins with a keyframe. */
  | { type: "jump" }
  /** The stream ended; an "init" follows on this socket when it is back. */
  | { type: "offline"; cause: string }
  /**
   * The stream goes on, or soon will, at another worker: at this URL, or, where
   * it is empty, at the one that the API names. What the agent still brings here
   * is shown here.
   */
  | { type: "moved"; url: string };

/** parseMessage gives undefined for what this version does not know. */
export function parseMessage(text: string): Message | undefined {
  let m: unknown;
  try {
    m = JSON.parse(text);
  } catch {
    return undefined;
  }
  if (typeof m !== "object" || m === null || !("type" in m)) return undefined;
  switch (m.type) {
    case "init":
      return "mime" in m && typeof m.mime === "string" ? { type: "init", mime: m.mime } : undefined;
    case "jump":
      return { type: "jump" };
    case "offline":
      return { type: "offline", cause: "cause" in m && typeof m.cause === "string" ? m.cause : "" };
    case "moved":
      return { type: "moved", url: "url" in m && typeof m.url === "string" ? m.url : "" };
  }
  return undefined;
}
