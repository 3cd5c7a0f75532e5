import { openReceiver } from "../../src/migration/channels/receiver.js";
import { openSender } from "../../src/migration/channels/sender.js";
import type { AcceptedSource } from "../../src/migration/destination.js";
import type { SourceTransport } from "../../src/migration/source.js";
import { connectControl } from "../../src/migration/transport/connect.js";
import type { Listener } from "../../src/migration/transport/listener.js";

/* The real channels between two processes, over plain TCP on loopback. */

export function transportTo(port: number): SourceTransport {
  const endpoint = { scheme: "tcp", host: "127.0.0.1", port } as const;
  return {
    destination: `tcp://127.0.0.1:${port}`,
    connect: (signal) => connectControl({ endpoint, signal }),
    openSender: ({ memory, token, channels, signal }) =>
      openSender({ memory, address: { host: endpoint.host, port, token }, channels, signal }),
  };
}

export async function nextSource(listener: Listener): Promise<AcceptedSource> {
  const control = await listener.acceptControl();
  const token = "5a".repeat(32);
  return {
    from: "a test",
    control,
    openReceiver: async ({ memory, channels }) => ({
      token,
      receiver: openReceiver({ memory, listener, channels, token }),
    }),
  };
}
