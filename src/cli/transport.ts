import { randomBytes } from "node:crypto";
import { openReceiver } from "../migration/channels/receiver.js";
import { openSender } from "../migration/channels/sender.js";
import type { AcceptedSource } from "../migration/destination.js";
import type { SourceTransport } from "../migration/source.js";
import type { ControlConnection } from "../migration/stream/control-connection.js";
import { connectControl } from "../migration/transport/connect.js";
import type { TlsCredentials } from "../migration/transport/credentials.js";
import { type Endpoint, formatEndpoint } from "../migration/transport/endpoint.js";
import type { Listener } from "../migration/transport/listener.js";

/*
 * The network under a migration: a control connection and page channels, both to the same port.
 */

/** The source's way to a destination. */
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
    connect: (signal) => connectControl({ endpoint, credentials, signal }),
    openSender: ({ memory, token, channels, signal }) =>
      openSender({ memory, address: { host, port, ...tls, token }, channels, signal }),
  };
}

/** A source whose control connection has arrived at a listener. Its channels must show a token made for it alone. */
export function acceptedSource(listener: Listener, control: ControlConnection): AcceptedSource {
  return {
    from: `a source that came to ${formatEndpoint(listener.endpoint)}`,
    control,
    openReceiver: async ({ memory, channels }) => {
      const token = randomBytes(32).toString("hex");
      return { token, receiver: openReceiver({ memory, listener, channels, token }) };
    },
  };
}
