// The answers of the REST API, as /openapi.json describes them. Times are
// RFC 3339 strings in UTC.

export interface Channel {
  id: string;
  name: string;
  hub_id: string;
  mode: string;
  state: string;
  problem?: string;
  streaming: boolean;
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
  title?: string;
  detail?: string;
}
