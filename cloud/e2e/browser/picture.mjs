// Is it a picture, and does it move? The first two functions run in the page.

/**
 * Notes in window.firstFrame when the live <video> came into the page (chosen)
 * and when its first frame was put on the screen (shown), in milliseconds since
 * the navigation began.
 */
export function watchFirstFrame() {
  const look = new MutationObserver(() => {
    const video = document.querySelector('[data-testid="live-video"]');
    if (!video) return;
    look.disconnect();
    window.firstFrame = { chosen: performance.now(), shown: 0 };
    video.requestVideoFrameCallback((now) => (window.firstFrame.shown = now));
  });
  look.observe(document, { childList: true, subtree: true });
}

/** Resolves when frames of a <video> differ from the first one seen, and are not blank. */
export async function changingPixels(video, timeout) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [320, 180];
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const deadline = performance.now() + timeout;
  const frame = () =>
    new Promise((resolve, reject) => {
      const timer = setTimeout(() => reject(new Error("no frame comes")), deadline - performance.now());
      video.requestVideoFrameCallback(() => {
        clearTimeout(timer);
        context.drawImage(video, 0, 0, canvas.width, canvas.height);
        resolve(context.getImageData(0, 0, canvas.width, canvas.height).data);
      });
    });
  const first = await frame();
  for (;;) {
    const now = await frame();
    let changed = 0;
    let [least, most] = [255, 0];
    for (let i = 0; i < now.length; i += 4) {
      // More than what an encoder's noise does to one pixel.
      if (Math.abs(now[i] - first[i]) + Math.abs(now[i + 1] - first[i + 1]) + Math.abs(now[i + 2] - first[i + 2]) > 48) changed++;
      least = Math.min(least, now[i + 1]);
      most = Math.max(most, now[i + 1]);
    }
    if (changed >= 20 && most - least > 30) return;
    if (performance.now() > deadline) throw new Error(`${changed} pixels changed, brightness ${least} to ${most}`);
  }
}

/** How much the brightness of a PNG varies; next to nothing when it is one colour. */
export async function contrastOf(context, png) {
  const blank = await context.newPage(); // the app's policy allows no such images
  try {
    return await blank.evaluate(async (bytes) => {
      const bitmap = await createImageBitmap(new Blob([new Uint8Array(bytes)], { type: "image/png" }));
      const canvas = new OffscreenCanvas(64, 36).getContext("2d");
      canvas.drawImage(bitmap, 0, 0, 64, 36);
      const { data } = canvas.getImageData(0, 0, 64, 36);
      const light = Array.from({ length: 64 * 36 }, (_, i) => data[4 * i + 1]);
      const mean = light.reduce((a, b) => a + b) / light.length;
      return Math.sqrt(light.reduce((a, b) => a + (b - mean) ** 2, 0) / light.length);
    }, [...png]);
  } finally {
    await blank.close();
  }
}
