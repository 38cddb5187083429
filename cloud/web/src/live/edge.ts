// Staying near the live edge, pure: given what is buffered and where playback
// is, where to seek and how fast to play. All times are seconds of media time.

export interface Span {
  start: number;
  end: number;
}

export interface Situation {
  currentTime: number;
  /** What can be played, sorted. */
  buffered: Span[];
  rate: number;
  muted: boolean;
  /** The first moments after a discontinuity, when a burst of older fragments arrives. */
  settling: boolean;
}

export interface Steering {
  seek?: number;
  rate: number;
}

/** Where a seek lands behind the newest frame: two chunks of 200 ms and a bit, so that the next may be late. */
export const target = 0.5;
/** Above this lag playback hurries, until it is below calmLag. */
export const hurryLag = 1.5;
const calmLag = 0.9;
/** 10 % faster is hardly heard, and wins a second in ten. */
const hurryRate = 1.1;
/** Who hears nothing notices less. */
const hurryRateMuted = 1.3;
/** Above this lag hurrying takes too long. */
export const seekLag = 5;
/** While settling a jump disturbs nobody: nothing was watched yet. */
const settlingSeekLag = 1;
/** Playback cannot cross a hole; this close to its edge it is standing still. */
const holeEdge = 0.15;
/** Buffered ranges and currentTime are rounded differently. */
const slack = 0.05;

export function steer(s: Situation): Steering {
  const last = s.buffered.at(-1);
  if (!last) return { rate: 1 };
  const here = s.buffered.find((b) => b.start - slack <= s.currentTime && s.currentTime <= b.end + slack);
  if (!here) return { seek: aim(last), rate: 1 };
  const lag = last.end - s.currentTime;
  if (lag > (s.settling ? settlingSeekLag : seekLag)) return { seek: aim(last), rate: 1 };
  if (here !== last && here.end - s.currentTime < holeEdge) return { seek: aim(last), rate: 1 };
  const hurry = lag > hurryLag || (s.rate > 1 && lag > calmLag);
  return { rate: !hurry ? 1 : s.muted ? hurryRateMuted : hurryRate };
}

function aim(s: Span): number {
  return Math.max(s.start, s.end - target);
}

/** Played footage that is kept, and how much more may gather before a trim: few, large removals. */
const keepBehind = 10;
const trimEvery = 20;

/**
 * trimTo says up to where played footage can go, or undefined if it is not
 * worth it yet. It is always a keyframe: a browser asked to remove up to the
 * middle of a GOP removes that whole GOP, even the part that is being played.
 */
export function trimTo(currentTime: number, bufferedStart: number, keyframes: number[]): number | undefined {
  const key = keyframes.findLast((k) => k <= currentTime - keepBehind);
  return key !== undefined && key - bufferedStart > trimEvery ? key : undefined;
}
