import type { Socket } from "node:net";
import { createServer, type TLSSocket } from "node:tls";
import { DirtmapError, UsageError } from "../../errors.js";
import { encodeControlFrame } from "../stream/control-connection.js";
import { opensTls, wrongScheme } from "../stream/frame.js";
import { type TlsCredentials, tlsOptions } from "./credentials.js";

/** How long a source may take over the TLS handshake, and before that until its first byte. */
const HANDSHAKE_MS = 10_000;

/**
 * The server's part of a TLS handshake on an accepted connection. A source whose certificate is not good gets its
 * connection all the same, with the `problem`: so that it can be told in words, which an alert could not. The caller
 * must tell it, and use the connection for nothing else.
 * @throws DirtmapError `WRONG_SCHEME` for a source that speaks plain TCP, which is told so; DirtmapError or the socket's
 * error where the handshake itself fails. The connection is closed then.
 */
export async function secure(
  raw: Socket,
  credentials: TlsCredentials,
): Promise<{ socket: TLSSocket; problem?: UsageError }> {
  if (!opensTls(await firstByte(raw))) {
    const problem = wrongScheme({ source: "tcp", destination: "tls" });
    turnAway(raw, problem);
    throw problem;
  }
  return await handshake(raw, credentials);
}

function handshake(raw: Socket, credentials: TlsCredentials): Promise<{ socket: TLSSocket; problem?: UsageError }> {
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
      raw.destroy();
      reject(error);
    });
    server.emit("connection", raw);
  });
}

/** Looks at the first byte that comes, and leaves it to be read. */
function firstByte(raw: Socket): Promise<number> {
  return new Promise((resolve, reject) => {
    const settle = (finish: () => void) => {
      clearTimeout(timer);
      raw.off("readable", look).off("close", left).off("end", left);
      finish();
    };
    const look = () => {
      const bytes: Buffer | null = raw.read();
      if (bytes === null) return;
      raw.unshift(bytes);
      settle(() => resolve(bytes[0]));
    };
    const fail = (message: string) => {
      raw.destroy();
      settle(() => reject(new DirtmapError(message, { code: "CONNECTION_LOST" })));
    };
    const left = () => fail("the peer left before the TLS handshake");
    const timer = setTimeout(() => fail(`the peer said nothing for ${HANDSHAKE_MS / 1000} s`), HANDSHAKE_MS);
    raw
      .on("error", () => {})
      .on("readable", look)
      .on("close", left)
      .on("end", left);
    look();
  });
}

/** How long a connection that was turned away may take to read why. */
const LINGER_MS = 2_000;

/**
 * Says on a connection that nothing was said on why it can't stay, and ends it; what it still sends is read and dropped,
 * so that the words arrive.
 */
export function turnAway(socket: Socket, { code, message, remedy }: DirtmapError): void {
  socket.on("error", () => {});
  socket.end(encodeControlFrame(0, { type: "REFUSE", code, message, ...(remedy === undefined ? {} : { remedy }) }));
  socket.resume();
  const timer = setTimeout(() => socket.destroy(), LINGER_MS);
  socket.once("close", () => clearTimeout(timer));
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
