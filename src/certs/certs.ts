// @peculiar/x509 looks for the Reflect API that this adds, so it has to come first.
import "reflect-metadata";
import { webcrypto } from "node:crypto";
import { rmSync } from "node:fs";
import { isIP } from "node:net";
import * as x509 from "@peculiar/x509";
import { UsageError } from "../errors.js";
import { credentialFiles, type TlsCredentials } from "../migration/transport/credentials.js";
import { checkHost } from "../migration/transport/host-name.js";
import { makeFolder } from "../sys/output-file.js";
import { writeWholeFile } from "../sys/whole-file.js";

/*
 * Certificates for trying out mutual TLS: a CA made for the occasion, whose key is thrown away, and a certificate for
 * either side. A production setup has a CA of its own.
 */

/** The certificates and keys that {@link makeCertificates} makes, as PEM. */
export interface TryoutCertificates {
  readonly server: TlsCredentials;
  readonly client: TlsCredentials;
}

const DAY_MS = 86_400_000;
const ALGORITHM = { name: "ECDSA", namedCurve: "P-256", hash: "SHA-256" } as const;

/**
 * Makes a CA, and a certificate and key for the destination (server) and the source (client).
 * @param args.hosts names and IP addresses by which the source reaches the destination
 * @param args.days days for which the certificates are valid; 0 or less: already expired, for tests
 * @throws UsageError `BAD_HOST`
 */
export async function makeCertificates(args: { hosts: readonly string[]; days?: number }): Promise<TryoutCertificates> {
  args.hosts.forEach(checkHost);
  const notAfter = new Date(Date.now() + (args.days ?? 30) * DAY_MS);
  // Clocks of two machines are seldom equal.
  const notBefore = new Date(Math.min(Date.now(), notAfter.getTime()) - DAY_MS);
  const caKeys = await webcrypto.subtle.generateKey(ALGORITHM, true, ["sign", "verify"]);
  const ca = await x509.X509CertificateGenerator.createSelfSigned(
    {
      name: "CN=Dirtmap try-out CA",
      notBefore,
      notAfter,
      keys: caKeys,
      signingAlgorithm: ALGORITHM,
      extensions: [
        new x509.BasicConstraintsExtension(true, 0, true),
        new x509.KeyUsagesExtension(x509.KeyUsageFlags.keyCertSign | x509.KeyUsageFlags.cRLSign, true),
      ],
    },
    webcrypto,
  );
  const caPem = ca.toString("pem");

  const issue = async (name: string, usage: string, hosts: readonly string[]): Promise<TlsCredentials> => {
    const keys = await webcrypto.subtle.generateKey(ALGORITHM, true, ["sign", "verify"]);
    const certificate = await x509.X509CertificateGenerator.create(
      {
        subject: `CN=${name}`,
        issuer: ca.subject,
        notBefore,
        notAfter,
        publicKey: keys.publicKey,
        signingKey: caKeys.privateKey,
        signingAlgorithm: ALGORITHM,
        extensions: [
          new x509.BasicConstraintsExtension(false, undefined, true),
          new x509.KeyUsagesExtension(x509.KeyUsageFlags.digitalSignature, true),
          new x509.ExtendedKeyUsageExtension([usage], true),
          ...(hosts.length === 0
            ? []
            : [
                new x509.SubjectAlternativeNameExtension(
                  hosts.map((value) => ({ type: isIP(value) === 0 ? "dns" : "ip", value })),
                ),
              ]),
        ],
      },
      webcrypto,
    );
    const key = await webcrypto.subtle.exportKey("pkcs8", keys.privateKey);
    return { cert: certificate.toString("pem"), key: x509.PemConverter.encode(key, "PRIVATE KEY"), ca: caPem };
  };

  return {
    server: await issue("Dirtmap destination", x509.ExtendedKeyUsage.serverAuth, args.hosts),
    client: await issue("Dirtmap source", x509.ExtendedKeyUsage.clientAuth, []),
  };
}

/**
 * Writes the result of {@link makeCertificates} to a folder, which it makes. Only the owner can read the keys.
 * @returns the paths written
 * @throws UsageError `FILE_EXISTS` if one of the files already exists, `FOLDER_NOT_WRITABLE`
 */
export async function writeCertificates(folder: string, { server, client }: TryoutCertificates): Promise<string[]> {
  const serverFiles = credentialFiles(folder, "server");
  const clientFiles = credentialFiles(folder, "client");
  const files: [path: string, pem: string, mode: number][] = [
    [serverFiles.ca, server.ca, 0o644],
    [serverFiles.cert, server.cert, 0o644],
    [serverFiles.key, server.key, 0o600],
    [clientFiles.cert, client.cert, 0o644],
    [clientFiles.key, client.key, 0o600],
  ];
  const written: string[] = [];
  try {
    makeFolder(folder, { mode: 0o700 });
    for (const [path, pem, mode] of files) {
      writeWholeFile(path, pem, { mode, exclusive: true });
      written.push(path);
    }
  } catch (cause) {
    // All or nothing: a set that lacks a file is of no use, and in the way of the next one.
    for (const path of written) rmSync(path, { force: true });
    const { code, dest = folder } = cause as NodeJS.ErrnoException & { dest?: string };
    if (code === "EEXIST") {
      throw new UsageError(`${dest} is there already`, { code: "FILE_EXISTS", remedy: "give a new folder", cause });
    }
    throw new UsageError(`can't write to ${folder}: ${(cause as Error).message}`, {
      code: "FOLDER_NOT_WRITABLE",
      remedy: "give a folder that may be written to, and has room",
      cause,
    });
  }
  return files.map(([path]) => path);
}
