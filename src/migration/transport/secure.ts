import type { Socket } from "node:net";
import { createServer, type TLSSocket } from "node:tls";
import { DirtmapError, UsageError } from "../../errors.js";
import { type TlsCredentials, tlsOptions } from "./credentials.js";

/** How long a source may take over the TLS handshake. */
const HANDSHAKE_MS = 10_000;

/**
 * The server's part of a TLS handshake on an accepted connection. A source whose certificate is not good gets its
 * connection all the same, with the `problem`: so that it can be told in words, which an alert could not. The caller
 * must tell it, and use the connection for nothing else.
 * @throws DirtmapError or the socket's error where the handshake itself fails
 */
export function secure(raw: Socket, credentials: TlsCredentials): Promise<{ socket: TLSSocket; problem?: UsageError }> {
  return new Promise((resolve, reject) => {
    const server = createServer({
      ...tlsOptions(credentials),
      rejectUnauthorized: false,
      handshakeTimeout: HANDSHAKE_MS,
    });
    const left = () => reject(new DirtmapError("the peer left during the TLS handshake", { code: "CONNECTION_LOST" }));
    raw.once("close", left);
    server.once("secureConnection", (socket) => {
      raw.off("close", left);
      const problem = problemOf(socket);
      resolve(problem === undefined ? { socket } : { socket, problem });
    });
    server.once("tlsClientError", (error, socket) => {
      socket.destroy();
      reject(error);
    });
    server.emit("connection", raw);
  });
}

/** What is wrong with the certificate that the source showed. */
function problemOf(socket: TLSSocket): UsageError | undefined {
  if (socket.authorized) return undefined;
  if (Object.keys(socket.getPeerCertificate()).length === 0) {
    return new UsageError("TLS is mutual, and the source showed no certificate", {
      code: "CERTIFICATE_REFUSED",
      remedy: "give the source a certificate and key of the destination's CA",
    });
  }
  // The declaration says Error; it is the code of OpenSSL's verdict.
  const verdict = String(socket.authorizationError);
  if (verdict === "CERT_HAS_EXPIRED") {
    return new UsageError("the source's certificate has expired", { code: "CERTIFICATE_EXPIRED", remedy: "renew it" });
  }
  return new UsageError(`the source's certificate is not accepted (${verdict})`, {
    code: "CERTIFICATE_REFUSED",
    remedy: "give both sides certificates of the same CA",
  });
}
