import { randomBytes } from "node:crypto";
import type { GuestMemory } from "../../memory/guest-memory.js";
import { openReceiver } from "../channels/receiver.js";
import { openSender } from "../channels/sender.js";
import type { PageReceiver, PageSender } from "../data-plane.js";
import type { ControlConnection } from "../stream/control-connection.js";
import { connectControl } from "./connect.js";
import type { TlsCredentials } from "./credentials.js";
import { type Endpoint, formatEndpoint } from "./endpoint.js";
import type { Listener } from "./listener.js";

/*
 * What a migration needs of the network, put together: the control connection and the page channels of one endpoint.
 */

/** A source's way to a destination. `servername`: what its certificate must say, if not the host. */
export function networkTransport(endpoint: Endpoint, credentials: TlsCredentials | undefined, servername?: string) {
  const { host, port } = endpoint;
  const named = servername === undefined ? {} : { servername };
  return {
    destination: formatEndpoint(endpoint),
    connect: (signal: AbortSignal): Promise<ControlConnection> =>
      connectControl({ endpoint, credentials, signal, ...named }),
    openSender: (args: {
      memory: GuestMemory;
      token: string;
      channels: number;
      signal: AbortSignal;
    }): Promise<PageSender> => {
      const { token, ...rest } = args;
      const tls = endpoint.scheme === "tls" && credentials !== undefined ? { tls: { ...credentials, ...named } } : {};
      return openSender({ ...rest, address: { host, port, token, ...tls } });
    },
  };
}

/**
 * Waits for the next source on a listener. Its channels are accepted there once the receiver is opened.
 * @throws the signal's reason; DirtmapError `LISTENER_CLOSED`
 */
export async function acceptSource(listener: Listener, signal?: AbortSignal, onRefused?: (error: unknown) => void) {
  const control = await listener.acceptControl(signal);
  return {
    from: control.peer,
    control,
    openReceiver: async (args: {
      memory: GuestMemory;
      channels: number;
    }): Promise<{ receiver: PageReceiver; token: string }> => {
      const token = randomBytes(32).toString("hex");
      const refused = onRefused === undefined ? {} : { onRefused };
      return { receiver: openReceiver({ ...args, listener, token, ...refused }), token };
    },
  };
}
