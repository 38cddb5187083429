import type { JSX } from "preact";
import { useCallback, useEffect, useState } from "preact/hooks";
import * as api from "./api/client.ts";
import { Home } from "./ui/home.tsx";
import { Login } from "./ui/login.tsx";
import { Mark } from "./ui/icons.tsx";

type Session = { kind: "checking" } | { kind: "in" } | { kind: "out"; why: string };

/** takeCode reads the single-use code and takes it out of the address bar and the history. */
function takeCode(): string {
  const url = new URL(location.href);
  const code = url.searchParams.get("login") ?? "";
  if (url.searchParams.has("login")) {
    url.searchParams.delete("login");
    history.replaceState(null, "", url);
  }
  return code;
}

async function open(code: string): Promise<Session> {
  if (!code) return { kind: "in" }; // the first call tells otherwise
  try {
    await api.login({ code });
  } catch (err) {
    // A link opened twice in one browser is no reason to lock anybody out.
    const why = err instanceof Error ? err.message : String(err);
    return api.channels().then(
      () => ({ kind: "in" }),
      () => ({ kind: "out", why }),
    );
  }
  return { kind: "in" };
}

export function App(): JSX.Element {
  const [session, setSession] = useState<Session>({ kind: "checking" });
  useEffect(() => void open(takeCode()).then(setSession), []);
  const signedOut = useCallback((why: string) => setSession({ kind: "out", why }), []);
  switch (session.kind) {
    case "checking":
      return (
        <div class="splash" aria-label="Opening">
          <Mark />
        </div>
      );
    case "out":
      return <Login why={session.why} onDone={() => setSession({ kind: "in" })} />;
    case "in":
      return <Home onSignedOut={signedOut} />;
  }
}
