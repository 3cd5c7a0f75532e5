import { createPrivateKey, X509Certificate } from "node:crypto";
import { join } from "node:path";
import type { TLSSocketOptions } from "node:tls";
import { explain, UsageError } from "../../errors.js";
import { readInput } from "../../sys/input-file.js";

/** One side's certificate and key, and the CA that must have issued the other side's certificate. All are PEM. */
export interface TlsCredentials {
  readonly cert: string;
  readonly key: string;
  readonly ca: string;
}

/** The owner of a certificate: the destination is the server, and the source the client. */
export type TlsSide = "server" | "client";

/** Names in a folder of credentials: what `dirtmap certs` writes. */
export function credentialFiles(folder: string, side: TlsSide): { cert: string; key: string; ca: string } {
  return {
    cert: join(folder, `${side}.pem`),
    key: join(folder, `${side}-key.pem`),
    ca: join(folder, "ca.pem"),
  };
}

/** A PEM file of more than this is something else. */
const MAX_PEM_BYTES = 1 << 20;

/**
 * Reads credentials from a folder, or from files given one by one, which take precedence. Checks that they are PEM, that the
 * key is the certificate's, and that neither certificate has expired.
 * @throws UsageError `NO_CREDENTIALS`, `BAD_CERTIFICATE`, `CERTIFICATE_EXPIRED`
 */
export async function loadCredentials(
  side: TlsSide,
  files: { folder?: string | undefined; cert?: string | undefined; key?: string | undefined; ca?: string | undefined },
): Promise<TlsCredentials> {
  const found = { ...(files.folder === undefined ? {} : credentialFiles(files.folder, side)), ...defined(files) };
  const { cert, key, ca } = found;
  if (cert === undefined || key === undefined || ca === undefined) {
    throw new UsageError(`TLS needs this side's certificate and key, and the CA`, {
      code: "NO_CREDENTIALS",
      remedy: "give a folder made by `dirtmap certs`, or a certificate, a key and a CA",
    });
  }
  const credentials = { cert: readPem(cert), key: readPem(key), ca: readPem(ca) };
  checkCertificate(credentials.ca, ca);
  const own = checkCertificate(credentials.cert, cert);
  let matches = false;
  try {
    matches = own.checkPrivateKey(createPrivateKey(credentials.key));
  } catch (cause) {
    throw new UsageError(`${key} holds no private key`, { code: "BAD_CERTIFICATE", cause });
  }
  if (!matches) {
    throw new UsageError(`the key in ${key} is not that of the certificate in ${cert}`, { code: "BAD_CERTIFICATE" });
  }
  return credentials;
}

/** AES-128 first: it is as good as the others here, and moves a guest's memory with fewer rounds per block. */
const CIPHERS = "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256";

/** How a socket of this side is to be secured: TLS 1.3 only, and both sides show a certificate of the same CA. */
export function tlsOptions({ cert, key, ca }: TlsCredentials): TLSSocketOptions {
  return { cert, key, ca, minVersion: "TLSv1.3", ciphers: CIPHERS, requestCert: true, rejectUnauthorized: true };
}

function defined<T extends Record<string, string | undefined>>(object: T): { [Name in keyof T]?: string } {
  return Object.fromEntries(Object.entries(object).filter(([, value]) => value !== undefined)) as {
    [Name in keyof T]?: string;
  };
}

function readPem(path: string): string {
  try {
    return readInput(path, MAX_PEM_BYTES).toString("latin1");
  } catch (cause) {
    throw new UsageError(`${path} can't be read: ${explain(cause)}`, {
      code: "NO_CREDENTIALS",
      remedy: "give a folder made by `dirtmap certs`, or a certificate, a key and a CA",
      cause,
    });
  }
}

function checkCertificate(pem: string, path: string): X509Certificate {
  let certificate: X509Certificate;
  try {
    certificate = new X509Certificate(pem);
  } catch (cause) {
    throw new UsageError(`${path} holds no certificate`, { code: "BAD_CERTIFICATE", remedy: "PEM is expected", cause });
  }
  if (Date.parse(certificate.validTo) < Date.now()) {
    throw new UsageError(`the certificate in ${path} expired on ${certificate.validTo}`, {
      code: "CERTIFICATE_EXPIRED",
      remedy: "renew it (`dirtmap certs` makes a set for trying out)",
    });
  }
  return certificate;
}
