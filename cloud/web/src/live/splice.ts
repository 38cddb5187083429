// Where a stream goes on that has moved to another worker, pure. Both workers
// pass on the agent's own fragments, so the times of one go on at the other;
// what the newcomer sends first may have been shown already, up to a GOP of it.

import type { Timing } from "./fmp4.ts";

/** Moment is what is known when a newcomer brought something, or time has passed. */
export interface Moment {
  /** Decode time at which the shown fragments end, seconds; undefined: the newcomer's stream is another, or nothing is shown. */
  edge: number | undefined;
  /** Seconds of picture that are not played yet. */
  ahead: number;
  /** The socket that was shown is gone. */
  alone: boolean;
  /** Milliseconds, of any clock that goes on. */
  now: number;
}

export interface Takeover {
  /** What is shown is to be cleared, and the newcomer's init appended. */
  anew: boolean;
  /** What goes on from there, in order. */
  fragments: ArrayBuffer[];
}

interface Piece extends Timing {
  data: ArrayBuffer;
}

/** Times in seconds are rounded; no frame is this short. */
const rounding = 0.002;
/** Fragments no farther apart than this follow each other: less is hardly seen. */
const seam = 0.1;
/** With less than this to play, what is missing is given up: enough to append and seek. */
const scarce = 0.25;
/** Without a picture for this long, a newcomer whose times are long past goes on all the same: time was set back. */
const patienceMs = 3_000;
/** What is kept of a GOP that was shown already. */
const maxKept = 32 << 20;

/** Splice collects what a newcomer brings since its init or jump until it can take over. */
export class Splice {
  #pieces: Piece[] = [];
  #size = 0;
  /** A fragment could not be read: nothing is known of its time. */
  #timeless = false;
  #dryFrom: number | undefined;

  /** add takes the next fragment; nothing counts before a keyframe. */
  add(data: ArrayBuffer, t: Timing | undefined): void {
    if (!t) this.#timeless = true;
    else if (this.#pieces.length === 0 && t.keyframe === undefined) return;
    const piece = { start: 0, end: 0, keyframe: undefined, ...t, data };
    this.#pieces.push(piece);
    this.#size += data.byteLength;
  }

  /** decide says whether the newcomer takes over now, and how. */
  decide(m: Moment): Takeover | undefined {
    if (m.ahead > seam) this.#dryFrom = undefined;
    else this.#dryFrom ??= m.now;
    if (this.#pieces.length === 0) return undefined;
    const { edge } = m;
    if (edge === undefined || this.#timeless) return { anew: true, fragments: this.#from(0) };
    this.#trim(edge);

    const first = this.#pieces.findIndex((p) => p.end > edge + rounding);
    const piece = this.#pieces[first];
    if (!piece) {
      if (this.#pieces.at(-1)!.end >= edge - rounding) return { anew: false, fragments: [] }; // level
      if (this.#dryFrom === undefined || m.now - this.#dryFrom < patienceMs) return undefined; // it is behind, and catches up
      const key = this.#pieces.findLastIndex((p) => p.keyframe !== undefined);
      return key < 0 ? undefined : { anew: true, fragments: this.#from(key) };
    }
    if (piece.start > edge + seam) {
      // Something is missing between. What was shown until now may still bring it.
      return m.alone || m.ahead < scarce ? { anew: false, fragments: this.#from(first) } : undefined;
    }
    if (piece.start >= edge - rounding) return { anew: false, fragments: this.#from(first) };
    // Cut otherwise than before: half of a fragment is of no use, its whole GOP is.
    const key = this.#pieces.findLastIndex((p, i) => i <= first && p.keyframe !== undefined);
    return key < 0 ? undefined : { anew: false, fragments: this.#from(key) };
  }

  #from(i: number): ArrayBuffer[] {
    return this.#pieces.slice(i).map((p) => p.data);
  }

  /** Forgets what was shown, but for the GOP that the edge is in, unless that is large. */
  #trim(edge: number): void {
    const covered = (p: Piece): boolean => p.end <= edge + rounding;
    const key = this.#pieces.findLastIndex((p) => p.keyframe !== undefined && covered(p));
    if (key > 0) this.#drop(key);
    if (this.#size <= maxKept) return;
    const first = this.#pieces.findIndex((p) => !covered(p));
    this.#drop(first < 0 ? this.#pieces.length - 1 : first);
  }

  #drop(n: number): void {
    for (const p of this.#pieces.splice(0, n)) this.#size -= p.data.byteLength;
  }
}
