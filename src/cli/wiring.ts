import type { Machine } from "../host/host.js";
import { openReceiver } from "../migration/channels/receiver.js";
import { openSender } from "../migration/channels/sender.js";
import type { AcceptedSource } from "../migration/destination.js";
import type { ControlLink } from "../migration/peer.js";
import type { SourceTransport, Tracking } from "../migration/source.js";
import type { ControlConnection } from "../migration/stream/control-connection.js";
import { connectControl } from "../migration/transport/connect.js";
import type { TlsCredentials } from "../migration/transport/credentials.js";
import { type Endpoint, formatEndpoint } from "../migration/transport/endpoint.js";
import type { Listener } from "../migration/transport/listener.js";
import type { TrackerChoice } from "../tracking/choice.js";
import { openDesign, type TrackingDesign } from "../tracking/designs.js";
import { suspendDevices } from "../tracking/suspension.js";

/*
 * What a migration is made of, put together: network transports, and a tracking design over the chosen trackers.
 */

/** The longest that a timer of Node can wait; a dead connection is noticed by its silence long before. */
const UNTIL_LOST_MS = 2 ** 31 - 1;

/** The source's way to a destination over the network. */
export function sourceTransport(endpoint: Endpoint, credentials: TlsCredentials | undefined): SourceTransport {
  return {
    destination: formatEndpoint(endpoint),
    connect: async (signal) => link(await connectControl({ endpoint, credentials, signal })),
    openSender: ({ memory, token, channels, signal }) =>
      openSender({
        memory,
        address: {
          host: endpoint.host,
          port: endpoint.port,
          ...(credentials === undefined ? {} : { tls: credentials }),
          token,
        },
        channels,
        signal,
      }),
  };
}

/** A source whose control connection has arrived at a listener. */
export function acceptedSource(listener: Listener, control: ControlConnection, signal: AbortSignal): AcceptedSource {
  return {
    from: control.remote,
    control: link(control),
    openReceiver: ({ memory, channels }) => openReceiver({ memory, listener, channels, signal }),
  };
}

/** The trackers that were chosen, in a design, and the way to suspend devices. */
export async function openTracking(
  design: TrackingDesign,
  machine: Machine,
  choices: readonly TrackerChoice[],
): Promise<Tracking> {
  return {
    source: await openDesign(design, machine, choices),
    suspend: async (device) => {
      const suspension = await suspendDevices(
        machine,
        choices.filter((choice) => choice.device === device),
      );
      return { device, resume: () => suspension.resume() };
    },
  };
}

function link(connection: ControlConnection): ControlLink {
  return {
    send: (message) => connection.send(message),
    receive: () => connection.receive({ deadlineMs: UNTIL_LOST_MS }),
    close: () => connection.close(),
  };
}
