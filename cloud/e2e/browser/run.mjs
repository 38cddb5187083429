// Opens the web app in headless Chromium as a household would: log in by the
// link, watch live, play a recording.
//
//   node run.mjs URL OUTDIR
//
// URL is what the server prints after "ready ". Prints "ok ..." for each thing
// seen, "figure ..." for each thing measured, and leaves live.png and
// playback.png in OUTDIR. The first thing that is not as promised ends it with
// "FAIL ..." and status 1. Nothing is tried twice and nothing sleeps: every
// step waits for its condition, up to a time-out.

import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import { chromium } from "playwright-core";
import { assert, figure, ok, within } from "./report.mjs";
import { watchFirstFrame, changingPixels, contrastOf } from "./picture.mjs";

const openMs = 20_000; // page, login and channel list, on a busy machine
// The promise is live within 2 s of opening a channel. It is measured; only a
// run that sets LIVE_MS fails by it, because a test machine may be busy.
const liveMs = Number(process.env.LIVE_MS ?? openMs);
const recordingMs = 120_000; // the first recording ends 30 to 60 s after the stream began
const moveMs = 10_000; // playback that stands still for this long is broken

const [url, out] = process.argv.slice(2);
if (!url || !out) {
  console.error("usage: node run.mjs URL OUTDIR");
  process.exit(2);
}

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  args: [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--autoplay-policy=no-user-gesture-required",
  ],
});
try {
  await mkdir(out, { recursive: true });
  const context = await browser.newContext({ viewport: { width: 1280, height: 800 } });
  const page = await context.newPage();
  const complaints = [];
  const origins = new Set();
  page.on("pageerror", (e) => complaints.push(String(e)));
  page.on("console", (m) => m.type() === "error" && complaints.push(m.text()));
  page.on("request", (r) => /^https?:/.test(r.url()) && origins.add(new URL(r.url()).origin));
  page.on("websocket", (w) => origins.add(new URL(w.url()).origin.replace(/^ws/, "http")));
  await page.addInitScript(watchFirstFrame);

  await live(page);
  const storage = await playback(page);

  const foreign = [...origins].filter((o) => o !== new URL(url).origin && o !== storage);
  assert(foreign.length === 0, "only the cloud and its storage were asked for anything", foreign.join(" "));
  assert(complaints.length === 0, "the browser had nothing to complain about", complaints.join(" | "));
} catch (err) {
  console.error(`FAIL ${err.message.split("\n")[0]}`);
  process.exitCode = 1;
} finally {
  await browser.close();
}

async function live(page) {
  const response = await page.goto(url, { waitUntil: "commit", timeout: openMs });
  assert(response.ok(), "the page answers", `status ${response.status()}`);
  const login = page.getByTestId("login");
  const channel = page.getByTestId("channel-list").getByRole("link").first();
  await within(openMs, "the page opens", (timeout) => channel.or(login).waitFor({ timeout }));
  assert(!(await login.isVisible()), "the link logs in", "the page asks for a login");
  ok("there are channels");
  assert(!new URL(page.url()).search.includes("login"), "the login code is gone from the address bar", page.url());

  const video = page.getByTestId("live-video");
  await within(openMs, "a channel is chosen", (timeout) => video.waitFor({ timeout }));
  const first = await within(openMs, "the live picture appears", async (timeout) =>
    (await page.waitForFunction(() => window.firstFrame?.shown && window.firstFrame, null, { timeout })).jsonValue());
  figure("live_first_picture_ms", Math.round(first.shown));
  const took = Math.round(first.shown - first.chosen);
  assert(took <= liveMs, `the live picture came ${took} ms after the channel was chosen`, `more than ${liveMs} ms`);

  await within(moveMs, "the live picture's time advances", (timeout) => advances(page, "live-video", 0.5, timeout));
  await within(moveMs, "the live picture's pixels change", (timeout) => video.evaluate(changingPixels, timeout));
  await within(moveMs, "the page says that it is live", (timeout) =>
    page.locator('[data-testid="live-state"][data-state="live"]').waitFor({ timeout }));
  const lag = await video.evaluate((v) => v.buffered.end(v.buffered.length - 1) - v.currentTime);
  figure("live_buffered_ahead_ms", Math.round(lag * 1000));
  await page.screenshot({ path: join(out, "live.png") });
}

/** Returns the origin that the recording came from. */
async function playback(page) {
  const item = page.getByTestId("recordings").getByTestId("recording-item").first();
  await within(recordingMs, "a recording appears by itself", (timeout) => item.waitFor({ timeout }));
  await item.click();
  const video = page.getByTestId("playback-video");
  await within(moveMs, "the recording opens", (timeout) => video.waitFor({ timeout }));
  await within(moveMs, "the recording's time advances", (timeout) => advances(page, "playback-video", 1, timeout));
  await within(moveMs, "the recording's frames are shown", (timeout) =>
    page.waitForFunction(
      () => document.querySelector('[data-testid="playback-video"]').getVideoPlaybackQuality().totalVideoFrames >= 25,
      null,
      { timeout },
    ));
  await page.screenshot({ path: join(out, "playback.png") });

  // Storage need not allow a canvas to read it, so the screen is looked at;
  // without the controls, which move as well.
  await video.evaluate((v) => (v.controls = false));
  const before = await video.screenshot();
  await within(moveMs, "the recording's pixels change", async (timeout) => {
    const deadline = Date.now() + timeout;
    while ((await video.screenshot()).equals(before)) {
      if (Date.now() > deadline) throw new Error("every screenshot is the same");
      await advances(page, "playback-video", 0.1, timeout);
    }
  });
  const contrast = await contrastOf(page.context(), before);
  assert(contrast > 5, "the recording is a picture", `contrast ${contrast.toFixed(1)}`);
  const state = await video.evaluate((v) => ({ src: v.currentSrc, duration: v.duration, error: v.error?.message }));
  assert(!state.error && state.duration > 0, `the recording is ${state.duration.toFixed(1)} s long`, state.error);
  const storage = new URL(state.src).origin;
  ok(`the recording came straight from ${storage}`);
  return storage;
}

/** Waits until a <video> has played `seconds` more. */
async function advances(page, testid, seconds, timeout) {
  const from = await page.getByTestId(testid).evaluate((v) => v.currentTime);
  await page.waitForFunction(
    ([id, t]) => document.querySelector(`[data-testid="${id}"]`)?.currentTime >= t,
    [testid, from + seconds],
    { timeout },
  );
}
