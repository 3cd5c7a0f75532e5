import type { Command } from "commander";
import type { TlsCredentials, TlsSide } from "../../migration/transport/credentials.js";
import type { Endpoint } from "../../migration/transport/endpoint.js";

/** Where this side's certificate, its key and the CA are. */
export interface TlsOptions {
  readonly tlsFolder?: string;
  readonly tlsCert?: string;
  readonly tlsKey?: string;
  readonly tlsCa?: string;
  readonly insecure?: boolean;
}

/** Adds the options of {@link TlsOptions}. */
export function addTlsOptions(command: Command): Command {
  return command
    .option("--tls-folder <folder>", "certificates as `dirtmap certs` makes them")
    .option("--tls-cert <file>", "this side's certificate (PEM)")
    .option("--tls-key <file>", "its key (PEM)")
    .option("--tls-ca <file>", "the CA that the other side's certificate must come from (PEM)")
    .option("--insecure", "allow tcp:// to and from other machines: the guest's memory travels readable to all");
}

/** Reads `tls://HOST:PORT` or `tcp://HOST:PORT`, and for TLS the credentials. @throws UsageError */
export async function readEndpoint(
  address: string,
  side: TlsSide,
  { tlsFolder: folder, tlsCert: cert, tlsKey: key, tlsCa: ca, insecure = false }: TlsOptions,
): Promise<{ endpoint: Endpoint; credentials: TlsCredentials | undefined }> {
  const [{ parseEndpoint }, { loadCredentials }] = await Promise.all([
    import("../../migration/transport/endpoint.js"),
    import("../../migration/transport/credentials.js"),
  ]);
  const endpoint = parseEndpoint(address, { insecure });
  if (endpoint.scheme === "tcp") return { endpoint, credentials: undefined };
  return { endpoint, credentials: await loadCredentials(side, { folder, cert, key, ca }) };
}
