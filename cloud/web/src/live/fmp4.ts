// Just enough of ISO/IEC 14496-12 to know at which times keyframes stand. Pure;
// bytes that make no sense give no answer rather than an error, because the
// browser's own parser is the judge of them.

export interface VideoTrack {
  id: number;
  timescale: number;
  /** Sample flags where a fragment names none (trex). */
  defaultFlags: number;
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
      return timescale > 0 ? { id, timescale, defaultFlags: trex?.getUint32(20) ?? 0 } : undefined;
    }
    return undefined;
  });
}

const nonSync = 0x0001_0000;

/** keyframe is the presentation time, in seconds, of the keyframe that a fragment begins with, if it does. */
export function keyframe(fragment: ArrayBuffer, track: VideoTrack): number | undefined {
  return orNothing(() => {
    const moof = child(new DataView(fragment), "moof");
    if (!moof) return undefined;
    for (const b of boxes(moof)) {
      const tfhd = b.type === "traf" ? child(b.body, "tfhd") : undefined;
      if (tfhd?.getUint32(4) !== track.id) continue;
      const tfdt = child(b.body, "tfdt");
      const trun = child(b.body, "trun");
      if (!tfdt || !trun) return undefined;
      const first = firstSample(trun, tfhdFlags(tfhd) ?? track.defaultFlags);
      if (!first || first.flags & nonSync) return undefined;
      const decode = tfdt.getUint8(0) === 1 ? Number(tfdt.getBigUint64(4)) : tfdt.getUint32(4);
      return (decode + first.offset) / track.timescale;
    }
    return undefined;
  });
}

function tfhdFlags(tfhd: DataView): number | undefined {
  const has = tfhd.getUint32(0);
  if (!(has & 0x20)) return undefined;
  const pos = 8 + (has & 0x1 ? 8 : 0) + (has & 0x2 ? 4 : 0) + (has & 0x8 ? 4 : 0) + (has & 0x10 ? 4 : 0);
  return tfhd.getUint32(pos);
}

function firstSample(trun: DataView, defaultFlags: number): { flags: number; offset: number } | undefined {
  const has = trun.getUint32(0);
  if (trun.getUint32(4) === 0) return undefined;
  let pos = 8 + (has & 0x1 ? 4 : 0);
  let flags = defaultFlags;
  const firstFlags = has & 0x4 ? trun.getUint32(pos) : undefined;
  pos += (has & 0x4 ? 4 : 0) + (has & 0x100 ? 4 : 0) + (has & 0x200 ? 4 : 0);
  if (has & 0x400) {
    flags = trun.getUint32(pos);
    pos += 4;
  }
  return { flags: firstFlags ?? flags, offset: has & 0x800 ? trun.getInt32(pos) : 0 };
}

function orNothing<T>(read: () => T | undefined): T | undefined {
  try {
    return read();
  } catch {
    return undefined; // a DataView was asked for bytes past its end
  }
}
