import { once } from "node:events";
import { chmodSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import sqlite from "node-sqlite3-wasm";
import { afterAll, describe, expect, it } from "vitest";
import { EXIT_CODES } from "../../src/cli/exit-codes.js";
import { openStore } from "../../src/evidence/store/store.js";
import { Child } from "../support/child.js";
import { PROGRAM } from "../support/program.js";

/* `dirtmap serve` as a process. */

const folder = mkdtempSync(join(tmpdir(), "dirtmap-serve-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const store = join(folder, "evidence.db");
const serve = (...more: string[]) =>
  new Child(PROGRAM, "serve", "--json", "--store", store, "--listen", "127.0.0.1:0", ...more);

describe("dirtmap serve", () => {
  it.each(["SIGTERM", "SIGINT"] as const)(
    "serves the page until %s, also while a page is watching, and ends with 0",
    async (signal) => {
      await using child = serve();
      const { url } = (await child.said("url")) as { url: string };
      const page = await fetch(url);
      expect(await page.text()).toContain('<script type="module" src="/main.js">');
      for (const file of [
        "/main.js",
        "/vendor/uplot.js",
        "/vendor/uplot.css",
        "/src/observe/run-state.js",
        "/style.css",
      ]) {
        const { status } = await fetch(new URL(file, url));
        expect([file, status]).toEqual([file, 200]);
      }
      const watching = await fetch(new URL("/api/events", url));
      child.kill(signal);
      expect(await child.ended).toBe(EXIT_CODES.done.code);
      await watching.text().catch(() => {});
      expect(child.errors).toBe("");
    },
  );

  it("has all of the page in the package", () => {
    const { files } = JSON.parse(readFileSync(new URL("../../../package.json", import.meta.url), "utf8"));
    expect(files).toEqual(expect.arrayContaining(["dist", "contrib"]));
  });
});

describe("bad input is refused in one line with exit code 2:", () => {
  async function refused(...args: string[]): Promise<string> {
    await using child = serve(...args);
    expect(await child.ended).toBe(EXIT_CODES.usage.code);
    expect(child.errors.trimEnd().split("\n")).toHaveLength(1);
    return child.errors;
  }

  it("a port in use", async () => {
    const server = createServer().listen(0, "127.0.0.1");
    await once(server, "listening");
    const { port } = server.address() as { port: number };
    expect(await refused("--listen", `127.0.0.1:${port}`)).toMatch(
      /the port is in use; choose another: --listen 127\.0\.0\.1:/,
    );
    server.close();
  });

  it("an address that others reach, without a token", async () => {
    expect(await refused("--listen", "0.0.0.0:7780")).toMatch(
      /no token keeps them out; give one \(.*--token-file token\), or --listen 127\.0\.0\.1:7780/,
    );
  });

  it("a token that everybody can read", async () => {
    const token = join(folder, "token");
    writeFileSync(token, "0123456789abcdef0123456789abcdef\n");
    chmodSync(token, 0o644);
    expect(await refused("--token-file", token)).toMatch(/everybody .* can read .*; chmod 600/);
  });

  it("a store of a newer version", async () => {
    const newer = join(folder, "newer.db");
    openStore(newer)[Symbol.dispose]();
    const db = new sqlite.Database(newer);
    db.exec("PRAGMA locking_mode = EXCLUSIVE; PRAGMA user_version = 99");
    db.close();
    expect(await refused("--store", newer)).toMatch(
      /is of version 99, and this Dirtmap knows up to \d+; upgrade Dirtmap/,
    );
  });

  it("what is no address", async () => {
    expect(await refused("--listen", "7780")).toMatch(/'7780' is no address to listen on; write HOST:PORT/);
  });
});
