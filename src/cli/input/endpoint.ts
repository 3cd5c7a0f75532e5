import { loadCredentials, type TlsCredentials, type TlsSide } from "../../migration/transport/credentials.js";
import { type Endpoint, parseEndpoint } from "../../migration/transport/endpoint.js";
import type { TlsOptions } from "./options/tls.js";

/** Reads `tls://HOST:PORT` or `tcp://HOST:PORT`, and for TLS the credentials. @throws UsageError */
export async function readEndpoint(
  address: string,
  side: TlsSide,
  { tlsFolder: folder, tlsCert: cert, tlsKey: key, tlsCa: ca, insecure = false }: TlsOptions,
): Promise<{ endpoint: Endpoint; credentials: TlsCredentials | undefined }> {
  const endpoint = parseEndpoint(address, { insecure });
  if (endpoint.scheme === "tcp") return { endpoint, credentials: undefined };
  return { endpoint, credentials: await loadCredentials(side, { folder, cert, key, ca }) };
}
