import { closeSync, ftruncateSync, openSync, readFileSync, unlinkSync, writeSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { addressOf } from "../../sys/address.js";
import { socketPair, UnixSocket } from "../../sys/unix-socket.js";
import {
  VFIO_USER_COMMAND,
  VFIO_USER_F_DMA_REGION_FILE_IO,
  VFIO_USER_F_DMA_REGION_MMAP,
  VFIO_USER_F_DMA_REGION_READ,
  VFIO_USER_F_DMA_REGION_WRITE,
  VFIO_USER_F_DMA_UNMAP_ALL,
  VFIO_USER_F_TYPE_REPLY,
  vfio_user_dma_access,
  vfio_user_dma_map,
  vfio_user_header,
  vfio_user_region_access,
} from "../../uapi/vfio-user.js";
import { RawClient } from "../raw-client.test.helper.js";
import {
  dma,
  errnoOf,
  mapDma,
  messageMemory,
  READ_WRITE,
  Served,
  sharedMemory,
  socketDirectory,
  unmapDma,
} from "./served.test.helper.js";
import { TEST_COMMAND, TEST_FAULTS, TEST_REGISTER } from "./test-model.test.helper.js";

const PAGE = 4096n;

describe.runIf(process.platform === "linux")("memory that a client gives to its device", () => {
  let served: Served;
  beforeAll(async () => {
    served = await Served.start();
  });
  afterAll(async () => {
    await served[Symbol.asyncDispose]();
  });

  it("is written and read in place where it is a sealed memfd", () => {
    const { client } = served;
    const { fd, u8 } = sharedMemory(4 * 4096);
    mapDma(client, { address: 0x10000n, size: 2n * PAGE, offset: PAGE }, [fd]);
    closeSync(fd);
    expect(dma(client, "WRITE", { address: 0x11010n, value: 0x5a, bytes: 100 })).toBe("done");
    expect(u8.subarray(2 * 4096 + 0x10, 2 * 4096 + 0x10 + 100)).toEqual(new Uint8Array(100).fill(0x5a));
    expect(u8[2 * 4096 + 0x0f]).toBe(0);
    expect(u8[2 * 4096 + 0x10 + 100]).toBe(0);
    u8.set([1, 2, 3, 4], 4096);
    expect(dma(client, "READ", { address: 0x10000n, bytes: 4 })).toBe("done");
    expect(client.readRegister(0, TEST_REGISTER.VALUE)).toBe(0x04030201);
    unmapDma(client, 0x10000n, 2n * PAGE);
    expect(dma(client, "WRITE", { address: 0x11010n, value: 1 })).toBe("not-mapped");
    expect(u8[2 * 4096 + 0x10]).toBe(0x5a);
  });

  it("is written and read by its file where the client could make it shorter, and a DMA to what is cut off faults", () => {
    const { client } = served;
    using directory = socketDirectory();
    const path = join(directory.path, "ram");
    const fd = openSync(path, "w+");
    ftruncateSync(fd, 8192);
    mapDma(client, { address: 0x20000n, size: 2n * PAGE }, [fd]);
    expect(dma(client, "WRITE", { address: 0x21ffcn, value: 0x77 })).toBe("done");
    expect(readFileSync(path).subarray(8188)).toEqual(Buffer.alloc(4, 0x77));
    expect(dma(client, "READ", { address: 0x21ffcn })).toBe("done");
    expect(client.readRegister(0, TEST_REGISTER.VALUE)).toBe(0x77777777);
    ftruncateSync(fd, 4096);
    expect(dma(client, "READ", { address: 0x21ffcn })).toBe("not-mapped");
    unmapDma(client, 0x20000n, 2n * PAGE);
    closeSync(fd);
    unlinkSync(path);
  });

  it("is reached as its access-mode flags say: by its file, though it could be mapped, and by a file that can't be", () => {
    const { client } = served;
    const { fd, u8 } = sharedMemory(2 * 4096);
    for (const mode of [VFIO_USER_F_DMA_REGION_MMAP, VFIO_USER_F_DMA_REGION_FILE_IO]) {
      mapDma(client, { address: 0x10000n, size: 2n * PAGE, flags: READ_WRITE | mode }, [fd]);
      expect(dma(client, "WRITE", { address: 0x11004n, value: mode })).toBe("done");
      expect(u8[4096 + 4]).toBe(mode);
      unmapDma(client, 0x10000n, 2n * PAGE);
    }
    // The memory of a process, this one's: it has no size, and can't be mapped.
    const memory = openSync("/proc/self/mem", "r+");
    const region = { address: 0x10000n, size: 2n * PAGE, offset: addressOf(u8) };
    expect(errnoOf(() => mapDma(client, region, [memory]))).toBe("EINVAL");
    mapDma(client, { ...region, flags: READ_WRITE | VFIO_USER_F_DMA_REGION_FILE_IO }, [memory]);
    expect(dma(client, "WRITE", { address: 0x11008n, value: 0x66 })).toBe("done");
    expect(u8[4096 + 8]).toBe(0x66);
    expect(dma(client, "READ", { address: 0x11004n })).toBe("done");
    unmapDma(client, 0x10000n, 2n * PAGE);
    mapDma(client, { ...region, offset: 0n, flags: READ_WRITE | VFIO_USER_F_DMA_REGION_FILE_IO }, [memory]);
    expect(dma(client, "READ", { address: 0x10000n })).toBe("not-mapped");
    unmapDma(client, 0x10000n, 2n * PAGE);
    closeSync(memory);
    closeSync(fd);
  });

  it("is refused with access-mode flags that can't be: without a descriptor, or both", () => {
    const { client } = served;
    const { fd } = sharedMemory(4096);
    const map = (mode: number, fds?: readonly number[]) =>
      errnoOf(() => mapDma(client, { address: 0x10000n, size: PAGE, flags: READ_WRITE | mode }, fds));
    expect(map(VFIO_USER_F_DMA_REGION_MMAP)).toBe("EINVAL");
    expect(map(VFIO_USER_F_DMA_REGION_FILE_IO)).toBe("EINVAL");
    expect(map(VFIO_USER_F_DMA_REGION_MMAP | VFIO_USER_F_DMA_REGION_FILE_IO, [fd])).toBe("EINVAL");
    expect(map(16, [fd])).toBe("EINVAL");
    using directory = socketDirectory();
    const file = openSync(join(directory.path, "short"), "w+");
    expect(map(VFIO_USER_F_DMA_REGION_FILE_IO, [file])).toBe("EINVAL");
    closeSync(file);
    closeSync(fd);
  });

  it("keeps to what its flags allow", () => {
    const { client } = served;
    const { fd } = sharedMemory(8192);
    mapDma(client, { address: 0n, size: PAGE, flags: VFIO_USER_F_DMA_REGION_READ }, [fd]);
    mapDma(client, { address: PAGE, size: PAGE, flags: VFIO_USER_F_DMA_REGION_WRITE }, [fd]);
    closeSync(fd);
    expect(dma(client, "WRITE", { address: 0n })).toBe("not-writeable");
    expect(dma(client, "READ", { address: PAGE })).toBe("not-readable");
    expect(dma(client, "READ", { address: 0n })).toBe("done");
    expect(dma(client, "WRITE", { address: PAGE })).toBe("done");
    unmapDma(client, 0n, 0n, VFIO_USER_F_DMA_UNMAP_ALL);
    expect(dma(client, "READ", { address: 0n })).toBe("not-mapped");
  });

  it("is asked for by messages where no descriptor came, while the client's own commands wait", () => {
    const { client } = served;
    const { memory, seen, answer } = messageMemory(8192, 0x40000n);
    client.onCommand = answer;
    mapDma(client, { address: 0x40000n, size: 2n * PAGE });
    expect(dma(client, "WRITE", { address: 0x40ff0n, value: 0x11, bytes: 16 })).toBe("done");
    expect(memory.subarray(0xff0, 0x1000)).toEqual(Buffer.alloc(16, 0x11));
    memory.writeUInt32LE(0xcafe, 4096);
    expect(dma(client, "READ", { address: 0x41000n, bytes: 2048 })).toBe("done");
    expect(client.readRegister(0, TEST_REGISTER.VALUE)).toBe(0xcafe);
    // In the middle of a register write, whose own data must not suffer.
    expect(dma(client, "READ_NOW", { address: 0x41000n, bytes: 4096 })).toBe("done");
    expect(dma(client, "WRITE_NOW", { address: 0x40000n, value: 0x22, bytes: 4096 })).toBe("done");
    expect(memory.subarray(0, 4096)).toEqual(Buffer.alloc(4096, 0x22));
    expect(seen.map(({ address, count }) => [address, count])).toEqual([
      [0x40ff0n, 16],
      [0x41000n, 2048],
      [0x41000n, 4096],
      [0x40000n, 4096],
    ]);
    client.onCommand = undefined;
    unmapDma(client, 0x40000n, 2n * PAGE);
  });

  it("does what came in one piece with the answer to a DMA, when that is done", () => {
    const { client } = served;
    mapDma(client, { address: 0x40000n, size: PAGE });
    let asked = -1;
    client.onCommand = ({ id, command, payload }) => {
      // Both in one write: the server reads them together.
      const head = vfio_user_header.size;
      const bytes = new Uint8Array(head + vfio_user_dma_access.size + head + vfio_user_region_access.size);
      const reply = head + vfio_user_dma_access.size;
      vfio_user_header.encode({ msg_id: id, cmd: command, msg_size: reply, flags: VFIO_USER_F_TYPE_REPLY }, bytes);
      bytes.set(payload.subarray(0, vfio_user_dma_access.size), head);
      asked = 0x7fff;
      const { REGION_READ } = VFIO_USER_COMMAND;
      vfio_user_header.encode({ msg_id: asked, cmd: REGION_READ, msg_size: bytes.byteLength - reply }, bytes, reply);
      vfio_user_region_access.encode({ region: 0, count: 4 }, bytes, reply + head);
      writeSync(client.socket.fd, bytes);
    };
    const registers = Buffer.alloc(16);
    registers.writeBigUInt64LE(0x40000n, 0);
    registers.writeUInt32LE(4, TEST_REGISTER.BYTES - TEST_REGISTER.ADDRESS);
    client.regionWrite(0, TEST_REGISTER.ADDRESS, registers);
    client.writeRegister(0, TEST_REGISTER.COMMAND, TEST_COMMAND.WRITE);
    while (asked < 0) {
      const message = client.next();
      client.onCommand(message, client);
    }
    const answer = client.next(900);
    expect([answer.isReply, answer.id]).toEqual([true, asked]);
    client.onCommand = undefined;
    unmapDma(client, 0x40000n, PAGE);
  });

  it("faults where the client refuses a message, and the connection goes on", () => {
    const { client } = served;
    client.onCommand = (message) => client.socket.sendError(message, 14);
    mapDma(client, { address: 0x40000n, size: PAGE });
    expect(dma(client, "WRITE", { address: 0x40000n })).toBe("not-mapped");
    expect(dma(client, "READ", { address: 0x40000n })).toBe("not-mapped");
    client.onCommand = undefined;
    unmapDma(client, 0x40000n, PAGE);
  });

  it("is refused with the errno of the specification or the kernel where it can't be", () => {
    const { client } = served;
    const { fd } = sharedMemory(4 * 4096);
    const map = (region: Partial<Parameters<typeof mapDma>[1]>, fds?: readonly number[]) =>
      errnoOf(() => mapDma(client, { address: 0x100000n, size: PAGE, ...region }, fds));
    expect(map({ size: 0n })).toBe("EINVAL");
    expect(map({ address: 0x100800n })).toBe("EINVAL");
    expect(map({ size: 0x1800n })).toBe("EINVAL");
    expect(map({ address: 0xffff_ffff_ffff_f000n, size: 2n * PAGE })).toBe("EINVAL");
    expect(map({ flags: 0 })).toBe("EINVAL");
    expect(map({ flags: READ_WRITE | 4 })).toBe("EINVAL");
    expect(map({ offset: 100n }, [fd])).toBe("EINVAL");
    expect(map({ offset: 4n * PAGE }, [fd])).toBe("EINVAL");
    expect(map({ size: 5n * PAGE }, [fd])).toBe("EINVAL");
    expect(map({ offset: 0xffff_ffff_ffff_f000n }, [fd])).toBe("EINVAL");
    expect(map({}, [fd, fd])).toBe("EINVAL");
    const [a, b] = socketPair();
    expect(map({}, [a.fd])).toBe("EINVAL");
    a[Symbol.dispose]();
    b[Symbol.dispose]();
    const readOnly = openSync("/proc/self/exe", "r");
    expect(map({}, [readOnly])).toBe("EACCES");
    closeSync(readOnly);
    expect(map({}, [fd])).toBe("none");
    expect(map({}, [fd])).toBe("EEXIST");
    expect(map({ address: 0xff000n, size: 2n * PAGE })).toBe("EEXIST");
    closeSync(fd);
    expect(errnoOf(() => client.request("DMA_MAP", new Uint8Array(16)))).toBe("EINVAL");
    expect(
      errnoOf(() => client.call("DMA_MAP", vfio_user_dma_map, { argsz: 8, flags: 3, address: 0n, size: PAGE })),
    ).toBe("EINVAL");
    expect(errnoOf(() => unmapDma(client, 0x200000n, PAGE))).toBe("ENOENT");
    expect(errnoOf(() => unmapDma(client, 0xff000n, 2n * PAGE))).toBe("EINVAL");
    expect(errnoOf(() => unmapDma(client, 0x100000n, PAGE, 4))).toBe("EINVAL");
    expect(errnoOf(() => unmapDma(client, 0x100000n, PAGE, VFIO_USER_F_DMA_UNMAP_ALL))).toBe("EINVAL");
    expect(unmapDma(client, 0x100000n, PAGE).byteLength).toBe(24);
  });

  it("is let go when the client goes, and a new client's is its own", () => {
    const { fd, u8 } = sharedMemory(4096);
    mapDma(served.client, { address: 0n, size: PAGE }, [fd]);
    const client = served.reconnect();
    expect(dma(client, "WRITE", { address: 0n, value: 1 })).toBe("not-mapped");
    mapDma(client, { address: PAGE, size: PAGE }, [fd]);
    closeSync(fd);
    expect(dma(client, "WRITE", { address: PAGE, value: 9 })).toBe("done");
    expect(u8[0]).toBe(9);
    unmapDma(client, PAGE, PAGE);
  });

  it("has place for thousands of regions, and for as many again when they are gone", () => {
    const { client } = served;
    const { fd } = sharedMemory(4096);
    for (let round = 0; round < 2; round++) {
      for (let i = 0; i < 2000; i++) mapDma(client, { address: BigInt(i) * 2n * PAGE, size: PAGE }, [fd]);
      expect(dma(client, "WRITE", { address: 1999n * 2n * PAGE, value: round })).toBe("done");
      unmapDma(client, 0n, 0n, VFIO_USER_F_DMA_UNMAP_ALL);
    }
    closeSync(fd);
  });
});

describe.runIf(process.platform === "linux")("DMA by messages", () => {
  it("is what the option asks for, whatever is shared, and in parts that the client takes", async () => {
    await using served = await Served.start({ dma: "messages", capabilities: { max_data_xfer_size: 1024 } });
    const { client } = served;
    const { fd, u8 } = sharedMemory(4096);
    const { memory, seen, answer } = messageMemory(4096, 0n);
    client.onCommand = answer;
    mapDma(client, { address: 0n, size: PAGE }, [fd]);
    closeSync(fd);
    expect(dma(client, "WRITE", { address: 0n, value: 3, bytes: 4096 })).toBe("done");
    expect(memory).toEqual(Buffer.alloc(4096, 3));
    expect(u8[0]).toBe(0);
    expect(seen.map(({ count }) => count)).toEqual([1024, 1024, 1024, 1024]);
  });

  it("goes over a socket of its own for a client that asks for one", async () => {
    await using served = await Served.start();
    served.client[Symbol.dispose]();
    const client = RawClient.connect(served.server.path);
    const { capabilities, fds } = client.version({ max_msg_fds: 8, twin_socket: { supported: true } });
    expect(capabilities.twin_socket).toEqual({ supported: true, fd_index: 0 });
    expect(fds).toHaveLength(1);
    served.client = client;
    using twin = new RawClient(new UnixSocket(fds[0]));
    mapDma(client, { address: 0n, size: PAGE });
    const registers = Buffer.alloc(16);
    registers.writeUInt32LE(4, 12);
    client.regionWrite(0, TEST_REGISTER.ADDRESS, registers);
    client.writeRegister(0, TEST_REGISTER.COMMAND, 1);
    const message = twin.next();
    expect(message).toMatchObject({ command: VFIO_USER_COMMAND.DMA_WRITE, isReply: false });
    twin.socket.send(
      { id: message.id, command: message.command, flags: VFIO_USER_F_TYPE_REPLY },
      message.payload.slice(0, vfio_user_dma_access.size),
    );
    expect(client.readRegister(0, TEST_REGISTER.RESULT)).toBe(1);
    client.writeRegister(0, TEST_REGISTER.COMMAND, 1);
    twin.next();
    twin.send(VFIO_USER_COMMAND.DEVICE_RESET, null);
    expect(() => client.next()).toThrow(expect.objectContaining({ code: "CLOSED" }));
    await served.logged(/command on the socket that is for the server's own/);
  });

  it("waits for a client that stands still, and says so", async () => {
    await using served = await Served.start();
    const { client } = served;
    mapDma(client, { address: 0n, size: PAGE });
    const registers = Buffer.alloc(16);
    registers.writeUInt32LE(4, 12);
    client.regionWrite(0, TEST_REGISTER.ADDRESS, registers);
    client.writeRegister(0, TEST_REGISTER.COMMAND, 1);
    const { id, command, payload } = client.next();
    expect(command).toBe(VFIO_USER_COMMAND.DMA_WRITE);
    await served.logged(/client 1 has not answered a DMA for 5000 ms/, 30_000);
    const flags = VFIO_USER_F_TYPE_REPLY;
    client.socket.send({ id, command, flags }, payload.slice(0, vfio_user_dma_access.size));
    expect(client.readRegister(0, TEST_REGISTER.RESULT)).toBe(TEST_FAULTS.indexOf("done"));
    expect(served.lines).toHaveLength(1);
  }, 60_000);

  it("ends the DMA of a client that goes meanwhile, and the device's state stays", async () => {
    await using served = await Served.start();
    mapDma(served.client, { address: 0n, size: PAGE });
    const registers = Buffer.alloc(16);
    registers.writeUInt32LE(4, 12);
    served.client.regionWrite(0, TEST_REGISTER.ADDRESS, registers);
    served.client.writeRegister(0, TEST_REGISTER.COMMAND, 1);
    expect(served.client.next().command).toBe(VFIO_USER_COMMAND.DMA_WRITE);
    const client = served.reconnect();
    expect(client.readRegister(0, TEST_REGISTER.RESULT)).toBe(TEST_FAULTS.indexOf("detached"));
  });
});
