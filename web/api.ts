/*
 * The server's answers. It is this page's own server, of the same version, and what a run's process or the store says is
 * checked there, by the schemas that the types are made of.
 */

/** What the server refused, in its own words. */
export class Refused extends Error {
  readonly code: string;

  constructor(code: string, message: string) {
    super(message);
    this.code = code;
  }
}

/** Fetches JSON. @throws Refused */
export async function get<T>(path: string, signal: AbortSignal): Promise<T> {
  let response: Response;
  try {
    response = await fetch(path, { signal, headers: { accept: "application/json" } });
  } catch (error) {
    if (signal.aborted) throw error;
    throw new Refused("OFFLINE", "the server does not answer; is `dirtmap serve` still running?");
  }
  const body = (await response.json()) as T & { error?: { code: string; message: string; remedy?: string } };
  if (response.ok) return body;
  if (response.status === 401) location.assign("/login.html");
  const { code = "UNKNOWN", message = response.statusText, remedy } = body.error ?? {};
  throw new Refused(code, remedy === undefined ? message : `${message}; ${remedy}`);
}
