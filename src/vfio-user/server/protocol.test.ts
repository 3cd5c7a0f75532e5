import { closeSync, openSync, readdirSync, writeSync } from "node:fs";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { createArena } from "../../memory/arena.js";
import { mapFileOver } from "../../sys/mmap.js";
import { vfio_device_info, vfio_irq_info, vfio_region_info } from "../../uapi/vfio.js";
import {
  DIRTMAP_COMMAND,
  DIRTMAP_PROTOCOL,
  VFIO_REGION_INFO_FLAG_CAPS,
  VFIO_REGION_INFO_FLAG_MMAP,
  VFIO_USER_COMMAND,
  VFIO_USER_F_TYPE_REPLY,
  vfio_region_info_cap_sparse_mmap,
  vfio_region_sparse_mmap_area,
  vfio_user_device_info,
  vfio_user_header,
  vfio_user_region_access,
  vfio_user_region_io_fds,
  vfio_user_version,
  vfio_user_write_multi,
  vfio_user_write_multi_entry,
} from "../../uapi/vfio-user.js";
import { closeAll, RawClient } from "../raw-client.test.helper.js";
import { errnoOf, Served } from "./served.test.helper.js";
import { BAR1_AREAS, BAR1_BYTES, TEST_COMMAND, TEST_REGISTER } from "./test-model.test.helper.js";

describe.runIf(process.platform === "linux")("a vfio-user server", () => {
  let served: Served;
  beforeAll(async () => {
    served = await Served.start();
  });
  afterAll(async () => {
    await served[Symbol.asyncDispose]();
  });

  /** The socket is free again when the server has seen the old client go: connects until it is taken. */
  function fresh(): RawClient {
    served.client[Symbol.dispose]();
    served.client = RawClient.connect(served.server.path);
    return served.client;
  }

  describe("agrees on a version", () => {
    it("with what it can, and only what was proposed", () => {
      expect(fresh().version({ max_msg_fds: 8 })).toMatchObject({
        major: 0,
        minor: 0,
        capabilities: { max_msg_fds: 16, max_data_xfer_size: 1048576, max_dma_maps: 16384, pgsizes: 4096 },
        fds: [],
      });
      const { capabilities } = fresh().version({ write_multiple: true, something_new: { a: 1 } }, { minor: 7 });
      expect(capabilities).toMatchObject({ write_multiple: true });
      expect(capabilities).not.toHaveProperty("twin_socket");
      expect(fresh().version()).toMatchObject({ minor: 0 });
    });

    it("and refuses another major version with a line in its log, and the next client is served", async () => {
      expect(errnoOf(() => fresh().version({}, { major: 1 }))).toBe("EPROTONOSUPPORT");
      expect(await served.logged(/version 1\.0/)).toMatch(/client \d+: VFIO_USER_VERSION: EPROTONOSUPPORT/);
      expect(() => served.client.next()).toThrow(expect.objectContaining({ code: "CLOSED" }));
      expect(fresh().version().major).toBe(0);
    });

    it.each([
      ["no version", new Uint8Array(3)],
      ["no NUL", Buffer.concat([vfio_user_version.encode({}), Buffer.from("{}")])],
      ["no JSON", Buffer.concat([vfio_user_version.encode({}), Buffer.from("{\0")])],
      ["no object", Buffer.concat([vfio_user_version.encode({}), Buffer.from("7\0")])],
      ["no UTF-8", Buffer.concat([vfio_user_version.encode({}), Buffer.from([0xff, 0])])],
      [
        "no number",
        Buffer.concat([vfio_user_version.encode({}), Buffer.from('{"capabilities":{"max_msg_fds":"8"}}\0')]),
      ],
      ["too much", Buffer.concat([vfio_user_version.encode({}), Buffer.alloc(70_000, 0x20), Buffer.from([0])])],
    ])("or not: %s", (_what, payload) => {
      expect(errnoOf(() => fresh().request("VERSION", payload))).toBe("EINVAL");
      expect(() => served.client.next()).toThrow(expect.objectContaining({ code: "CLOSED" }));
    });

    it("before anything else, and once", () => {
      expect(errnoOf(() => fresh().request("DEVICE_RESET", null))).toBe("EINVAL");
      const client = fresh();
      client.version();
      expect(errnoOf(() => client.version())).toBe("EINVAL");
      expect(errnoOf(() => client.request("DEVICE_RESET", null))).toBe("none");
    });
  });

  it("has one client: a second is refused, the first is not disturbed", async () => {
    const client = served.reconnect();
    using second = RawClient.connect(served.server.path);
    expect(() => second.version()).toThrow();
    await served.logged(/is refused: the device has a client/);
    expect(client.readRegister(0, 0)).toBe(0);
  });

  it("closes a connection whose messages can't be, and goes on", () => {
    for (const header of [
      { msg_size: 8 },
      { msg_size: 2 ** 31 },
      { msg_size: 16, flags: 7 },
      { msg_size: 16, flags: 1 },
    ]) {
      const client = served.reconnect();
      const raw = vfio_user_header.encode({ cmd: VFIO_USER_COMMAND.DEVICE_RESET, ...header });
      writeSync(client.socket.fd, raw);
      expect(() => client.next()).toThrow(expect.objectContaining({ code: "CLOSED" }));
    }
    expect(served.reconnect().readRegister(0, 0)).toBe(0);
  });

  it.each([
    ["a reply that nobody waits for", VFIO_USER_F_TYPE_REPLY],
    ["a message of no type", 7],
    ["a command that takes none", 0],
  ])("keeps no descriptor of %s", (_what, flags) => {
    const file = openSync("/dev/null", "r");
    served.reconnect().readRegister(0, 0);
    const before = readdirSync("/proc/self/fd").length;
    served.client.socket.send({ id: 1, command: VFIO_USER_COMMAND.DEVICE_RESET, flags }, null, [file, file, file]);
    if (flags === 0) served.client.next();
    else expect(() => served.client.next()).toThrow(expect.objectContaining({ code: "CLOSED" }));
    served.reconnect().readRegister(0, 0);
    expect(readdirSync("/proc/self/fd")).toHaveLength(before);
    closeSync(file);
  });

  it("tells a client of another version of Dirtmap's own commands which it speaks, and closes; the log says what to upgrade", async () => {
    served.client[Symbol.dispose]();
    for (const path of [served.server.path, served.server.controlPath]) {
      using client = RawClient.connect(path);
      expect(client.version({ dirtmap: { protocol: 2 } }).capabilities.dirtmap).toEqual({ protocol: DIRTMAP_PROTOCOL });
      expect(() => client.next()).toThrow(expect.objectContaining({ code: "CLOSED" }));
    }
    await served.logged(
      /^client \d+ is closed: the client speaks version 2 .*, and this server speaks version 1; upgrade the server$/,
    );
    await served.logged(/^control client \d+ is closed: .*upgrade the server$/);
    for (const protocol of [0, -1, 1.5, "1", 65536]) {
      using client = RawClient.connect(served.server.controlPath);
      expect(errnoOf(() => client.version({ dirtmap: { protocol } }))).toBe("EINVAL");
    }
    served.reconnect();
  });

  it("has no answer to Dirtmap's own commands for a client that named no version of them", async () => {
    using client = RawClient.open(served.server.controlPath, { max_msg_fds: 16 });
    for (const command of Object.values(DIRTMAP_COMMAND)) {
      expect(errnoOf(() => client.request(command, new Uint8Array(24)))).toBe("EPROTONOSUPPORT");
    }
    await served.logged(/EPROTONOSUPPORT: .*upgrade the client: it names version 1 among its capabilities/);
  });

  it("refuses commands that there are not, and those that go the other way", () => {
    const { client } = served;
    for (const command of [0, 14, 19, 0x7fff, 0x8fff, VFIO_USER_COMMAND.DMA_READ, VFIO_USER_COMMAND.DMA_WRITE]) {
      expect(errnoOf(() => client.request(command, null))).toBe("ENOTTY");
    }
  });

  describe("tells of its device", () => {
    it("what it is", () => {
      const { payload } = served.client.call("DEVICE_GET_INFO", vfio_user_device_info, { argsz: 16 });
      expect(vfio_user_device_info.decode(payload)).toEqual({ argsz: 16, flags: 3, num_regions: 9, num_irqs: 5 });
      expect(errnoOf(() => served.client.call("DEVICE_GET_INFO", vfio_user_device_info, { argsz: 15 }))).toBe("EINVAL");
      expect(errnoOf(() => served.client.request("DEVICE_GET_INFO", null))).toBe("EINVAL");
      expect(vfio_device_info.size).toBe(24);
    });

    it("which regions it has, and what of them can be mapped", () => {
      const info = (index: number, argsz = vfio_region_info.size) =>
        served.client.call("DEVICE_GET_REGION_INFO", vfio_region_info, { argsz, index });
      expect(vfio_region_info.decode(info(0).payload)).toEqual({
        argsz: 32,
        flags: 3,
        index: 0,
        cap_offset: 0,
        size: 4096n,
        offset: 0n,
      });
      expect(vfio_region_info.decode(info(2).payload)).toMatchObject({ flags: 1, size: 8n });
      expect(vfio_region_info.decode(info(8).payload)).toMatchObject({ flags: 0, size: 0n });
      expect(errnoOf(() => info(9))).toBe("EINVAL");
      expect(errnoOf(() => info(0, 31))).toBe("EINVAL");

      const short = info(1);
      const { argsz, flags } = vfio_region_info.decode(short.payload);
      expect(short).toMatchObject({ payload: { byteLength: 32 }, fds: [] });
      expect(flags).toBe(3 | VFIO_REGION_INFO_FLAG_MMAP);
      const { payload, fds } = info(1, argsz);
      expect(vfio_region_info.decode(payload)).toMatchObject({
        argsz,
        flags: 3 | VFIO_REGION_INFO_FLAG_MMAP | VFIO_REGION_INFO_FLAG_CAPS,
        cap_offset: 32,
        size: BigInt(BAR1_BYTES),
      });
      expect(vfio_region_info_cap_sparse_mmap.decode(payload, 32)).toEqual({
        header: { id: 1, version: 1, next: 0 },
        nr_areas: 2,
        reserved: 0,
      });
      const areas = [48, 64].map((at) => vfio_region_sparse_mmap_area.decode(payload, at));
      expect(areas).toEqual(BAR1_AREAS.map(({ offset, bytes }) => ({ offset: BigInt(offset), size: BigInt(bytes) })));

      expect(fds).toHaveLength(1);
      const mapped = createArena(BAR1_BYTES).u8.subarray(0, BAR1_BYTES);
      mapFileOver(mapped, fds[0]);
      closeAll(fds);
      mapped[100] = 77;
      expect(served.client.regionRead(1, 100, 1)[0]).toBe(77);
      served.client.regionWrite(1, 8192, Uint8Array.of(5));
      expect(mapped[8192]).toBe(5);
    });

    it("which interrupts it has", () => {
      const info = (index: number) =>
        vfio_irq_info.decode(served.client.call("DEVICE_GET_IRQ_INFO", vfio_irq_info, { argsz: 16, index }).payload);
      expect([0, 1, 2, 3, 4].map((index) => [info(index).count, info(index).flags])).toEqual([
        [1, 0b111],
        [4, 0b011],
        [32, 0b011],
        [1, 0b1001],
        [1, 0b1001],
      ]);
      expect(errnoOf(() => info(5))).toBe("EINVAL");
    });

    it("that it has no descriptors for region I/O", () => {
      const ask = (values: object) =>
        errnoOf(() => served.client.call("DEVICE_GET_REGION_IO_FDS", vfio_user_region_io_fds, values));
      expect(ask({ argsz: 4096, index: 0 })).toBe("EOPNOTSUPP");
      expect(ask({ argsz: 4096, index: 9 })).toBe("EINVAL");
      expect(ask({ argsz: 15, index: 0 })).toBe("EINVAL");
      expect(ask({ argsz: 4096, index: 0, flags: 1 })).toBe("EINVAL");
    });
  });

  describe("reads and writes regions", () => {
    it("inside their bounds and rights only", () => {
      const { client } = served;
      client.regionWrite(0, 0x100, Uint8Array.of(1, 2, 3));
      expect(client.regionRead(0, 0xff, 5)).toEqual(Uint8Array.of(0, 1, 2, 3, 0));
      expect(client.regionRead(0, 0, 4096)).toHaveLength(4096);
      expect(client.regionRead(0, 4096, 0)).toHaveLength(0);
      expect(errnoOf(() => client.regionRead(0, 4093, 4))).toBe("EINVAL");
      expect(errnoOf(() => client.regionRead(0, 0xffff_ffff_ffff_fffcn, 8))).toBe("EINVAL");
      expect(errnoOf(() => client.regionRead(0, 0xffff_ffff_ffff_ffffn, 0xffffffff))).toBe("EINVAL");
      expect(errnoOf(() => client.regionRead(3, 0, 1))).toBe("EINVAL");
      expect(errnoOf(() => client.regionRead(0xdeadbeef, 0, 4))).toBe("EINVAL");
      expect(errnoOf(() => client.regionWrite(2, 0, Uint8Array.of(1)))).toBe("EINVAL");
      expect(client.regionRead(2, 0, 1)).toHaveLength(1);
      const short = { offset: 0n, region: 0, count: 8 };
      expect(
        errnoOf(() => client.call("REGION_WRITE", vfio_user_region_access, short, { data: new Uint8Array(7) })),
      ).toBe("EINVAL");
      expect(
        errnoOf(() => client.call("REGION_WRITE", vfio_user_region_access, short, { data: new Uint8Array(9) })),
      ).toBe("EINVAL");
      expect(errnoOf(() => client.request("REGION_READ", new Uint8Array(15)))).toBe("EINVAL");
    });

    it("without a reply where none is wanted, in order with those that have one", () => {
      const { client } = served;
      const write = (value: number) => {
        const payload = new Uint8Array(vfio_user_region_access.size + 1);
        vfio_user_region_access.encode({ offset: 0x200n, region: 0, count: 1 }, payload);
        payload[vfio_user_region_access.size] = value;
        client.send(VFIO_USER_COMMAND.REGION_WRITE, payload, undefined, { noReply: true });
      };
      for (let i = 1; i <= 200; i++) write(i);
      expect(client.regionRead(0, 0x200, 1)[0]).toBe(200);
      // Nor is an error told.
      client.send(VFIO_USER_COMMAND.REGION_WRITE, new Uint8Array(2), undefined, { noReply: true });
      expect(client.regionRead(0, 0x200, 1)[0]).toBe(200);
    });

    it("several at once, all of them or none", () => {
      const { client } = served;
      const multi = (
        writes: { offset: bigint; region?: number; count: number; data: bigint }[],
        wr_cnt = writes.length,
      ) => {
        const { size } = vfio_user_write_multi_entry;
        const data = new Uint8Array(writes.length * size);
        for (const [i, write] of writes.entries()) vfio_user_write_multi_entry.encode(write, data, i * size);
        return client.call("REGION_WRITE_MULTI", vfio_user_write_multi, { wr_cnt: BigInt(wr_cnt) }, { data }).payload;
      };
      const two = [
        { offset: 0x300n, count: 8, data: 0x0807060504030201n },
        { offset: 0x304n, count: 2, data: 0xffffn },
      ];
      expect(vfio_user_write_multi.decode(multi(two))).toEqual({ wr_cnt: 2n });
      expect(client.regionRead(0, 0x300, 8)).toEqual(Uint8Array.of(1, 2, 3, 4, 0xff, 0xff, 7, 8));
      expect(errnoOf(() => multi(two, 3))).toBe("EINVAL");
      expect(errnoOf(() => client.request("REGION_WRITE_MULTI", new Uint8Array(20)))).toBe("EINVAL");
      expect(errnoOf(() => client.request("REGION_WRITE_MULTI", new Uint8Array(7)))).toBe("EINVAL");
      expect(vfio_user_write_multi.decode(multi([]))).toEqual({ wr_cnt: 0n });
      expect(
        errnoOf(() =>
          multi([
            { ...two[0], data: 0n },
            { ...two[1], count: 9 },
          ]),
        ),
      ).toBe("EINVAL");
      expect(
        errnoOf(() =>
          multi([
            { ...two[0], data: 0n },
            { ...two[1], region: 6 },
          ]),
        ),
      ).toBe("EINVAL");
      expect(client.regionRead(0, 0x300, 1)[0]).toBe(1);
    });
  });

  it("keeps the device's state when a client goes, until it is reset", () => {
    served.client.writeRegister(0, 0x400, 42);
    const client = served.reconnect();
    expect(client.readRegister(0, 0x400)).toBe(42);
    client.request("DEVICE_RESET", null);
    expect(client.readRegister(0, 0x400)).toBe(0);
  });

  it("survives a model that throws: the device has failed, until it is reset", async () => {
    const { client } = served;
    expect(errnoOf(() => client.writeRegister(0, TEST_REGISTER.COMMAND, TEST_COMMAND.THROW))).toBe("EIO");
    expect(await served.logged(/has failed/)).toContain("the test model was told to throw");
    client.request("DEVICE_RESET", null);
    expect(client.readRegister(0, TEST_REGISTER.COMMAND)).toBe(0);
  });
});
