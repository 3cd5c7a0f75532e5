import { createHash, randomBytes, timingSafeEqual } from "node:crypto";
import { statSync } from "node:fs";
import { UsageError } from "../../errors.js";
import { isLoopback } from "../../migration/transport/endpoint.js";
import { readTextInput } from "../../sys/input-file.js";

/*
 * Who may see the dashboard. Without a token: whoever asks this machine by one of its own names, so that a page from
 * elsewhere whose name was made to mean 127.0.0.1 (DNS rebinding) is refused. With a token: whoever shows it, in a header
 * or, in a browser, by the cookie that it was exchanged for; that page has neither.
 */

/** Guessing is out of the question from here on: 16 hexadecimal digits are 64 bits. */
const MIN_TOKEN = 16;
const MAX_TOKEN = 1024;

const COOKIE = "dirtmap-session";

/** What a request shows. */
export interface Credentials {
  readonly host?: string | undefined;
  readonly authorization?: string | undefined;
  readonly cookie?: string | undefined;
}

/** `welcome`; or why not. */
export type Verdict = "welcome" | "wrong-host" | "no-token" | "wrong-token";

/**
 * Reads a token from a file that others can't read.
 * @throws UsageError `BAD_TOKEN_FILE`
 */
export function readToken(path: string): string {
  let text: string;
  let mode: number;
  try {
    mode = statSync(path).mode;
    text = readTextInput(path, MAX_TOKEN + 2).trim();
  } catch (cause) {
    throw badToken(`the token file ${path} can't be read: ${(cause as Error).message}`, "give one that exists", cause);
  }
  // A group may read it: that is how systemd hands credentials to services.
  if ((mode & 0o007) !== 0) throw badToken(`everybody on this machine can read ${path}`, `chmod 600 ${path}`);
  if (!/^[\x21-\x7e]+$/.test(text) || text.length < MIN_TOKEN || text.length > MAX_TOKEN) {
    const remedy = `write ${MIN_TOKEN} to ${MAX_TOKEN} characters without spaces: \`openssl rand -hex 32 >${path}\``;
    throw badToken(`${path} has no usable token`, remedy);
  }
  return text;
}

/** Decides about requests. */
export class Guard {
  readonly #token: string | undefined;
  /** What a browser's cookie says after a login. Another one after each start. */
  readonly #session = randomBytes(32).toString("hex");

  constructor(token: string | undefined) {
    this.#token = token;
  }

  get needsToken(): boolean {
    return this.#token !== undefined;
  }

  judge({ host, authorization, cookie }: Credentials): Verdict {
    if (this.#token === undefined) return namesThisMachine(host) ? "welcome" : "wrong-host";
    const session = cookieOf(cookie);
    if (session !== undefined && same(session, this.#session)) return "welcome";
    const [, bearer] = /^Bearer +(\S+)$/i.exec(authorization ?? "") ?? [];
    if (bearer === undefined) return "no-token";
    return same(bearer, this.#token) ? "welcome" : "wrong-token";
  }

  /** The Set-Cookie header that a browser gets for the token; null: it is another. */
  login(token: string): string | null {
    if (this.#token === undefined || !same(token, this.#token)) return null;
    return `${COOKIE}=${this.#session}; HttpOnly; SameSite=Strict; Path=/`;
  }
}

/** True for a Host header that names this machine's loopback, with any port. */
function namesThisMachine(host: string | undefined): boolean {
  const [, bracketed, plain] = /^(?:\[([^\]]+)\]|([^:[\]]+))(?::\d{1,5})?$/.exec(host ?? "") ?? [];
  return isLoopback((bracketed ?? plain ?? "").toLowerCase());
}

function cookieOf(header = ""): string | undefined {
  const cookies = header.split(";").map((cookie) => cookie.trim());
  return cookies.find((cookie) => cookie.startsWith(`${COOKIE}=`))?.slice(COOKIE.length + 1);
}

/** Compares in a time that tells nothing of where two texts differ, nor of their lengths: their digests are compared. */
function same(given: string, wanted: string): boolean {
  const digest = (text: string) => createHash("sha256").update(text).digest();
  return timingSafeEqual(digest(given), digest(wanted));
}

function badToken(message: string, remedy: string, cause?: unknown): UsageError {
  return new UsageError(message, { code: "BAD_TOKEN_FILE", remedy, cause });
}
