import { randomBytes } from "node:crypto";
import type { AcceptedSource } from "./destination.js";
import type { SourceTransport } from "./source.js";
import type { ControlConnection } from "./stream/control-connection.js";
import type { TlsCredentials } from "./transport/credentials.js";
import { type Endpoint, formatEndpoint } from "./transport/endpoint.js";
import type { Listener } from "./transport/listener.js";

/*
 * What a migration needs of the network, put together: the control connection and the page channels, both to one port. Each
 * part is loaded when it is needed, since the main door has this module: receiving calls the system, and needs koffi.
 */

/**
 * Returns the network connections from a source to a destination, for `migrate`.
 * @param destination.credentials this side's certificate and key, and the CA; required for the scheme `tls`
 */
export function sourceTransport({
  endpoint,
  credentials,
}: {
  endpoint: Endpoint;
  credentials?: TlsCredentials | undefined;
}): SourceTransport {
  const { host, port } = endpoint;
  const tls = credentials === undefined ? {} : { tls: credentials };
  return {
    destination: formatEndpoint(endpoint),
    connect: async (signal) => {
      const { connectControl } = await import("./transport/connect.js");
      return await connectControl({ endpoint, credentials, signal });
    },
    openSender: async ({ memory, token, channels, signal }) => {
      const { openSender } = await import("./channels/sender.js");
      return await openSender({ memory, address: { host, port, ...tls, token }, channels, signal });
    },
  };
}

/**
 * Returns the source behind a control connection that a listener has accepted, for `receive`. Its channels come to the same
 * listener, and must show a token made for this source alone.
 * @param onRefused is called with the error of each connection that was turned away instead of a channel
 */
export function acceptedSource(
  listener: Listener,
  control: ControlConnection,
  onRefused: (error: unknown) => void = () => {},
): AcceptedSource {
  return {
    from: control.peer,
    control,
    announce: (migration) => listener.describe(`migration ${migration} from ${control.peer}`),
    openReceiver: async ({ memory, channels }) => {
      const { openReceiver } = await import("./channels/receiver.js");
      const token = randomBytes(32).toString("hex");
      return { token, receiver: openReceiver({ memory, listener, channels, token, onRefused }) };
    },
  };
}
