// Just enough of ISO/IEC 14496-12 to know which times a fragment covers and
// where keyframes stand. Pure; bytes that make no sense give no answer rather
// than an error, because the browser's own parser is the judge of them.

export interface VideoTrack {
  id: number;
  timescale: number;
  /** Duration, in ticks, and flags of a sample where a fragment names none (trex). */
  defaultDuration: number;
  defaultFlags: number;
}

/** Timing is what a fragment's video covers, in seconds. */
export interface Timing {
  /** Decode times: of the first frame, and where the next fragment's would be. */
  start: number;
  end: number;
  /** When the keyframe is shown that it begins with, if it does. */
  keyframe: number | undefined;
}

interface Box {
  type: string;
  body: DataView;
}

function* boxes(d: DataView): Generator<Box> {
  let pos = 0;
  while (pos + 8 <= d.byteLength) {
    const size = d.getUint32(pos);
    if (size < 8 || pos + size > d.byteLength) return;
    const type = String.fromCharCode(d.getUint8(pos + 4), d.getUint8(pos + 5), d.getUint8(pos + 6), d.getUint8(pos + 7));
    yield { type, body: new DataView(d.buffer, d.byteOffset + pos + 8, size - 8) };
    pos += size;
  }
}

function find(d: DataView, want: (b: Box) => boolean): DataView | undefined {
  for (const b of boxes(d)) if (want(b)) return b.body;
  return undefined;
}

function child(d: DataView | undefined, ...path: string[]): DataView | undefined {
  for (const type of path) {
    if (!d) return undefined;
    d = find(d, (b) => b.type === type);
  }
  return d;
}

/** videoTrack finds the first video track of an init segment. */
export function videoTrack(init: ArrayBuffer): VideoTrack | undefined {
  return orNothing(() => {
    const moov = child(new DataView(init), "moov");
    if (!moov) return undefined;
    for (const b of boxes(moov)) {
      if (b.type !== "trak") continue;
      const hdlr = child(b.body, "mdia", "hdlr");
      const tkhd = child(b.body, "tkhd");
      const mdhd = child(b.body, "mdia", "mdhd");
      if (!hdlr || !tkhd || !mdhd || hdlr.getUint32(8) !== 0x76696465 /* vide */) continue;
      const id = tkhd.getUint32(tkhd.getUint8(0) === 1 ? 20 : 12);
      const timescale = mdhd.getUint32(mdhd.getUint8(0) === 1 ? 20 : 12);
      const mvex = child(moov, "mvex");
      const trex = mvex && find(mvex, (t) => t.type === "trex" && t.body.getUint32(4) === id);
      if (timescale === 0) return undefined;
      return { id, timescale, defaultDuration: trex?.getUint32(12) ?? 0, defaultFlags: trex?.getUint32(20) ?? 0 };
    }
    return undefined;
  });
}

const nonSync = 0x0001_0000;

/** keyframe is the presentation time, in seconds, of the keyframe that a fragment begins with, if it does. */
export function keyframe(fragment: ArrayBuffer, track: VideoTrack): number | undefined {
  return timing(fragment, track)?.keyframe;
}

/** timing is what a fragment covers of a video track, if anything. */
export function timing(fragment: ArrayBuffer, track: VideoTrack): Timing | undefined {
  return orNothing(() => {
    const moof = child(new DataView(fragment), "moof");
    if (!moof) return undefined;
    for (const b of boxes(moof)) {
      const tfhd = b.type === "traf" ? child(b.body, "tfhd") : undefined;
      if (tfhd?.getUint32(4) !== track.id) continue;
      const tfdt = child(b.body, "tfdt");
      if (!tfdt) return undefined;
      const decode = tfdt.getUint8(0) === 1 ? Number(tfdt.getBigUint64(4)) : tfdt.getUint32(4);
      const defaults = { ...track, ...tfhdDefaults(tfhd) };
      const runs = [...boxes(b.body)].filter((t) => t.type === "trun").map((t) => readRun(t.body, defaults));
      const first = runs.find((r) => r.first)?.first;
      if (!first) return undefined;
      const ticks = runs.reduce((sum, r) => sum + r.duration, 0);
      return {
        start: decode / track.timescale,
        end: (decode + ticks) / track.timescale,
        keyframe: first.flags & nonSync ? undefined : (decode + first.offset) / track.timescale,
      };
    }
    return undefined;
  });
}

interface Defaults {
  defaultDuration: number;
  defaultFlags: number;
}

function tfhdDefaults(tfhd: DataView): Partial<Defaults> {
  const has = tfhd.getUint32(0);
  const out: Partial<Defaults> = {};
  let pos = 8 + (has & 0x1 ? 8 : 0) + (has & 0x2 ? 4 : 0);
  if (has & 0x8) out.defaultDuration = tfhd.getUint32(pos);
  pos += (has & 0x8 ? 4 : 0) + (has & 0x10 ? 4 : 0);
  if (has & 0x20) out.defaultFlags = tfhd.getUint32(pos);
  return out;
}

interface Run {
  /** Of all its samples, in ticks. */
  duration: number;
  /** Its first sample: flags, and presentation minus decode time; none in a run without samples. */
  first: { flags: number; offset: number } | undefined;
}

function readRun(trun: DataView, defaults: Defaults): Run {
  const has = trun.getUint32(0);
  const count = trun.getUint32(4);
  if (count === 0) return { duration: 0, first: undefined };
  let pos = 8 + (has & 0x1 ? 4 : 0);
  const firstFlags = has & 0x4 ? trun.getUint32(pos) : undefined;
  pos += has & 0x4 ? 4 : 0;
  const fields = [0x100, 0x200, 0x400, 0x800];
  const offsetOf = (field: number): number => 4 * fields.filter((f) => f < field && has & f).length;
  const size = offsetOf(0x1000);
  let duration = 0;
  if (has & 0x100) for (let i = 0; i < count; i++) duration += trun.getUint32(pos + i * size);
  else duration = count * defaults.defaultDuration;
  return {
    duration,
    first: {
      flags: firstFlags ?? (has & 0x400 ? trun.getUint32(pos + offsetOf(0x400)) : defaults.defaultFlags),
      offset: has & 0x800 ? trun.getInt32(pos + offsetOf(0x800)) : 0,
    },
  };
}

function orNothing<T>(read: () => T | undefined): T | undefined {
  try {
    return read();
  } catch {
    return undefined; // a DataView was asked for bytes past its end
  }
}
