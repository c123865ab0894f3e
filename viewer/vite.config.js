// Builds one file, src/lace/viz/viewer.html: script and style stand inside of it, and its Content-Security-Policy allows
// these two by their hashes and nothing else. `lace view` puts the traces in.

import { createHash } from "node:crypto";
import { readFileSync, readdirSync } from "node:fs";
import { defineConfig } from "vite";

const hash = (text) => `'sha256-${createHash("sha256").update(text).digest("base64")}'`;

// What the page was built from; tests/viz/test_page.py computes the same.
function sourceDigest() {
  const digest = createHash("sha256");
  for (const name of ["index.html", ...readdirSync("src").sort().map((name) => `src/${name}`)]) {
    digest.update(`${name}\n`).update(readFileSync(name));
  }
  return digest.digest("hex");
}

const oneFile = {
  name: "one-file",
  enforce: "post",
  generateBundle(_, bundle) {
    const page = bundle["index.html"];
    const script = Object.values(bundle).find((part) => part.type === "chunk").code.trim();
    const style = String(Object.values(bundle).find((part) => part.fileName.endsWith(".css")).source).trim();
    const policy =
      `default-src 'none'; script-src ${hash(script)}; style-src ${hash(style)}; ` +
      "img-src data:; base-uri 'none'; form-action 'none'";
    const head =
      `<meta http-equiv="Content-Security-Policy" content="${policy}" />\n` +
      `    <meta name="lace-viewer-source" content="${sourceDigest()}" />`;
    page.source = page.source
      .replace(/ *<script type="module"[^]*?<\/script>\n/, "")
      .replace(/ *<link rel="stylesheet"[^>]*>\n/, "")
      .replace("<!-- policy -->", () => head)
      .replace("<!-- style -->", () => `<style>${style}</style>`)
      .replace("<!-- script -->", () => `<script type="module">${script}</script>`);
    page.fileName = "viewer.html";
    for (const name of Object.keys(bundle)) {
      if (name !== "index.html") delete bundle[name];
    }
  },
};

export default defineConfig({
  base: "./",
  build: {
    outDir: process.env.LACE_VIEWER_OUT ?? "../src/lace/viz",
    emptyOutDir: false,
    modulePreload: false,
    cssCodeSplit: false,
    target: "es2023",
  },
  plugins: [oneFile],
});
