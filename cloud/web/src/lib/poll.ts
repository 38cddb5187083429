import { useEffect, useRef } from "preact/hooks";

/**
 * usePoll calls work at once, again `ms` after each call ended, and at once
 * when the page is looked at again; never while it is hidden, and never twice
 * at a time. A change of key starts over. `work` handles its own errors.
 */
export function usePoll(work: (signal: AbortSignal) => Promise<void>, ms: number, key: string): void {
  const latest = useRef(work);
  latest.current = work;
  useEffect(() => {
    const stop = new AbortController();
    let timer: number | undefined;
    let busy = false;
    const run = async (): Promise<void> => {
      clearTimeout(timer);
      if (busy || document.hidden || stop.signal.aborted) return;
      busy = true;
      try {
        await latest.current(stop.signal);
      } finally {
        busy = false;
      }
      if (!stop.signal.aborted) timer = window.setTimeout(run, ms);
    };
    void run();
    document.addEventListener("visibilitychange", run);
    return () => {
      stop.abort();
      clearTimeout(timer);
      document.removeEventListener("visibilitychange", run);
    };
  }, [key, ms]);
}
