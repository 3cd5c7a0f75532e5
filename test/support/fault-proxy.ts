import { createConnection, createServer, type Socket } from "node:net";

/*
 * A TCP proxy between a source and a destination that lets one thing go wrong with one of its connections, at a byte:
 * frames mean nothing to it.
 */

export type FaultKind =
  /** Both ends are reset. */
  | "cut"
  /** This direction ends in an orderly way, the other goes on. */
  | "half-close"
  /** Nothing more passes in this direction, without an end. */
  | "stall"
  /** Nothing passes in this direction for a while, then all goes on. */
  | "delay";

export interface Fault {
  readonly kind: FaultKind;
  /** 0 is the control connection; channels follow in the order in which they come. */
  readonly connection: number;
  readonly direction: "to-destination" | "to-source";
  /** Bytes of this direction that pass before. */
  readonly afterBytes: number;
  /** How long a delay is. */
  readonly ms: number;
}

export interface FaultProxy {
  readonly port: number;
  /** The fault has come to pass. */
  readonly happened: boolean;
  close(): void;
}

/** Listens on loopback, and connects on to `port`. */
export async function faultProxy(port: number, fault: Fault): Promise<FaultProxy> {
  const sockets = new Set<Socket>();
  let connections = 0;
  let happened = false;
  const relay = (from: Socket, to: Socket, faulty: boolean) => {
    let passed = 0;
    let stalled = false;
    from.on("error", () => {}).on("end", () => !stalled && to.end());
    from.on("close", () => !stalled && !to.destroyed && to.end());
    from.on("data", (bytes: Buffer) => {
      const room = faulty && !happened ? fault.afterBytes - passed : Number.POSITIVE_INFINITY;
      passed += bytes.length;
      if (stalled) return;
      if (bytes.length <= room) {
        if (to.writable) to.write(bytes);
        return;
      }
      happened = true;
      to.write(bytes.subarray(0, room));
      switch (fault.kind) {
        case "cut":
          from.resetAndDestroy();
          to.resetAndDestroy();
          return;
        case "half-close":
          stalled = true;
          to.end();
          return;
        case "stall":
          stalled = true;
          return;
        case "delay":
          from.pause();
          setTimeout(() => {
            if (to.writable) to.write(bytes.subarray(room));
            from.resume();
          }, fault.ms);
      }
    });
  };
  const server = createServer({ allowHalfOpen: true }, (client) => {
    const upstream = createConnection({ host: "127.0.0.1", port, allowHalfOpen: true });
    const faulty = connections++ === fault.connection;
    sockets.add(client).add(upstream);
    relay(client, upstream, faulty && fault.direction === "to-destination");
    relay(upstream, client, faulty && fault.direction === "to-source");
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const address = server.address();
  return {
    port: typeof address === "object" && address !== null ? address.port : 0,
    get happened() {
      return happened;
    },
    close: () => {
      server.close();
      for (const socket of sockets) socket.destroy();
    },
  };
}
