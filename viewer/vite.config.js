// Builds a page as one file in src/lace/viz: viewer.html, which `lace view` puts traces in, or with `--mode live` live.html,
// which `lace serve` shows. Script and style stand inside of it, and its Content-Security-Policy allows these two by their
// hashes and nothing else; the live page also may ask the server that it comes from, and open the viewer as a file that it
// made, which inherits its policy: hence it is built after the viewer.

import { createHash } from "node:crypto";
import { readFileSync, readdirSync } from "node:fs";
import { defineConfig } from "vite";

const hash = (text) => `'sha256-${createHash("sha256").update(text).digest("base64")}'`;

const out = process.env.LACE_VIEWER_OUT ?? "../src/lace/viz";

// What the pages were built from; tests/viz/test_page.py computes the same.
function sourceDigest() {
  const digest = createHash("sha256");
  for (const name of ["live.html", "viewer.html", ...readdirSync("src").sort().map((name) => `src/${name}`)]) {
    digest.update(`${name}\n`).update(readFileSync(name));
  }
  return digest.digest("hex");
}

// The hashes that a built page allows of one kind.
function allowed(file, kind) {
  return readFileSync(`${out}/${file}`, "utf8").match(new RegExp(`${kind}-src ([^;]+);`))[1];
}

const oneFile = (name) => ({
  name: "one-file",
  enforce: "post",
  generateBundle(_, bundle) {
    const live = name === "live.html";
    const page = bundle[name];
    const script = Object.values(bundle).find((part) => part.type === "chunk").code.trim();
    const style = String(Object.values(bundle).find((part) => part.fileName.endsWith(".css")).source).trim();
    const also = (kind) => (live ? ` ${allowed("viewer.html", kind)}` : "");
    const policy =
      `default-src 'none'; script-src ${hash(script)}${also("script")}; style-src ${hash(style)}${also("style")}; ` +
      `${live ? "connect-src 'self'; " : ""}img-src data:; base-uri 'none'; form-action 'none'`;
    const head =
      `<meta http-equiv="Content-Security-Policy" content="${policy}" />\n` +
      `    <meta name="lace-viewer-source" content="${sourceDigest()}" />`;
    page.source = page.source
      .replace(/ *<script type="module"[^]*?<\/script>\n/, "")
      .replace(/ *<link rel="stylesheet"[^>]*>\n/, "")
      .replace("<!-- policy -->", () => head)
      .replace("<!-- style -->", () => `<style>${style}</style>`)
      .replace("<!-- script -->", () => `<script type="module">${script}</script>`);
    for (const part of Object.keys(bundle)) {
      if (part !== name) delete bundle[part];
    }
  },
});

export default defineConfig(({ mode }) => ({
  base: "./",
  build: {
    outDir: out,
    rolldownOptions: { input: mode === "live" ? "live.html" : "viewer.html" },
    emptyOutDir: false,
    modulePreload: false,
    cssCodeSplit: false,
    target: "es2023",
  },
  plugins: [oneFile(mode === "live" ? "live.html" : "viewer.html")],
}));
