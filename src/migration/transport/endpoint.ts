import { BlockList, isIP, isIPv6 } from "node:net";
import { UsageError } from "../../errors.js";
import { isHost } from "./host-name.js";

/** The address that a migration is sent to or received at. */
export interface Endpoint {
  readonly scheme: "tls" | "tcp";
  /** A name or an IP address, without brackets. */
  readonly host: string;
  /** 0 to 65535. For a listener, 0 lets the system choose. */
  readonly port: number;
}

const LOOPBACK = new BlockList();
LOOPBACK.addSubnet("127.0.0.0", 8, "ipv4");
LOOPBACK.addAddress("::1", "ipv6");

/** True for addresses that never leave this machine. A name other than `localhost` is not: it may come to mean another. */
export function isLoopback(host: string): boolean {
  const version = isIP(host);
  return version === 0 ? host === "localhost" : LOOPBACK.check(host, version === 6 ? "ipv6" : "ipv4");
}

/**
 * Reads `tls://HOST:PORT` or `tcp://HOST:PORT`. IPv6 addresses are in brackets. Without a host it is the loopback address.
 * @param insecure allows plain TCP to leave the machine
 * @throws UsageError `BAD_ADDRESS`, `INSECURE_TRANSPORT`
 */
export function parseEndpoint(text: string, { insecure = false }: { insecure?: boolean } = {}): Endpoint {
  const match = /^(tls|tcp):\/\/(?:\[([^\]]*)\]|([^:/[\]]*)):(\d{1,5})\/?$/.exec(text);
  const [, scheme, bracketed, plain, port] = match ?? [];
  const host = bracketed ?? (plain === "" ? "127.0.0.1" : plain);
  const isAddress = () => (bracketed === undefined ? isHost(host) : isIPv6(bracketed));
  if (match === null || Number(port) > 65535 || !isAddress()) {
    throw new UsageError(`'${text}' is no address of a migration`, {
      code: "BAD_ADDRESS",
      remedy: "write tls://HOST:PORT or tcp://HOST:PORT, with IPv6 addresses in brackets and ports up to 65535",
    });
  }
  const endpoint: Endpoint = { scheme: scheme === "tls" ? "tls" : "tcp", host, port: Number(port) };
  if (endpoint.scheme === "tcp" && !insecure && !isLoopback(host)) {
    throw new UsageError(`plain TCP to '${host}' would send the guest's memory over the network unencrypted`, {
      code: "INSECURE_TRANSPORT",
      remedy: "use tls://, or add --insecure on a network that you trust",
    });
  }
  return endpoint;
}

/** Returns the endpoint as text that {@link parseEndpoint} reads. */
export function formatEndpoint({ scheme, host, port }: Endpoint): string {
  return `${scheme}://${isIPv6(host) ? `[${host}]` : host}:${port}`;
}
