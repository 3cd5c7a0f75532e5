import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { ERRNO } from "../../uapi/errno.js";
import {
  dirtmap_counters,
  VFIO_USER_COMMAND,
  VFIO_USER_F_NO_REPLY,
  VFIO_USER_F_TYPE_REPLY,
  vfio_user_dma_access,
} from "../../uapi/vfio-user.js";
import { Connection } from "./connection.js";
import { readCounters } from "./counters.js";
import { FakeServer, versionReply } from "./fake-server.test.helper.js";

const { DEVICE_RESET, DMA_READ, DMA_WRITE, REGION_READ } = VFIO_USER_COMMAND;

let server: FakeServer;
const connections: Connection[] = [];
beforeEach(() => {
  server = new FakeServer();
});
afterEach(() => {
  for (const connection of connections.splice(0)) connection[Symbol.dispose]();
  server[Symbol.dispose]();
});

async function connect(...args: Parameters<FakeServer["connect"]>): Promise<Connection> {
  const connection = await server.connect(...args);
  connections.push(connection);
  return connection;
}

function ask(connection: Connection, command: number = DEVICE_RESET): Promise<Uint8Array> {
  const asked = connection.call(command, "a command", Uint8Array.of(1, 2, 3, 4));
  asked.catch(() => undefined);
  return asked;
}

/** Sends one of the server's own commands, and returns what the client answers. */
async function demand(command: number, address: bigint, count: bigint, data: Uint8Array = new Uint8Array(0)) {
  const payload = new Uint8Array(vfio_user_dma_access.size + data.byteLength);
  vfio_user_dma_access.encode({ address, count }, payload);
  payload.set(data, vfio_user_dma_access.size);
  server.socket.sendCommand(command, 77, payload);
  const reply = await server.next();
  expect([reply.isReply, reply.id, reply.command]).toEqual([true, 77, command]);
  return reply;
}

describe("a connection to a vfio-user server", () => {
  it("matches replies by their ids, in whatever order they come", async () => {
    const connection = await connect();
    // Of commands whose replies have no form of their own.
    const [first, second] = [ask(connection, 0x7001), ask(connection, 0x7002)];
    const commands = [await server.next(), await server.next()];
    server.socket.sendReply(commands[1], Uint8Array.of(2));
    server.socket.sendReply(commands[0], Uint8Array.of(1));
    expect([await first, await second]).toEqual([Uint8Array.of(1), Uint8Array.of(2)]);
  });

  it("fails a command with the errno that it was answered, and goes on", async () => {
    const connection = await connect();
    const refused = ask(connection);
    server.socket.sendError(await server.next(), ERRNO.EBUSY);
    await expect(refused).rejects.toMatchObject({ code: "EBUSY", syscall: "a command" });
    const done = ask(connection);
    server.socket.sendReply(await server.next(), null);
    expect(await done).toHaveLength(0);
  });

  it("fails a command whose reply does not fit it with EPROTO, and goes on", async () => {
    const connection = await connect();
    const asked = ask(connection);
    server.socket.sendReply(await server.next(), Uint8Array.of(1));
    await expect(asked).rejects.toMatchObject({ code: "EPROTO", syscall: "a command" });
    const done = ask(connection);
    server.socket.sendReply(await server.next(), null);
    expect(await done).toHaveLength(0);
  });

  it("is over when a reply has a flag that replies have not: EPROTO", async () => {
    const connection = await connect();
    const asked = ask(connection);
    const { id, command } = await server.next();
    server.socket.send({ id, command, flags: VFIO_USER_F_TYPE_REPLY | VFIO_USER_F_NO_REPLY }, null);
    await expect(asked).rejects.toMatchObject({ code: "EPROTO" });
  });

  it("takes an error without a number as EIO", async () => {
    const connection = await connect();
    const refused = ask(connection);
    server.socket.sendError(await server.next(), 0);
    await expect(refused).rejects.toMatchObject({ code: "EIO" });
  });

  it("lets the server read and write memory while a command is under way", async () => {
    const connection = await connect();
    const memory = new Uint8Array(16);
    connection.dma = {
      read: (address, into) => {
        into.set(memory.subarray(Number(address), Number(address) + into.byteLength));
        return null;
      },
      write: (address, from) => {
        memory.set(from, Number(address));
        return null;
      },
    };
    const asked = ask(connection);
    const command = await server.next();
    expect((await demand(DMA_WRITE, 4n, 2n, Uint8Array.of(8, 9))).error).toBe(0);
    const { payload } = await demand(DMA_READ, 4n, 3n);
    expect(payload.subarray(vfio_user_dma_access.size)).toEqual(Uint8Array.of(8, 9, 0));
    server.socket.sendReply(command, null);
    await asked;
  });

  it("refuses what a server may not ask: without memory EFAULT, of wrong length EINVAL, other commands ENOTTY", async () => {
    const connection = await connect();
    expect((await demand(DMA_READ, 0n, 4n)).error).toBe(ERRNO.EFAULT);
    connection.dma = { read: () => null, write: () => null };
    expect((await demand(DMA_WRITE, 0n, 4n, Uint8Array.of(1))).error).toBe(ERRNO.EINVAL);
    expect((await demand(DMA_READ, 0n, 1n << 40n)).error).toBe(ERRNO.EINVAL);
    expect((await demand(DEVICE_RESET, 0n, 0n)).error).toBe(ERRNO.ENOTTY);
    server.socket.sendCommand(DMA_READ, 77, Uint8Array.of(1));
    expect((await server.next()).error).toBe(ERRNO.EINVAL);
  });

  it("is over when the server does not answer in time: ETIMEDOUT with a remedy, for all that is under way and later", async () => {
    const connection = await connect({ limitMs: 50 });
    const [first, second] = [ask(connection), ask(connection)];
    const late = { code: "ETIMEDOUT", remedy: expect.stringContaining("start it again") };
    await expect(first).rejects.toMatchObject(late);
    await expect(second).rejects.toMatchObject(late);
    await expect(ask(connection)).rejects.toBe(await first.catch((error) => error));
  });

  it("is over when the server goes away: every command under way fails with one clear error", async () => {
    const connection = await connect();
    const asked = [ask(connection), ask(connection)];
    await server.next();
    await server.next();
    server.hangUp();
    const errors = await Promise.all(asked.map((one) => one.catch((error: unknown) => error)));
    expect(errors[0]).toMatchObject({ code: "ECONNRESET", remedy: expect.stringContaining("log") });
    expect(errors[1]).toBe(errors[0]);
    await expect(ask(connection)).rejects.toBe(errors[0]);
  });

  it("closes what is under way when it is closed: EBADF", async () => {
    const connection = await connect();
    const asked = ask(connection);
    connection[Symbol.dispose]();
    await expect(asked).rejects.toMatchObject({ code: "EBADF" });
  });

  it.each([
    ["answers what nobody asked", () => server.socket.sendReply({ id: 999, command: DEVICE_RESET } as never, null)],
    ["sends a message of an unknown type", () => server.socket.send({ id: 1, command: 1, flags: 7 }, null)],
    ["sends more than was agreed on", () => server.socket.sendCommand(DMA_WRITE, 1, new Uint8Array(2 ** 20 + 2 ** 16))],
  ])("is over when the server %s: EPROTO", async (_, wrong) => {
    const connection = await connect();
    const asked = ask(connection);
    await server.next();
    wrong();
    await expect(asked).rejects.toMatchObject({ code: "EPROTO" });
    expect(connection.failure).toMatchObject({ code: "EPROTO" });
  });

  it("is over when a reply is to another command than was asked: EPROTO", async () => {
    const connection = await connect();
    const asked = ask(connection);
    const { id } = await server.next();
    server.socket.sendReply({ id, command: REGION_READ } as never, null);
    await expect(asked).rejects.toMatchObject({ code: "EPROTO" });
  });

  it("keeps to what the server takes, and to its own bounds", async () => {
    const version = versionReply({ max_msg_fds: 3, max_data_xfer_size: 4096, max_dma_maps: 7 });
    const agreed = { maxFds: 3, maxTransfer: 4096, maxDmaMaps: 7, dirtmap: false };
    expect((await connect({}, version)).agreement).toEqual(agreed);
    const boundless = versionReply({ max_msg_fds: 10_000, max_data_xfer_size: 2 ** 40 });
    server.hangUp();
    expect((await connect({}, boundless)).agreement).toMatchObject({ maxFds: 253, maxTransfer: 2 ** 20 });
  });

  it.each([
    ["another version", versionReply({}, { major: 1 }), "EPROTONOSUPPORT"],
    ["a newer minor version than was proposed", versionReply({}, { minor: 5 }), "EPROTONOSUPPORT"],
    ["capabilities that are no JSON", versionReply(new TextEncoder().encode("{nonsense\0")), "EPROTO"],
    ["capabilities of a wrong type", versionReply({ max_msg_fds: "many" }), "EPROTO"],
    ["too little", new Uint8Array(2), "EPROTO"],
  ])("can't be made to a server that answers with %s", async (_, version, code) => {
    await expect(server.connect({}, version)).rejects.toMatchObject({ code });
  });

  it.each([
    [2, "upgrade the client"],
    [65535, "upgrade the client"],
  ])(
    "can't be made to a server of version %i of Dirtmap's own commands, which says what to upgrade",
    async (protocol, remedy) => {
      const opening = connect({}, versionReply({ dirtmap: { protocol } }));
      await expect(opening).rejects.toMatchObject({
        code: "EPROTONOSUPPORT",
        remedy,
        message: expect.stringMatching(
          `the server speaks version ${protocol} of Dirtmap's own commands, and this client`,
        ),
      });
    },
  );

  it("finds a server of Dirtmap's that is older than the version of its own commands, and says so", async () => {
    const connection = await connect();
    const counters = readCounters(connection);
    counters.catch(() => undefined);
    server.socket.sendReply(await server.next(), dirtmap_counters.encode({ argsz: dirtmap_counters.size }));
    await expect(counters).rejects.toMatchObject({ code: "EPROTONOSUPPORT", remedy: "upgrade the server" });
  });

  it("takes a server that refuses Dirtmap's own commands for another's", async () => {
    const connection = await connect();
    const counters = readCounters(connection);
    server.socket.sendError(await server.next(), ERRNO.EINVAL);
    expect(await counters).toBeNull();
  });

  it("can't be made where nobody listens: ENOENT, with what to start", async () => {
    const opening = Connection.open(`${server.path}-not-there`);
    await expect(opening).rejects.toMatchObject({ code: "ENOENT", remedy: expect.stringContaining("dirtmap device") });
  });
});
