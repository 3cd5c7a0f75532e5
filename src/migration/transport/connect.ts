import { connect as connectTcp, isIP, type Socket } from "node:net";
import { connect as connectTls } from "node:tls";
import { DirtmapError, UsageError } from "../../errors.js";
import { within } from "../deadline.js";
import { ControlConnection } from "../stream/control-connection.js";
import { type TlsCredentials, tlsOptions } from "./credentials.js";
import { type Endpoint, formatEndpoint } from "./endpoint.js";
import { transportError } from "./transport-error.js";

/** How long a connection may take to come about, TLS handshake included. */
export const CONNECT_MS = 10_000;

/**
 * Connects; with credentials over TLS, and then the destination has been verified (the destination's verdict on this
 * side's certificate arrives with its first byte).
 * @throws DirtmapError of {@link transportError}; the signal's reason
 */
export function connect(
  endpoint: Endpoint,
  credentials: TlsCredentials | undefined,
  signal?: AbortSignal,
): Promise<Socket> {
  const { host, port } = endpoint;
  return new Promise((resolve, reject) => {
    if (signal?.aborted) {
      reject(signal.reason);
      return;
    }
    const name = isIP(host) === 0 ? host : undefined;
    const socket =
      credentials === undefined
        ? connectTcp({ host, port, noDelay: true })
        : connectTls({ host, port, ...tlsOptions(credentials), ...(name === undefined ? {} : { servername: name }) });
    const settle = (finish: () => void) => {
      clearTimeout(timer);
      signal?.removeEventListener("abort", cancelled);
      socket.off("error", failed);
      finish();
    };
    const failed = (error: unknown) =>
      settle(() => {
        socket.on("error", () => {});
        socket.destroy();
        reject(error === signal?.reason ? error : transportError(error, "connect to", endpoint));
      });
    const cancelled = () => failed(signal?.reason);
    const timer = setTimeout(
      () =>
        failed(
          new UsageError(`${host} doesn't answer on port ${port}`, {
            code: "UNREACHABLE",
            remedy: "check the address, the route and firewalls",
          }),
        ),
      CONNECT_MS,
    );
    signal?.addEventListener("abort", cancelled, { once: true });
    socket.once("error", failed);
    socket.once(credentials === undefined ? "connect" : "secureConnect", () =>
      settle(() => {
        socket.setNoDelay(true);
        resolve(socket);
      }),
    );
  });
}

/**
 * Opens the control connection to a destination, and waits until it has spoken first: only then has it accepted this
 * side's certificate.
 * @throws DirtmapError; UsageError where the address or a certificate is wrong
 */
export async function connectControl(args: {
  endpoint: Endpoint;
  credentials?: TlsCredentials | undefined;
  signal?: AbortSignal;
}): Promise<ControlConnection> {
  const { endpoint, signal } = args;
  if (endpoint.scheme === "tls" && args.credentials === undefined) {
    throw new UsageError("tls:// needs a certificate, a key and a CA", {
      code: "NO_CREDENTIALS",
      remedy: "give a folder made by `dirtmap certs`",
    });
  }
  const credentials = endpoint.scheme === "tls" ? args.credentials : undefined;
  const connection = new ControlConnection(await connect(endpoint, credentials, signal), {
    peer: formatEndpoint(endpoint),
    other: "destination",
    explain: (error) => transportError(error, "talk to", endpoint),
  });
  try {
    await within(CONNECT_MS, "the destination's first word", connection.introduced, signal);
    return connection;
  } catch (error) {
    void connection.close();
    if (error === signal?.reason) throw error;
    throw silence(error, endpoint);
  }
}

/** Why a destination that was connected to did not introduce itself. */
function silence(error: unknown, endpoint: Endpoint): DirtmapError {
  const cause = transportError(error, "connect to", endpoint);
  const details = { attempted: `connect to ${formatEndpoint(endpoint)}`, cause };
  switch (cause.code) {
    case "TIMED_OUT":
    case "PEER_SILENT":
      return new UsageError(`${formatEndpoint(endpoint)} takes connections and says nothing`, {
        code: "UNREACHABLE",
        remedy: "check that `dirtmap receive` listens there, and that its process is not stopped",
        ...details,
      });
    case "FRAME_REFUSED":
      return new UsageError(`nothing that speaks this protocol answers at ${formatEndpoint(endpoint)}`, {
        code: "UNREACHABLE",
        remedy: "check that `dirtmap receive` listens there, on that port",
        ...details,
      });
    case "CONNECTION_CLOSED":
      return new DirtmapError("the destination closed the connection without a word", {
        code: "CONNECTION_CLOSED",
        remedy: "see what it says",
        ...details,
      });
    case "INCOMPATIBLE":
      return new UsageError(cause.message, { code: cause.code, remedy: cause.remedy, ...details });
    default:
      return cause;
  }
}
