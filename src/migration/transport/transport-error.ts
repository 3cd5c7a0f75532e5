import { DirtmapError, UsageError } from "../../errors.js";
import { type Endpoint, formatEndpoint } from "./endpoint.js";

interface Explanation {
  readonly code: string;
  readonly text: string;
  readonly remedy: string;
}

/** What the codes of Node's socket and TLS errors mean to an operator. */
const EXPLANATIONS: ReadonlyMap<string, Explanation> = new Map(
  (
    [
      [["EADDRINUSE"], "PORT_IN_USE", "the port is in use", "choose another port, or end what listens there"],
      [["EACCES"], "PORT_FORBIDDEN", "this user may not listen there", "choose a port above 1023"],
      [["EADDRNOTAVAIL"], "BAD_ADDRESS", "this machine has no such address", "listen on an address of this machine"],
      [["ECONNREFUSED"], "UNREACHABLE", "nothing listens there", "start `dirtmap receive` there first, on that port"],
      [
        ["ENOTFOUND", "EAI_AGAIN", "EHOSTUNREACH", "ENETUNREACH", "ETIMEDOUT"],
        "UNREACHABLE",
        "the host can't be reached",
        "check the name, the route and firewalls",
      ],
      [
        ["CERT_HAS_EXPIRED", "ERR_SSL_SSLV3_ALERT_CERTIFICATE_EXPIRED", "ERR_SSL_SSL/TLS_ALERT_CERTIFICATE_EXPIRED"],
        "CERTIFICATE_EXPIRED",
        "a certificate has expired",
        "renew it (`dirtmap certs` makes a set for trying out)",
      ],
      [["CERT_NOT_YET_VALID"], "CERTIFICATE_REFUSED", "a certificate is not valid yet", "check both machines' clocks"],
      [
        [
          "UNABLE_TO_VERIFY_LEAF_SIGNATURE",
          "UNABLE_TO_GET_ISSUER_CERT",
          "UNABLE_TO_GET_ISSUER_CERT_LOCALLY",
          "SELF_SIGNED_CERT_IN_CHAIN",
          "DEPTH_ZERO_SELF_SIGNED_CERT",
          "CERT_SIGNATURE_FAILURE",
        ],
        "CERTIFICATE_REFUSED",
        "the peer's certificate is from another CA",
        "give both sides certificates of the same CA",
      ],
      [
        ["INVALID_PURPOSE"],
        "CERTIFICATE_REFUSED",
        "a certificate is for another purpose",
        "use the server's at the destination and the client's at the source",
      ],
      [
        [
          "ERR_SSL_TLSV1_ALERT_UNKNOWN_CA",
          "ERR_SSL_TLSV1_ALERT_DECRYPT_ERROR",
          "ERR_SSL_SSLV3_ALERT_BAD_CERTIFICATE",
          "ERR_SSL_SSLV3_ALERT_CERTIFICATE_UNKNOWN",
          "ERR_SSL_SSL/TLS_ALERT_CERTIFICATE_UNKNOWN",
          "ERR_SSL_SSL/TLS_ALERT_BAD_CERTIFICATE",
          "ERR_SSL_SSLV3_ALERT_UNSUPPORTED_CERTIFICATE",
          "ERR_SSL_SSL/TLS_ALERT_UNSUPPORTED_CERTIFICATE",
        ],
        "CERTIFICATE_REFUSED",
        "the peer refused this side's certificate",
        "give both sides certificates of the same CA",
      ],
      [
        ["ERR_SSL_TLSV13_ALERT_CERTIFICATE_REQUIRED", "ERR_SSL_PEER_DID_NOT_RETURN_A_CERTIFICATE"],
        "CERTIFICATE_REFUSED",
        "TLS is mutual, and the source showed no certificate",
        "give the source a certificate and key of the destination's CA",
      ],
      [
        ["ERR_TLS_CERT_ALTNAME_INVALID"],
        "CERTIFICATE_REFUSED",
        "the destination's certificate is for another name",
        "use a name or address that the certificate lists",
      ],
      [
        ["EPROTO", "ERR_SSL_WRONG_VERSION_NUMBER", "ERR_SSL_PACKET_LENGTH_TOO_LONG", "ERR_SSL_HTTP_REQUEST"],
        "NOT_TLS",
        "what answers there doesn't speak TLS",
        "give tcp:// if the destination listens with tcp://, or start the destination with tls://",
      ],
      [
        ["ERR_SSL_UNSUPPORTED_PROTOCOL", "ERR_SSL_TLSV1_ALERT_PROTOCOL_VERSION"],
        "NOT_TLS",
        "the peer speaks no TLS 1.3",
        "TLS 1.3 is the only version that is accepted",
      ],
      [
        ["ECONNRESET", "EPIPE", "ERR_STREAM_PREMATURE_CLOSE"],
        "CONNECTION_LOST",
        "the connection was cut",
        "see what the other side says",
      ],
    ] as const
  ).flatMap(([names, code, text, remedy]) => names.map((name) => [name, { code, text, remedy }] as const)),
);

/** Codes after which nothing was started: the operator gave an address or certificate that doesn't work. */
const USAGE = new Set([
  "PORT_IN_USE",
  "PORT_FORBIDDEN",
  "BAD_ADDRESS",
  "UNREACHABLE",
  "CERTIFICATE_EXPIRED",
  "CERTIFICATE_REFUSED",
  "NOT_TLS",
]);

/**
 * Turns an error of a socket into one line that says what is wrong and what would work.
 * @param attempted a phrase without the address: "connect to", "listen on"
 */
export function transportError(error: unknown, attempted: string, endpoint: Endpoint): DirtmapError {
  if (error instanceof DirtmapError) return error;
  const name = (error as NodeJS.ErrnoException | undefined)?.code ?? "";
  const where = `${attempted} ${formatEndpoint(endpoint)}`;
  const known = EXPLANATIONS.get(name);
  if (known === undefined) {
    const message = error instanceof Error ? error.message : String(error);
    return new DirtmapError(`can't ${where}: ${message}`, { code: "CONNECTION_LOST", attempted: where, cause: error });
  }
  const details = { code: known.code, attempted: where, remedy: known.remedy, cause: error };
  const message = `can't ${where}: ${known.text}`;
  return USAGE.has(known.code) ? new UsageError(message, details) : new DirtmapError(message, details);
}
