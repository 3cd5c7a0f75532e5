import { describe, expect, it } from "vitest";
import { DirtyBitmap } from "../bitmap/dirty-bitmap.js";
import { PAGE_SIZE } from "../memory/address.js";
import { UapiError } from "../uapi/errno.js";
import {
  type DeviceFeature,
  VFIO_DEVICE_STATE,
  vfio_device_feature_dma_logging_control,
  vfio_device_feature_dma_logging_report,
  vfio_device_feature_mig_data_size,
  vfio_device_feature_mig_state,
} from "../uapi/vfio.js";
import type { FeatureTransport } from "./device-feature.js";
import { FeatureDevice } from "./feature-device.js";
import type { RegionInfo } from "./host.js";

/*
 * What a device's own side may do, and no real one in the tests of test/conformance/vfio.ts does.
 */

const RANGE = { iova: 0n, length: BigInt(64 * PAGE_SIZE) };

/** A device whose answers a test writes: what it does with features, and how far one access to a region goes. */
class OddDevice extends FeatureDevice {
  readonly id = "odd";
  readonly regions: readonly RegionInfo[] = [{ index: 0, name: "bar0", bytes: 16, readable: true, writeable: true }];
  readonly irqs = [];
  readonly memory = new Uint8Array(16);
  /** Bytes that one access reaches at most, each in turn; then none. */
  reach: number[] = [];
  readonly asked: string[] = [];
  answers: Partial<Record<DeviceFeature, () => Uint8Array>> = {};
  protected readonly features: FeatureTransport = {
    probe: async (feature) => this.answers[feature] !== undefined,
    get: async (feature, structure, _call, bitmap) => {
      bitmap?.set(Number(vfio_device_feature_dma_logging_report.decode(structure).iova) / PAGE_SIZE);
      return this.#answer(feature);
    },
    set: async (feature) => this.#answer(feature),
    reset: async () => {
      this.asked.push("reset");
    },
  };

  #answer(feature: DeviceFeature): Uint8Array {
    this.asked.push(feature);
    const answer = this.answers[feature];
    if (answer === undefined) throw new UapiError("ENOTTY", { syscall: feature, attempted: "use it" });
    return answer();
  }

  protected checkOpen(): void {}

  protected openSession(): never {
    throw new Error("it has no sessions");
  }

  protected async readRegion(_region: RegionInfo, offset: number, into: Uint8Array): Promise<number> {
    const count = Math.min(this.reach.shift() ?? 0, into.byteLength);
    into.set(this.memory.subarray(offset, offset + count));
    return count;
  }

  protected async writeRegion(_region: RegionInfo, offset: number, data: Uint8Array): Promise<number> {
    const count = Math.min(this.reach.shift() ?? 0, data.byteLength);
    this.memory.set(data.subarray(0, count), offset);
    return count;
  }
}

/** Answers to START, with a page size, and to what goes with it. */
function logging(pageSize: bigint): OddDevice["answers"] {
  return {
    DMA_LOGGING_START: () => vfio_device_feature_dma_logging_control.encode({ page_size: pageSize }),
    DMA_LOGGING_STOP: () => new Uint8Array(0),
    DMA_LOGGING_REPORT: () => vfio_device_feature_dma_logging_report.encode({}),
  };
}

describe("an access to a region", () => {
  const data = Uint8Array.from({ length: 10 }, (_, i) => i + 1);

  it("that does part of it is continued where it stopped", async () => {
    const device = new OddDevice();
    device.reach = [3, 1, 100];
    await device.regionWrite(0, 2, data);
    expect([...device.memory.subarray(2, 12)]).toEqual([...data]);
    device.reach = [1, 100];
    expect(await device.regionRead(0, 2, 10)).toEqual(data);
  });

  it("that ends before its end is refused with EIO, which tells how far it came", async () => {
    const device = new OddDevice();
    device.reach = [4];
    const failure = { code: "EIO", message: expect.stringContaining("it ends after 4") };
    await expect(device.regionWrite(0, 0, data)).rejects.toMatchObject(failure);
    device.reach = [4];
    await expect(device.regionRead(0, 0, 10)).rejects.toMatchObject(failure);
  });
});

describe("what can't be is refused with EPROTO", () => {
  it("a state that the header does not have", async () => {
    const device = new OddDevice();
    device.answers = { MIG_DEVICE_STATE: () => vfio_device_feature_mig_state.encode({ device_state: 8 }) };
    await expect(device.state()).rejects.toMatchObject({ code: "EPROTO", message: expect.stringContaining("state 8") });
  });

  it("a state's size beyond what numbers hold", async () => {
    const device = new OddDevice();
    const layout = vfio_device_feature_mig_data_size;
    device.answers = { MIG_DATA_SIZE: () => layout.encode({ stop_copy_length: 2n ** 53n }) };
    await expect(device.dataSize()).rejects.toMatchObject({ code: "EPROTO" });
    device.answers = { MIG_DATA_SIZE: () => layout.encode({ stop_copy_length: 2n ** 53n - 1n }) };
    expect(await device.dataSize()).toBe(Number.MAX_SAFE_INTEGER);
  });

  it.each([0n, 4097n, 2n ** 41n])("a page size of %s, and the log is stopped again", async (pageSize) => {
    const device = new OddDevice();
    device.answers = logging(pageSize);
    await expect(device.startDmaLogging({ pageSize: PAGE_SIZE, ranges: [RANGE] })).rejects.toMatchObject({
      code: "EPROTO",
    });
    expect(device.asked).toEqual(["DMA_LOGGING_START", "DMA_LOGGING_STOP"]);
  });
});

it("a reset that leaves log and state as they are is finished: the log is off and the device runs", async () => {
  const device = new OddDevice();
  let state: number = VFIO_DEVICE_STATE.STOP;
  device.answers = {
    ...logging(BigInt(PAGE_SIZE)),
    MIG_DEVICE_STATE: () => {
      const answer = vfio_device_feature_mig_state.encode({ device_state: state });
      state = VFIO_DEVICE_STATE.RUNNING;
      return answer;
    },
  };
  await device.startDmaLogging({ pageSize: PAGE_SIZE, ranges: [RANGE] });
  await device.reset();
  expect(device.asked.slice(1)).toEqual(["reset", "DMA_LOGGING_STOP", "MIG_DEVICE_STATE", "MIG_DEVICE_STATE"]);
  const into = new DirtyBitmap({ ...RANGE, granule: PAGE_SIZE });
  await expect(device.reportDmaLogging({ ...RANGE, pageSize: PAGE_SIZE, into })).rejects.toMatchObject({
    code: "EINVAL",
  });
});
