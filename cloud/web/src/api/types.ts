// The answers of the REST API, as /openapi.json describes them. Times are
// RFC 3339 strings in UTC.

export interface Channel {
  id: string;
  name: string;
  hub_id: string;
  /** "on_demand", "continuous", "scheduled" or "event". */
  mode: string;
  schedule: string;
  pre_roll_s: number;
  post_roll_s: number;
  state: string;
  problem?: string;
  wanted: boolean;
  /** Of mode on_demand: "request" or "viewer"; otherwise empty. */
  wanted_by: string;
  wanted_until?: string;
  /** What its hub says: "SYNCING", "IN_SYNC" or "FAILED". */
  sync_state?: string;
  recording: boolean;
  streaming: boolean;
}

/** Order is an order to a hub that was taken; state and what follows are the hub's answer, if it was waited for. */
export interface Order {
  revision: number;
  hub_online: boolean;
  state?: string;
  running?: boolean;
  recording?: boolean;
  stream?: string;
  problem?: string;
}

export interface ChannelPage {
  channels: Channel[] | null;
  next_cursor?: string;
}

export interface Recording {
  id: string;
  start: string;
  end: string;
  media_ms: number;
  bytes: number;
  codecs: string;
  /** A part of a recording that is not complete yet: the whole takes its place. */
  provisional?: boolean;
  url: string;
  url_expires_at: string;
}

export interface Gap {
  id: string;
  start: string;
  end: string;
  cause: string;
  sentence: string;
}

/** Pending footage is still in the hub's buffer. */
export interface Pending {
  start: string;
  end: string;
}

export interface RecordingPage {
  recordings: Recording[] | null;
  gaps: Gap[] | null;
  pending: Pending[] | null;
  next_cursor?: string;
}

export interface LiveURLs {
  mse: string;
  expires_at: string;
}

export interface Problem {
  type?: string;
  title?: string;
  detail?: string;
}
