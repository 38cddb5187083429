// Plays recordings in headless Chromium, each from begin to end.
//
//   node play.mjs < list.json
//
// The list is of {name, url, seconds, pictures, width, height, sound, seek}; seek
// lists parts of the length, such as 0.5, that are sought afterwards. Prints "ok ..." for
// each recording that played as it says, else "FAIL ..." and ends with status 1.

import { readFileSync } from "node:fs";
import { chromium } from "playwright-core";
import { ok } from "./report.mjs";

const atOnce = 8; // decoders that a small machine feeds in real time
const patience = 20_000; // beyond the length of a recording, on a busy machine

const list = JSON.parse(readFileSync(0, "utf8"));
const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  args: [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--autoplay-policy=no-user-gesture-required",
  ],
});
try {
  const page = await browser.newPage();
  const queue = [...list];
  await Promise.all(Array.from({ length: atOnce }, async () => {
    for (let r = queue.shift(); r; r = queue.shift()) {
      const seen = await page.evaluate(play, { url: r.url, seek: r.seek, timeout: r.seconds * 1000 + patience });
      const wrong = judge(r, seen);
      if (wrong.length === 0) {
        ok(`chromium plays ${r.name}: ${seen.pictures} pictures in ${seen.duration.toFixed(2)} s`);
      } else {
        console.error(`FAIL chromium, ${r.name}: ${wrong.join("; ")}`);
        process.exitCode = 1;
      }
    }
  }));
} finally {
  await browser.close();
}

/** Runs in the page. Resolves to what a <video> did until it ended, failed or stood still for too long. */
function play({ url, seek, timeout }) {
  const video = document.createElement("video");
  document.body.append(video);
  const done = new Promise((resolve) => {
    video.onended = () => resolve("");
    video.onerror = () => resolve(`MediaError ${video.error.code}: ${video.error.message}`);
    setTimeout(() => resolve(`not at its end within ${timeout} ms`), timeout);
  });
  video.src = url;
  video.play().catch(() => {}); // an error comes to onerror too
  return done.then(async (problem) => {
    const quality = video.getVideoPlaybackQuality();
    const seen = {
      problem, duration: video.duration, time: video.currentTime, width: video.videoWidth, height: video.videoHeight,
      pictures: quality.totalVideoFrames, corrupted: quality.corruptedVideoFrames,
      soundBytes: video.webkitAudioDecodedByteCount,
    };
    // Here and there, as a viewer who drags the bar.
    for (const part of seek) {
      if (seen.problem) break;
      const sought = new Promise((resolve) => {
        video.onseeked = () => resolve("");
        video.onerror = () => resolve(`seeking to ${part}: MediaError ${video.error.code}: ${video.error.message}`);
        setTimeout(() => resolve(`no picture ${timeout} ms after seeking to ${part}`), timeout);
      });
      video.currentTime = video.duration * part;
      seen.problem = await sought;
    }
    video.removeAttribute("src");
    video.load();
    video.remove();
    return seen;
  });
}

function judge(r, seen) {
  const wrong = [];
  if (seen.problem) wrong.push(seen.problem);
  if (!(Math.abs(seen.duration - r.seconds) <= 0.1)) wrong.push(`${seen.duration} s long, want ${r.seconds}`);
  if (!(seen.time >= seen.duration - 0.1)) wrong.push(`ended at ${seen.time} s of ${seen.duration}`);
  if (seen.width !== r.width || seen.height !== r.height) wrong.push(`${seen.width}x${seen.height}, want ${r.width}x${r.height}`);
  if (seen.pictures < r.pictures) wrong.push(`${seen.pictures} pictures, want ${r.pictures}`);
  if (seen.corrupted > 0) wrong.push(`${seen.corrupted} corrupted pictures`);
  if (seen.soundBytes > 0 !== r.sound) wrong.push(`${seen.soundBytes} bytes of sound decoded, want ${r.sound ? "some" : "none"}`);
  return wrong;
}
