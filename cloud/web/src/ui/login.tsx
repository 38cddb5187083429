import type { JSX } from "preact";
import { useState } from "preact/hooks";
import * as api from "../api/client.ts";
import { Mark } from "./icons.tsx";

/** Login says how to get in: the link that the server printed, or the bearer token. */
export function Login(props: { why: string; onDone: () => void }): JSX.Element {
  const [token, setToken] = useState("");
  const [why, setWhy] = useState(props.why);
  const [busy, setBusy] = useState(false);

  const submit = async (e: Event): Promise<void> => {
    e.preventDefault();
    if (!token.trim() || busy) return;
    setBusy(true);
    try {
      await api.login({ token: token.trim() });
      props.onDone();
    } catch (err) {
      setWhy(api.isSignedOut(err) ? "This token is not valid." : err instanceof Error ? err.message : String(err));
      setBusy(false);
    }
  };

  return (
    <main class="login" data-testid="login">
      <form class="card" onSubmit={submit}>
        <Mark />
        <h1>Open your cameras</h1>
        <p>
          Open the link that <code>make run</code> printed on the line that begins with <code>ready</code>. It works
          once.
        </p>
        <div class="or">or</div>
        <label for="token">Paste the account's bearer token</label>
        <input
          id="token"
          type="password"
          autocomplete="off"
          spellcheck={false}
          value={token}
          onInput={(e) => setToken(e.currentTarget.value)}
          aria-describedby="token-hint token-why"
          data-testid="token"
        />
        <p class="hint" id="token-hint">
          It stands in the file <code>admin-token</code> in the data directory.
        </p>
        <p class="why" id="token-why" role="alert">
          {why}
        </p>
        <button class="primary" type="submit" disabled={busy || !token.trim()}>
          Log in
        </button>
      </form>
    </main>
  );
}
