// One line for each thing seen or measured.

export function ok(what) {
  console.log(`ok ${what}`);
}

export function figure(name, milliseconds) {
  console.log(`figure ${name} ${milliseconds} ms`);
}

export function assert(condition, what, otherwise) {
  if (!condition) throw new Error(`${what}: no (${otherwise})`);
  ok(what);
}

/** within waits for work, which gets the time-out, and says what was waited for if it does not come. */
export async function within(ms, what, work) {
  try {
    const result = await work(ms);
    ok(what);
    return result;
  } catch (err) {
    throw new Error(`${what}: not within ${ms} ms (${err.message.split("\n")[0]})`, { cause: err });
  }
}
