import { defineConfig } from "vite";

// The cloud serves the result: web.go embeds dist/app and sends a strict
// Content-Security-Policy, so nothing may be inlined.
export default defineConfig({
  build: {
    outDir: "dist/app",
    emptyOutDir: true,
    target: "es2022",
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
  },
});
