// Builds the boxes that tests need.

export const u32 = (...ns: number[]): Uint8Array => {
  const d = new DataView(new ArrayBuffer(4 * ns.length));
  ns.forEach((n, i) => d.setUint32(4 * i, n >>> 0));
  return new Uint8Array(d.buffer);
};
export const ascii = (s: string): Uint8Array => new TextEncoder().encode(s);

export function box(type: string, ...parts: Uint8Array[]): Uint8Array {
  const size = parts.reduce((n, p) => n + p.length, 8);
  return new Uint8Array([...u32(size), ...ascii(type), ...parts.flatMap((p) => [...p])]);
}

export const buffer = (...parts: Uint8Array[]): ArrayBuffer => new Uint8Array(parts.flatMap((p) => [...p])).buffer;

export const trak = (id: number, kind: string, scale: number): Uint8Array =>
  box("trak", box("tkhd", u32(0, 0, 0, id)),
    box("mdia", box("mdhd", u32(0, 0, 0, scale, 0)), box("hdlr", u32(0, 0), ascii(kind), u32(0))));

export const key = 0x0200_0000;
export const delta = 0x0101_0000;
