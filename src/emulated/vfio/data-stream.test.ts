import { describe, expect, it } from "vitest";
import { MLX5_QUEUES_REGISTER } from "../../devices/mlx5.js";
import { REGION } from "../../devices/pci-model.js";
import { checkStamps, stampsIntact } from "../../devices/stamp.js";
import { enableBusMaster } from "../../devices/workload.js";
import { BLK, bench, eventually, MLX5, NIC, readAll, resuming, saving, stampsOf, VGPU } from "./bench.test.helper.js";

describe("the migration states of a device", () => {
  it("stop only P2P in RUNNING_P2P where the device can tell P2P apart, and everything where it can't", async () => {
    const { device } = await bench([BLK, VGPU]);
    for (const id of ["blk0", "vgpu0"]) {
      await enableBusMaster(device(id));
      await eventually(async () => (await device(id).counters()).units > 5);
      await device(id).setState("RUNNING_P2P");
    }
    const before = { blk: (await device("blk0").counters()).units, vgpu: (await device("vgpu0").counters()).units };
    await new Promise((resolve) => setTimeout(resolve, 50));
    expect((await device("blk0").counters()).units).toBeGreaterThan(before.blk);
    expect((await device("vgpu0").counters()).units).toBe(before.vgpu);
  });

  it("go to ERROR with EIO when the device fails, and a reset leads back to RUNNING", async () => {
    const { device } = await bench([MLX5]);
    const mlx5 = device("mlx0");
    mlx5.failNext({ from: "RUNNING_P2P", to: "STOP" });
    await expect(mlx5.setState("STOP_COPY")).rejects.toMatchObject({ code: "EIO" });
    expect(await mlx5.state()).toBe("ERROR");
    await expect(mlx5.setState("RUNNING")).rejects.toMatchObject({ code: "EINVAL" });
    await mlx5.reset();
    expect(await mlx5.state()).toBe("RUNNING");
    await mlx5.setState("STOP");
    expect(await mlx5.state()).toBe("STOP");
  });

  it("refuse what the device does not support, and leave it where it was", async () => {
    const { device } = await bench([BLK]);
    await expect(device("blk0").setState("PRE_COPY")).rejects.toMatchObject({ code: "EINVAL" });
    await expect(device("blk0").setState("ERROR")).rejects.toMatchObject({ code: "EINVAL" });
    expect(await device("blk0").state()).toBe("RUNNING");
  });

  it("carry a device over to another machine, where its workload goes on without a gap", async () => {
    for (const description of [BLK, VGPU]) {
      const source = await bench([description], { incarnation: 1 });
      const from = source.device(description.id);
      await enableBusMaster(from);
      await eventually(async () => (await from.counters()).units > 150);
      const stream = saving(await from.setState("STOP_COPY"));
      const expected = await from.dataSize();
      const parts = await readAll(stream, 1000);
      expect(parts.reduce((sum, part) => sum + part.byteLength, 0)).toBe(expected);

      const destination = await bench([description], { incarnation: 2, memory: source.memory });
      const to = destination.device(description.id);
      const target = resuming(await to.setState("RESUMING"));
      // Other segments than those that were read.
      const whole = Buffer.concat(parts);
      for (let at = 0; at < whole.length; at += 777) await target.write(whole.subarray(at, at + 777));
      await to.setState("STOP");
      const { lastSequence } = await from.counters();
      expect((await to.counters()).lastSequence).toBe(lastSequence);
      await to.setState("RUNNING");
      await eventually(async () => (await to.counters()).lastSequence > lastSequence + 20);
      await to.setState("STOP");
      expect(stampsIntact(checkStamps(destination.memory, await stampsOf(to)))).toBe(true);
    }
  });

  it("fail a resume with EINVAL and ERROR where data is missing, spoilt, or of another model", async () => {
    const { device } = await bench([MLX5, NIC]);
    const mlx5 = device("mlx0");
    const whole = Buffer.concat(await readAll(saving(await mlx5.setState("STOP_COPY"))));
    const resume = async (data: Uint8Array) => {
      await mlx5.reset();
      await resuming(await mlx5.setState("RESUMING")).write(data);
      await mlx5.setState("STOP");
    };
    await resume(whole);
    await expect(resume(whole.subarray(0, -20))).rejects.toMatchObject({ code: "EINVAL" });
    expect(await mlx5.state()).toBe("ERROR");
    await expect(resume(whole.subarray(0, whole.length - 5))).rejects.toMatchObject({ code: "EINVAL" });
    const spoilt = Buffer.from(whole);
    spoilt[spoilt.length - 3000] ^= 1;
    await expect(resume(spoilt)).rejects.toMatchObject({ code: "EINVAL" });
    await expect(resume(Buffer.concat([whole, whole]))).rejects.toMatchObject({ code: "EINVAL" });
    const other = Buffer.concat(await readAll(saving(await device("nic0").setState("STOP_COPY"))));
    await mlx5.reset();
    // Known to be wrong from its first record on.
    const stream = resuming(await mlx5.setState("RESUMING"));
    await expect(stream.write(other)).rejects.toMatchObject({ code: "EINVAL" });
    await expect(mlx5.setState("STOP")).rejects.toMatchObject({ code: "EINVAL" });
  });
});

describe("a saving stream", () => {
  it("has initial data, a temporary end, what changed since, and a real end", async () => {
    const { device } = await bench([VGPU]);
    const vgpu = device("vgpu0");
    await enableBusMaster(vgpu);
    await eventually(async () => (await vgpu.counters()).units > 10);
    const stream = saving(await vgpu.setState("PRE_COPY"));
    const info = await stream.precopyInfo();
    expect(info.initialBytes).toBeGreaterThan(4000);
    expect(info).toMatchObject({ dirtyBytes: 0, reinit: false });
    let read = 0;
    const parts: Uint8Array[] = [];
    while (read < info.initialBytes) {
      const part = await stream.read(3000);
      parts.push(part);
      read += part.byteLength;
    }
    expect(read).toBe(info.initialBytes);
    await expect(stream.read(1)).rejects.toMatchObject({ code: "ENOMSG" });
    await eventually(async () => (await stream.precopyInfo()).dirtyBytes > 0);
    const { initialBytes, dirtyBytes } = await stream.precopyInfo();
    expect(initialBytes).toBe(0);
    parts.push(await stream.read(dirtyBytes));
    await expect(stream.read(1)).rejects.toMatchObject({ code: "ENOMSG" });

    expect(await vgpu.setState("STOP_COPY")).toBeNull();
    await expect(stream.precopyInfo()).rejects.toMatchObject({ code: "EINVAL" });
    const size = await vgpu.dataSize();
    const rest = await readAll(stream);
    expect(rest.reduce((sum, part) => sum + part.byteLength, 0)).toBe(size);
    // Most of the state went in pre-copy.
    expect(size).toBeLessThan(info.initialBytes + 4096);
    expect((await stream.read(10)).byteLength).toBe(0);

    const { lastSequence } = await vgpu.counters();
    await vgpu.setState("RESUMING").then(async (target) => {
      for (const part of [...parts, ...rest]) await resuming(target).write(part);
    });
    await vgpu.setState("STOP");
    expect((await vgpu.counters()).lastSequence).toBe(lastSequence);
  });

  it("says REINIT after a reconfiguration, only to who opted in", async () => {
    for (const optIn of [false, true]) {
      const { device } = await bench([MLX5]);
      const mlx5 = device("mlx0");
      if (optIn) await mlx5.enablePrecopyInfoV2();
      const stream = saving(await mlx5.setState("PRE_COPY"));
      await stream.read((await stream.precopyInfo()).initialBytes);
      while (true) {
        const { initialBytes } = await stream.precopyInfo();
        if (initialBytes === 0) break;
        await stream.read(initialBytes);
      }
      await mlx5.regionWrite(REGION.BAR0, MLX5_QUEUES_REGISTER, Uint8Array.of(9, 0, 0, 0));
      const info = await stream.precopyInfo();
      expect(info.reinit).toBe(optIn);
      expect(optIn ? info.initialBytes : info.dirtyBytes).toBeGreaterThan(9 * 12);
      expect(optIn ? info.dirtyBytes : info.initialBytes).toBe(0);
      await mlx5.setState("STOP_COPY");
      await readAll(stream);
    }
  });

  it("is over when the device leaves the saving states, and when it is closed", async () => {
    const { device } = await bench([MLX5]);
    const mlx5 = device("mlx0");
    const first = saving(await mlx5.setState("PRE_COPY"));
    await mlx5.setState("RUNNING");
    await expect(first.read(1)).rejects.toMatchObject({ code: "ENODEV" });
    const second = saving(await mlx5.setState("STOP_COPY"));
    await second[Symbol.asyncDispose]();
    await expect(second.read(1)).rejects.toMatchObject({ code: "EBADF" });
  });
});
