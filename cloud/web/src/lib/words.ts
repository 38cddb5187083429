// What states and causes are called on the page. The words are those of the
// API; the sentences here are used where the API gives none.

import type { Channel } from "../api/types.ts";

export type Tone = "live" | "busy" | "bad" | "off";

export interface StateWords {
  label: string;
  tone: Tone;
  /** Why there is no picture, for people; empty when all is well. */
  sentence: string;
}

const states: Record<string, StateWords> = {
  idle: { label: "Not started", tone: "off", sentence: "This channel is not started." },
  starting: { label: "Starting", tone: "busy", sentence: "The hub is connecting to the camera." },
  streaming: { label: "Live", tone: "live", sentence: "" },
  buffering: {
    label: "Buffering",
    tone: "busy",
    sentence: "The hub is recording but cannot reach the cloud. The footage follows when it can.",
  },
  no_camera: { label: "Camera offline", tone: "bad", sentence: "The camera does not answer. The hub keeps trying." },
  bad_camera: {
    label: "Camera problem",
    tone: "bad",
    sentence: "The camera answers, but not with video that can be recorded.",
  },
  auth: { label: "Login refused", tone: "bad", sentence: "The camera refuses the user name or the password." },
  refused: { label: "Not authorized", tone: "bad", sentence: "The hub is no longer allowed to stream this channel." },
  waiting: { label: "Waiting", tone: "off", sentence: "The hub waits for the hours of this channel, or for an event." },
  stopped: { label: "Stopped", tone: "off", sentence: "This channel is stopped." },
};

export function stateWords(c: Pick<Channel, "state" | "problem" | "streaming">): StateWords {
  // A hub that vanished leaves its last state behind; streaming is what the worker sees.
  if (c.state === "streaming" && !c.streaming) {
    return { label: "Offline", tone: "bad", sentence: c.problem || "The hub is not sending at the moment." };
  }
  const known = states[c.state] ?? { label: c.state || "Unknown", tone: "off" as const, sentence: "" };
  return { ...known, sentence: c.problem || known.sentence };
}

/** startable channels are not running because nobody asked them to. */
export function startable(state: string): boolean {
  return state === "idle" || state === "stopped";
}

const causes: Record<string, string> = {
  camera_offline: "The camera did not answer or sent no video.",
  hub_unreachable: "The hub has not been heard of.",
  agent_restarted: "The hub's agent restarted.",
};

/** offlineSentence turns the cause of an "offline" message into a sentence; some senders give a sentence already. */
export function offlineSentence(cause: string): string {
  if (causes[cause]) return causes[cause];
  return cause.includes(" ") ? cause : "The camera's stream has ended.";
}

/** codecName is the name people know for an RFC 6381 codec string. */
export function codecName(mimeOrCodecs: string): string {
  if (/\b(hvc1|hev1)\b/.test(mimeOrCodecs)) return "H265 (HEVC)";
  if (/\b(avc1|avc3)\b/.test(mimeOrCodecs)) return "H264";
  if (/\bav01\b/.test(mimeOrCodecs)) return "AV1";
  if (/\bmp4v\.6C\b/i.test(mimeOrCodecs)) return "Motion JPEG";
  return "this video format";
}

/**
 * spellings are the names by which browsers know a codec string, best first.
 * FLAC in MP4 is "flac" for most. Safari wants the name of the sample entry,
 * which others take too and may then fail to play.
 */
export function spellings(mimeOrCodecs: string): string[] {
  const safari = mimeOrCodecs.replace(/\bflac\b/, "fLaC");
  return safari === mimeOrCodecs ? [mimeOrCodecs] : [mimeOrCodecs, safari];
}

export function hasSound(mimeOrCodecs: string): boolean {
  return /\b(mp4a|opus|flac|ac-3|ec-3)\b/i.test(mimeOrCodecs);
}
