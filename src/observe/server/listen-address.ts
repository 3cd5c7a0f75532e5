import { isIPv6 } from "node:net";
import { UsageError } from "../../errors.js";
import { isLoopback } from "../../migration/transport/endpoint.js";

/** Where the dashboard listens. */
export interface ListenAddress {
  /** A name or an IP address, without brackets. */
  readonly host: string;
  /** 0: the system chooses. */
  readonly port: number;
}

/** Reads `HOST:PORT`, with IPv6 addresses in brackets. @throws UsageError `BAD_ADDRESS` */
export function parseListenAddress(text: string): ListenAddress {
  const [, bracketed, plain, port] = /^(?:\[([^\]]*)\]|([^:/[\]\s]+)):(\d{1,5})$/.exec(text) ?? [];
  const host = bracketed ?? plain;
  if (host !== undefined && Number(port) <= 65535 && (bracketed === undefined || isIPv6(bracketed))) {
    return { host, port: Number(port) };
  }
  throw new UsageError(`'${text}' is no address to listen on`, {
    code: "BAD_ADDRESS",
    remedy: "write HOST:PORT, with IPv6 addresses in brackets and ports up to 65535: 127.0.0.1:7780",
  });
}

/** As a browser is told: `http://HOST:PORT/`. */
export function urlOf({ host, port }: ListenAddress): string {
  return `http://${isIPv6(host) ? `[${host}]` : host}:${port}/`;
}

/**
 * Refuses to listen where others reach it, without a token.
 * @throws UsageError `TOKEN_MISSING`
 */
export function checkExposure({ host, port }: ListenAddress, token: string | undefined): void {
  if (token !== undefined || isLoopback(host)) return;
  throw new UsageError(`other machines reach ${host}, and no token keeps them out`, {
    code: "TOKEN_MISSING",
    remedy: `give one (\`(umask 077; openssl rand -hex 32 >token)\`, then --token-file token), or --listen 127.0.0.1:${port}`,
  });
}
