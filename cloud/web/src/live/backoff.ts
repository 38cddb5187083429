/**
 * Backoff is how long to wait before the next connection: doubling, with
 * jitter so that many pages do not come back together, and starting over only
 * after a connection that held.
 */
export class Backoff {
  static readonly min = 500;
  static readonly max = 10_000;
  static readonly steady = 10_000;
  #wait = Backoff.min;
  readonly #random: () => number;

  constructor(random: () => number = Math.random) {
    this.#random = random;
  }

  /** next takes how long the last connection held; all in milliseconds. */
  next(held: number): number {
    if (held >= Backoff.steady) this.#wait = Backoff.min;
    const wait = this.#wait;
    this.#wait = Math.min(Backoff.max, wait * 2);
    return wait * (0.5 + this.#random() / 2);
  }
}
