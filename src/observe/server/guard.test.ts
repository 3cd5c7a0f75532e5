import { chmodSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { Guard, readToken } from "./guard.js";
import { checkExposure, parseListenAddress, urlOf } from "./listen-address.js";

const folder = mkdtempSync(join(tmpdir(), "dirtmap-guard-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const TOKEN = "0123456789abcdef0123456789abcdef";

describe("without a token", () => {
  const guard = new Guard(undefined);

  it.each(["localhost:7780", "LOCALHOST", "127.0.0.1:1", "127.9.9.9", "[::1]:7780"])(
    "%s is this machine's name",
    (host) => {
      expect(guard.judge({ host })).toBe("welcome");
    },
  );

  it.each([
    "evil.example",
    "localhost.evil.example:7780",
    "127.0.0.1.evil.example",
    "[::2]",
    "192.168.0.1",
    "localhost:x",
    "",
    undefined,
  ])("%s is not, whatever address it was made to mean", (host) => {
    expect(guard.judge({ host })).toBe("wrong-host");
  });
});

describe("with a token", () => {
  const guard = new Guard(TOKEN);
  const host = "dash.example";

  it("whoever shows it in a header is welcome, and nobody else", () => {
    expect(guard.judge({ host, authorization: `Bearer ${TOKEN}` })).toBe("welcome");
    expect(guard.judge({ host, authorization: `Bearer ${TOKEN}0` })).toBe("wrong-token");
    expect(guard.judge({ host, authorization: `Basic ${TOKEN}` })).toBe("no-token");
    expect(guard.judge({ host: "localhost" })).toBe("no-token");
  });

  it("a browser gets a cookie for it that scripts can't read and other sites can't send", () => {
    const cookie = guard.login(TOKEN) ?? "";
    expect(cookie).toMatch(/; HttpOnly; SameSite=Strict; Path=\/$/);
    expect(cookie).not.toContain(TOKEN);
    expect(guard.judge({ host, cookie: `other=1; ${cookie.split(";")[0]}` })).toBe("welcome");
    expect(guard.judge({ host, cookie: "dirtmap-session=0" })).toBe("no-token");
    expect(guard.login(`${TOKEN} `)).toBeNull();
    expect(new Guard(TOKEN).judge({ host, cookie: cookie.split(";")[0] })).toBe("no-token");
  });
});

describe("a token's file", () => {
  const file = (text: string, mode = 0o600) => {
    const path = join(folder, "token");
    writeFileSync(path, text);
    chmodSync(path, mode);
    return path;
  };
  const refusal = (remedy: RegExp) =>
    expect.objectContaining({ code: "BAD_TOKEN_FILE", remedy: expect.stringMatching(remedy) });

  it("gives the token without the line's end", () => {
    expect(readToken(file(`${TOKEN}\n`))).toBe(TOKEN);
  });

  it("is refused where it is missing, readable for all, too short, or of several words", () => {
    expect(() => readToken(join(folder, "none"))).toThrowError(refusal(/exists/));
    expect(() => readToken(file(TOKEN, 0o644))).toThrowError(refusal(/chmod 600/));
    expect(() => readToken(file("short"))).toThrowError(refusal(/openssl/));
    expect(() => readToken(file(`${TOKEN} ${TOKEN}`))).toThrowError(refusal(/without spaces/));
  });
});

describe("an address to listen on", () => {
  it("is a host and a port", () => {
    expect(parseListenAddress("127.0.0.1:7780")).toEqual({ host: "127.0.0.1", port: 7780 });
    expect(parseListenAddress("[::1]:0")).toEqual({ host: "::1", port: 0 });
    expect(urlOf({ host: "::1", port: 80 })).toBe("http://[::1]:80/");
  });

  it.each(["7780", "localhost", "127.0.0.1:70000", "[nonsense]:1", "::1:80", "a b:1"])("%s is refused", (text) => {
    expect(() => parseListenAddress(text)).toThrowError(expect.objectContaining({ code: "BAD_ADDRESS" }));
  });

  it("needs a token where other machines reach it", () => {
    for (const host of ["0.0.0.0", "::", "192.168.0.1", "dash.example"]) {
      expect(() => checkExposure({ host, port: 7780 }, undefined)).toThrowError(
        expect.objectContaining({ code: "TOKEN_MISSING", remedy: expect.stringMatching(/openssl rand.*--token-file/) }),
      );
      checkExposure({ host, port: 7780 }, TOKEN);
    }
    checkExposure({ host: "127.0.0.1", port: 7780 }, undefined);
  });
});
