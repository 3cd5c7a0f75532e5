import { isDeepStrictEqual } from "node:util";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { DirtyBitmap } from "../../src/bitmap/dirty-bitmap.js";
import { MIG_STATES } from "../../src/host/device-feature.js";
import type {
  DataStream,
  Iommufd,
  MigrationSupport,
  ObjectId,
  ResumingStream,
  SavingStream,
  VfioDevice,
} from "../../src/host/host.js";
import { MiB, PAGE_SIZE } from "../../src/memory/address.js";
import { type DeviceFeature, type MigState, SAVING_GROUP, VFIO_PCI_REGION_INDEX } from "../../src/uapi/vfio.js";

/*
 * What include/uapi/linux/vfio.h promises of a device, checked through the VfioDevice interface: the same tests for every
 * host. What a device lacks its fixture says, and the tests then check that it is refused as Linux refuses it.
 */

/** An iommufd with two IOASes in which the same memory is mapped, and two devices, open and not bound. */
export interface VfioBench extends AsyncDisposable {
  readonly iommufd: Iommufd;
  readonly ioases: readonly [ObjectId, ObjectId];
  readonly devices: readonly [VfioDevice, VfioDevice];
  /** Opens the first device again, which was closed. */
  reopen(): Promise<VfioDevice>;
}

/** A host's way to such devices, and what they can do. */
export interface VfioFixture {
  open(): Promise<VfioBench>;
  /** The bench's two devices are of one model; those that can migrate must be. */
  readonly twins: boolean;
  /** An mdev attaches to the IOAS itself, everything else to an HWPT. */
  readonly mdev: boolean;
  /** null: it can't migrate, and {@link mark} and {@link isMarked} are not called. */
  readonly migration: MigrationSupport | null;
  readonly dmaLogging: boolean;
  /** VFIO_DEVICE_RESET works: a PCI function needs a way to reset it alone. */
  readonly resets: boolean;
  /** Changes something that is part of the device's state. */
  mark(device: VfioDevice): Promise<void>;
  isMarked(device: VfioDevice): Promise<boolean>;
  /** Makes the next state change to STOP fail into ERROR; null where nothing can make this device fail. */
  readonly failToStop: ((device: VfioDevice) => void) | null;
  /** Where a device is after RESUMING was left with part of a state. */
  readonly afterBadState: "RESUMING" | "ERROR";
  /** The bytes that {@link VfioDevice.dataSize} names are those that STOP_COPY streams, not an estimate. */
  readonly dataSizeIsExact: boolean;
}

/** Memory that the bench maps in both IOASes. */
export const MAPPED = { iova: BigInt(MiB), length: BigInt(MiB) };

const PAGE = BigInt(PAGE_SIZE);
const { CONFIG } = VFIO_PCI_REGION_INDEX;

/** States that a device with this support can be asked to go to (the header, on VFIO_DEVICE_FEATURE_MIGRATION). */
function statesOf({ p2p, preCopy }: MigrationSupport): MigState[] {
  return MIG_STATES.filter((state) => {
    if (state === "ERROR") return false;
    if (state === "RUNNING_P2P") return p2p;
    if (state === "PRE_COPY") return preCopy;
    return state !== "PRE_COPY_P2P" || (p2p && preCopy);
  });
}

/** The header's list of what is refused; all else is reached by combination. */
function isLegal(from: MigState, to: MigState, support: MigrationSupport): boolean {
  if (!statesOf(support).includes(to)) return false;
  return !(from === "STOP_COPY" && (to === "PRE_COPY" || to === "PRE_COPY_P2P"));
}

/** Which stream a legal transition begins. */
function streamOf(from: MigState, to: MigState): DataStream["direction"] | null {
  if (from === to) return null;
  if (to === "RESUMING") return "resuming";
  return SAVING_GROUP.has(to) && !SAVING_GROUP.has(from) ? "saving" : null;
}

function saving(stream: DataStream | null): SavingStream {
  if (stream?.direction === "saving") return stream;
  throw new Error("no saving stream came");
}

function resuming(stream: DataStream | null): ResumingStream {
  if (stream?.direction === "resuming") return stream;
  throw new Error("no resuming stream came");
}

/** All up to the end of the stream, in pieces of at most `bytes`. */
async function readAll(stream: SavingStream, bytes = 65536): Promise<Uint8Array> {
  const parts: Uint8Array[] = [];
  for (let part = await stream.read(bytes); part.length > 0; part = await stream.read(bytes)) parts.push(part);
  return new Uint8Array(Buffer.concat(parts));
}

/** The whole state of a device, which stays in STOP_COPY. */
async function save(device: VfioDevice): Promise<Uint8Array> {
  return readAll(saving(await device.setState("STOP_COPY")));
}

function refused(operation: Promise<unknown>, code: string, what?: string) {
  return expect(operation, what).rejects.toMatchObject({ code });
}

function bitmap(range = MAPPED, granule = PAGE_SIZE): DirtyBitmap {
  return new DirtyBitmap({ ...range, granule });
}

/** Declares the tests for one kind of device. */
export function vfioConformance(name: string, fixture: VfioFixture): void {
  describe(`VfioDevice: ${name}`, () => {
    let bench: VfioBench;
    let device: VfioDevice;
    let other: VfioDevice;
    let iommufd: Iommufd;
    beforeEach(async () => {
      bench = await fixture.open();
      [device, other] = bench.devices;
      ({ iommufd } = bench);
    });
    afterEach(async () => {
      await bench[Symbol.asyncDispose]();
    });

    /** Both devices bound and attached. */
    async function attachBoth(): Promise<void> {
      for (const each of bench.devices) {
        await each.bind(iommufd);
        await each.attach(bench.ioases[0]);
      }
    }

    bindingTests();
    if (fixture.migration === null) refusedMigrationTests();
    else migrationTests(fixture.migration);
    if (fixture.dmaLogging) loggingTests();
    else refusedLoggingTests();

    function bindingTests(): void {
      describe("binding and attaching", () => {
        test("bind gives the device an id of its own in the iommufd", async () => {
          const ids = [await device.bind(iommufd), await other.bind(iommufd)];
          expect(ids[0]).toBeGreaterThan(0);
          expect(ids[1]).not.toBe(ids[0]);
        });

        test("a second bind is refused with EINVAL, and changes nothing", async () => {
          await device.bind(iommufd);
          await refused(device.bind(iommufd), "EINVAL");
          await device.attach(bench.ioases[0]);
        });

        test("before it is bound it can be neither attached nor detached: EINVAL", async () => {
          await refused(device.attach(bench.ioases[0]), "EINVAL");
          await refused(device.detach(), "EINVAL");
        });

        test("a bound device has regions and interrupts, each with an index of its own", async () => {
          await device.bind(iommufd);
          expect(device.regions.map(({ name }) => name)).toContain("config");
          for (const { bytes } of device.regions) expect(bytes).toBeGreaterThan(0);
          for (const { count } of device.irqs) expect(count).toBeGreaterThan(0);
          expect(new Set(device.regions.map(({ index }) => index)).size).toBe(device.regions.length);
          expect(new Set(device.irqs.map(({ index }) => index)).size).toBe(device.irqs.length);
        });

        test("a region is read whole, in pieces, or not at all", async () => {
          await device.bind(iommufd);
          const { bytes } = device.regions.find(({ index }) => index === CONFIG) ?? { bytes: 0 };
          const whole = await device.regionRead(CONFIG, 0, bytes);
          expect(whole).toHaveLength(bytes);
          expect(await device.regionRead(CONFIG, 1, 3)).toEqual(whole.subarray(1, 4));
          expect(await device.regionRead(CONFIG, bytes, 0)).toHaveLength(0);
          await device.regionWrite(CONFIG, bytes, new Uint8Array(0));
        });

        test("an access outside of a region, or to none, is refused with EINVAL", async () => {
          await device.bind(iommufd);
          const { bytes } = device.regions.find(({ index }) => index === CONFIG) ?? { bytes: 0 };
          for (const [offset, length] of [
            [bytes - 3, 4],
            [bytes, 1],
            [-1, 1],
            [0.5, 1],
            [2 ** 53, 0],
          ]) {
            await refused(device.regionRead(CONFIG, offset, length), "EINVAL", `${length} bytes at ${offset}`);
            const data = new Uint8Array(length);
            await refused(device.regionWrite(CONFIG, offset, data), "EINVAL", `${length} bytes at ${offset}`);
          }
          await refused(device.regionRead(CONFIG, 0, -1), "EINVAL");
          await refused(device.regionRead(CONFIG, 0, 1.5), "EINVAL");
          await refused(device.regionRead(0x7fff, 0, 1), "EINVAL");
          await refused(device.regionWrite(0x7fff, 0, new Uint8Array(1)), "EINVAL");
        });

        test("a region that can't be read, or written, is refused with EINVAL", async () => {
          await device.bind(iommufd);
          for (const { index, readable, writeable } of device.regions) {
            if (!readable) await refused(device.regionRead(index, 0, 1), "EINVAL");
            if (!writeable) await refused(device.regionWrite(index, 0, new Uint8Array(1)), "EINVAL");
          }
        });

        test(`two devices of ${fixture.twins ? "one model are the same" : "two models differ"} to a guest, whatever state they are in`, async () => {
          await attachBoth();
          const shape = await device.shape();
          expect(isDeepStrictEqual(await other.shape(), shape)).toBe(fixture.twins);
          expect(shape.regions.map(({ index }) => index)).toEqual(device.regions.map(({ index }) => index));
          expect(shape.config).toMatch(/^[0-9a-f]{4}/);
          if (fixture.migration !== null) {
            await fixture.mark(device);
            expect(await device.shape()).toEqual(shape);
          }
        });

        test(`attaching to an IOAS attaches to ${fixture.mdev ? "the IOAS itself" : "an HWPT that is made for it"}`, async () => {
          await device.bind(iommufd);
          const id = await device.attach(bench.ioases[0]);
          if (fixture.mdev) expect(id).toBe(bench.ioases[0]);
          else expect(bench.ioases).not.toContain(id);
        });

        test("attaching again replaces what it is attached to, which is free then", async () => {
          await device.bind(iommufd);
          await device.attach(bench.ioases[0]);
          await refused(iommufd.destroy(bench.ioases[0]), "EBUSY");
          await device.attach(bench.ioases[1]);
          await iommufd.destroy(bench.ioases[0]);
          await refused(iommufd.destroy(bench.ioases[1]), "EBUSY");
        });

        test("an id that is none is refused with ENOENT, and the attachment stays", async () => {
          await device.bind(iommufd);
          await device.attach(bench.ioases[0]);
          await refused(device.attach(0x7fff_fff0), "ENOENT");
          await refused(iommufd.destroy(bench.ioases[0]), "EBUSY");
        });

        test("detaching frees the IOAS, and twice does no harm", async () => {
          await device.bind(iommufd);
          await device.attach(bench.ioases[0]);
          await device.detach();
          await device.detach();
          await iommufd.destroy(bench.ioases[0]);
        });

        test("closing it, bound and attached, frees the IOAS, and it can be opened and bound again", async () => {
          await device.bind(iommufd);
          await device.attach(bench.ioases[0]);
          await device[Symbol.asyncDispose]();
          await device[Symbol.asyncDispose]();
          await iommufd.destroy(bench.ioases[0]);
          const again = await bench.reopen();
          expect(await again.bind(iommufd)).toBeGreaterThan(0);
        });

        test("a closed device refuses everything with EBADF", async () => {
          await device.bind(iommufd);
          await device[Symbol.asyncDispose]();
          await refused(device.bind(iommufd), "EBADF");
          await refused(device.attach(bench.ioases[0]), "EBADF");
          await refused(device.detach(), "EBADF");
          await refused(device.reset(), "EBADF");
          await refused(device.shape(), "EBADF");
          await refused(device.regionRead(CONFIG, 0, 4), "EBADF");
          await refused(device.regionWrite(CONFIG, 0, new Uint8Array(4)), "EBADF");
          await refused(device.supports("MIGRATION"), "EBADF");
          await refused(device.trackingFlags(), "EBADF");
          await refused(device.migration(), "EBADF");
          await refused(device.state(), "EBADF");
          await refused(device.setState("STOP"), "EBADF");
          await refused(device.dataSize(), "EBADF");
          await refused(device.enablePrecopyInfoV2(), "EBADF");
          await refused(device.startDmaLogging({ pageSize: PAGE_SIZE, ranges: [MAPPED] }), "EBADF");
          await refused(device.reportDmaLogging({ ...MAPPED, pageSize: PAGE_SIZE, into: bitmap() }), "EBADF");
          await refused(device.stopDmaLogging(), "EBADF");
        });

        test(`a reset ${fixture.resets ? "works" : "is refused with EINVAL"}, and leaves it attached`, async () => {
          await attachBoth();
          if (fixture.resets) await device.reset();
          else await refused(device.reset(), "EINVAL");
          await refused(iommufd.destroy(bench.ioases[0]), "EBUSY");
        });
      });
    }

    function refusedMigrationTests(): void {
      test("what a device that can't migrate is asked about migration it refuses with ENOTTY", async () => {
        await device.bind(iommufd);
        for (const feature of ["MIGRATION", "MIG_DEVICE_STATE", "MIG_DATA_SIZE", "MIG_PRECOPY_INFOv2"] as const) {
          expect(await device.supports(feature)).toBe(false);
        }
        await refused(device.migration(), "ENOTTY");
        await refused(device.state(), "ENOTTY");
        await refused(device.setState("STOP"), "ENOTTY");
        await refused(device.dataSize(), "ENOTTY");
        // As of any device without pre-copy.
        await refused(device.enablePrecopyInfoV2(), "EINVAL");
      });
    }

    function migrationTests(support: MigrationSupport): void {
      const states = statesOf(support);

      /** Takes a device that runs to a state; out of RESUMING nothing leads without a state, so it gets one. */
      async function bring(state: MigState, whole: Uint8Array): Promise<DataStream | null> {
        await device.reset();
        const stream = state === "RUNNING" ? null : await device.setState(state);
        if (state === "RESUMING") await resuming(stream).write(whole);
        return stream;
      }

      describe("migration states", () => {
        beforeEach(attachBoth);

        test("it has the features of migration, and says which states it supports", async () => {
          expect(await device.migration()).toEqual(support);
          const features = ["MIGRATION", "MIG_DEVICE_STATE", "MIG_DATA_SIZE"] as const satisfies DeviceFeature[];
          for (const feature of features) expect(await device.supports(feature)).toBe(true);
          expect(await device.supports("MIG_PRECOPY_INFOv2")).toBe(support.preCopy);
        });

        test(`pre-copy information of version 2 is ${support.preCopy ? "taken" : "refused with EINVAL"}`, async () => {
          if (support.preCopy) await device.enablePrecopyInfoV2();
          else await refused(device.enablePrecopyInfoV2(), "EINVAL");
        });

        test("it is RUNNING at first", async () => {
          expect(await device.state()).toBe("RUNNING");
        });

        for (const from of states) {
          test(`from ${from} it goes wherever the header lets it, and refuses the rest with EINVAL`, async () => {
            const whole = await save(other);
            for (const to of MIG_STATES) {
              await bring(from, whole);
              const arc = `${from} to ${to}`;
              if (isLegal(from, to, support)) {
                const stream = await device.setState(to);
                expect(stream?.direction ?? null, arc).toBe(streamOf(from, to));
                expect(await device.state(), arc).toBe(to);
              } else {
                await refused(device.setState(to), "EINVAL", arc);
                expect(await device.state(), arc).toBe(from);
              }
            }
          });
        }

        test("the size of its state can be asked for in every state", async () => {
          const whole = await save(other);
          for (const state of states) {
            await bring(state, whole);
            expect(await device.dataSize(), state).toBeGreaterThanOrEqual(0);
          }
        });

        test("a reset leads to RUNNING from every state", async () => {
          for (const state of states) {
            await device.setState(state);
            await device.reset();
            expect(await device.state(), state).toBe("RUNNING");
          }
        });

        for (const state of states) {
          test(`closed in ${state} it ends its stream, and is RUNNING when it is opened again`, async () => {
            const stream = await device.setState(state);
            await device[Symbol.asyncDispose]();
            if (stream?.direction === "saving") await refused(stream.read(16), "ENODEV");
            if (stream?.direction === "resuming") await refused(stream.write(new Uint8Array(1)), "ENODEV");
            const again = await bench.reopen();
            await again.bind(iommufd);
            expect(await again.state()).toBe("RUNNING");
          });
        }

        if (fixture.failToStop !== null) {
          const { failToStop } = fixture;
          test("a device that fails goes to ERROR with EIO, and only a reset leads out", async () => {
            failToStop(device);
            await refused(device.setState("STOP"), "EIO");
            expect(await device.state()).toBe("ERROR");
            for (const to of MIG_STATES) await refused(device.setState(to), "EINVAL");
            expect(await device.dataSize()).toBeGreaterThanOrEqual(0);
            await device.reset();
            expect(await device.state()).toBe("RUNNING");
            await device.setState("STOP");
          });
        }
      });

      describe("data streams", () => {
        beforeEach(attachBoth);

        test("a second device takes over what the first had", async () => {
          await fixture.mark(device);
          expect(await fixture.isMarked(other)).toBe(false);
          const whole = await save(device);
          const stream = resuming(await other.setState("RESUMING"));
          await stream.write(whole);
          await other.setState("STOP");
          expect(await fixture.isMarked(other)).toBe(true);
          await other.setState("RUNNING");
          expect(await fixture.isMarked(other)).toBe(true);
        });

        test("the pieces in which it is written need not be those in which it was read", async () => {
          await fixture.mark(device);
          const whole = await readAll(saving(await device.setState("STOP_COPY")), 7);
          const stream = resuming(await other.setState("RESUMING"));
          for (let at = 0; at < whole.length; at += 13) await stream.write(whole.subarray(at, at + 13));
          await other.setState("STOP");
          expect(await fixture.isMarked(other)).toBe(true);
        });

        test("at its end a stream goes on saying so", async () => {
          const stream = saving(await device.setState("STOP_COPY"));
          expect((await readAll(stream)).length).toBeGreaterThan(0);
          expect(await stream.read(16)).toHaveLength(0);
          expect(await stream.read(16)).toHaveLength(0);
        });

        test("a read of no bytes is refused with EINVAL", async () => {
          const stream = saving(await device.setState("STOP_COPY"));
          await refused(stream.read(0), "EINVAL");
        });

        test(`in STOP_COPY the size of its state is ${fixture.dataSizeIsExact ? "what is streamed" : "an estimate"}`, async () => {
          const stream = saving(await device.setState("STOP_COPY"));
          const size = await device.dataSize();
          const { length } = await readAll(stream);
          if (fixture.dataSizeIsExact) expect(size).toBe(length);
          else expect(size).toBeGreaterThan(0);
        });

        test("part of a state is refused with EINVAL, and a reset leads out", async () => {
          const whole = await save(device);
          const stream = resuming(await other.setState("RESUMING"));
          await stream.write(whole.subarray(0, whole.length - 1));
          await refused(other.setState("STOP"), "EINVAL");
          expect(await other.state()).toBe(fixture.afterBadState);
          await other.reset();
          expect(await other.state()).toBe("RUNNING");
        });

        test("once the device has left STOP_COPY its stream is over: ENODEV", async () => {
          const stream = saving(await device.setState("STOP_COPY"));
          await device.setState("STOP");
          await refused(stream.read(16), "ENODEV");
          await stream[Symbol.asyncDispose]();
        });

        test("once the device has left RESUMING its stream is over: ENODEV", async () => {
          const whole = await save(device);
          const stream = resuming(await other.setState("RESUMING"));
          await stream.write(whole);
          await other.setState("RUNNING");
          await refused(stream.write(whole), "ENODEV");
          await stream[Symbol.asyncDispose]();
        });

        test("a reset ends a session", async () => {
          const stream = saving(await device.setState("STOP_COPY"));
          await device.reset();
          await refused(stream.read(16), "ENODEV");
        });

        test("a stream that its reader closed is closed, twice does no harm, and the device goes on", async () => {
          const stream = saving(await device.setState("STOP_COPY"));
          await stream[Symbol.asyncDispose]();
          await stream[Symbol.asyncDispose]();
          await refused(stream.read(16), "EBADF");
          await device.setState("RUNNING");
          expect(await device.state()).toBe("RUNNING");
        });

        if (support.preCopy) {
          test("in pre-copy a stream tells what it holds, comes to a temporary end with ENOMSG, and goes on in STOP_COPY", async () => {
            await fixture.mark(device);
            const stream = saving(await device.setState("PRE_COPY"));
            expect((await stream.precopyInfo()).initialBytes).toBeGreaterThan(0);
            const parts: Uint8Array[] = [];
            for (let reads = 0; reads < 10_000; reads++) {
              const part = await stream.read(65536).catch((error: { code?: string }) => error.code);
              if (typeof part === "string") {
                expect(part).toBe("ENOMSG");
                break;
              }
              expect(part?.length).toBeGreaterThan(0);
              if (part !== undefined) parts.push(part);
            }
            expect((await stream.precopyInfo()).initialBytes).toBe(0);
            expect(await device.setState("STOP_COPY")).toBeNull();
            parts.push(await readAll(stream));
            const taking = resuming(await other.setState("RESUMING"));
            for (const part of parts) await taking.write(part);
            await other.setState("STOP");
            expect(await fixture.isMarked(other)).toBe(true);
          });

          test("in STOP_COPY there is no pre-copy information: EINVAL", async () => {
            const stream = saving(await device.setState("PRE_COPY"));
            await device.setState("STOP_COPY");
            await refused(stream.precopyInfo(), "EINVAL");
          });

          test("back in RUNNING a pre-copy stream is over, and another can begin", async () => {
            const stream = saving(await device.setState("PRE_COPY"));
            await device.setState("RUNNING");
            await refused(stream.read(16), "ENODEV");
            await refused(stream.precopyInfo(), "ENODEV");
            expect((await saving(await device.setState("PRE_COPY")).precopyInfo()).initialBytes).toBeGreaterThan(0);
          });
        }
      });
    }

    function refusedLoggingTests(): void {
      test("a device without DMA logging refuses it with ENOTTY", async () => {
        await device.bind(iommufd);
        for (const feature of ["DMA_LOGGING_START", "DMA_LOGGING_REPORT", "DMA_LOGGING_STOP"] as const) {
          expect(await device.supports(feature)).toBe(false);
        }
        expect((await device.trackingFlags()).tracksInternally).toBe(false);
        expect(await device.dmaLoggingLimits()).toBeNull();
        await refused(device.startDmaLogging({ pageSize: PAGE_SIZE, ranges: [MAPPED] }), "ENOTTY");
        await refused(device.reportDmaLogging({ ...MAPPED, pageSize: PAGE_SIZE, into: bitmap() }), "ENOTTY");
        await refused(device.stopDmaLogging(), "ENOTTY");
      });

      test("it does so before it says anything about the arguments", async () => {
        await device.bind(iommufd);
        await refused(device.startDmaLogging({ pageSize: 3, ranges: [] }), "ENOTTY");
        await refused(device.reportDmaLogging({ ...MAPPED, pageSize: 3, into: bitmap() }), "ENOTTY");
      });
    }

    function loggingTests(): void {
      describe("DMA logging", () => {
        beforeEach(attachBoth);
        const start = (ranges: readonly { iova: bigint; length: bigint }[] = [MAPPED], pageSize = PAGE_SIZE) =>
          device.startDmaLogging({ pageSize, ranges });
        const report = (pageSize = PAGE_SIZE, range = MAPPED, into = bitmap(range, pageSize)) =>
          device.reportDmaLogging({ ...range, pageSize, into });

        test("it has the features of DMA logging", async () => {
          for (const feature of ["DMA_LOGGING_START", "DMA_LOGGING_REPORT", "DMA_LOGGING_STOP"] as const) {
            expect(await device.supports(feature)).toBe(true);
          }
          expect((await device.trackingFlags()).tracksInternally).toBe(true);
        });

        test("it starts with a page size of its choice, reports, and stops", async () => {
          const granule = await start();
          expect(Math.log2(granule) % 1).toBe(0);
          await report(Math.max(granule, PAGE_SIZE));
          await device.stopDmaLogging();
        });

        test("no range is refused with EINVAL", () => refused(start([]), "EINVAL"));

        test("an empty range is refused with EINVAL", () => refused(start([{ ...MAPPED, length: 0n }]), "EINVAL"));

        test("a page size that is no power of two is refused with EINVAL", async () => {
          for (const pageSize of [0, 12288, 4096.5, -4096]) await refused(start([MAPPED], pageSize), "EINVAL");
        });

        test("overlapping ranges are refused with EINVAL, in any order", async () => {
          const at = (page: bigint, pages: bigint) => ({ iova: page * PAGE, length: pages * PAGE });
          await refused(start([at(256n, 8n), at(260n, 8n)]), "EINVAL");
          await refused(start([at(260n, 8n), at(256n, 8n)]), "EINVAL");
          await refused(start([at(256n, 8n), at(256n, 8n)]), "EINVAL");
        });

        test("a range that begins or ends inside a page is refused with EINVAL", async () => {
          await refused(start([{ iova: MAPPED.iova + 1n, length: PAGE }]), "EINVAL");
          await refused(start([{ iova: MAPPED.iova, length: PAGE - 1n }]), "EINVAL");
        });

        test("a range that ends beyond 64 bits is refused with EOVERFLOW", () =>
          refused(start([{ iova: 2n ** 64n - PAGE, length: 2n * PAGE }]), "EOVERFLOW"));

        test("more ranges than fit in a page of the kernel's are refused with E2BIG", async () => {
          const ranges = Array.from({ length: 257 }, (_, i) => ({ iova: BigInt(2 * i + 256) * PAGE, length: PAGE }));
          await refused(start(ranges), "E2BIG");
        });

        test("nothing is logged after a refusal: a good start follows", async () => {
          await refused(start([]), "EINVAL");
          await start();
        });

        test("a second start is refused with EINVAL, and the first goes on", async () => {
          await start();
          await refused(start(), "EINVAL");
          await report();
        });

        test("a report while nothing is logged is refused with EINVAL", async () => {
          await refused(report(), "EINVAL");
          await start();
          await device.stopDmaLogging();
          await refused(report(), "EINVAL");
        });

        test("a report by less than 4 KiB, or by no power of two, is refused with EINVAL", async () => {
          await start();
          for (const pageSize of [2048, 0, 12288]) {
            await refused(device.reportDmaLogging({ ...MAPPED, pageSize, into: bitmap() }), "EINVAL");
          }
        });

        test("a report beyond 64 bits is refused with EOVERFLOW", async () => {
          await start();
          const query = { iova: 2n ** 64n - PAGE, length: 2n * PAGE, pageSize: PAGE_SIZE, into: bitmap() };
          await refused(device.reportDmaLogging(query), "EOVERFLOW");
        });

        test("a report into a bitmap of another range or page size is refused with EINVAL", async () => {
          await start();
          const half = { iova: MAPPED.iova, length: MAPPED.length / 2n };
          await refused(report(PAGE_SIZE, MAPPED, bitmap(half)), "EINVAL");
          await refused(report(PAGE_SIZE, MAPPED, bitmap(MAPPED, 2 * PAGE_SIZE)), "EINVAL");
          await refused(report(PAGE_SIZE, MAPPED, bitmap({ ...MAPPED, iova: MAPPED.iova + PAGE })), "EINVAL");
        });

        test("a report of nothing writes nothing", async () => {
          await start();
          const into = bitmap();
          await report(PAGE_SIZE, { ...MAPPED, length: 0n }, into);
          expect(into.count()).toBe(0);
        });

        test("a report clears no bit of the caller's, and writes none outside the range", async () => {
          await start();
          const into = bitmap();
          into.set(3);
          into.set(200);
          await report(PAGE_SIZE, MAPPED, into);
          await report(PAGE_SIZE, { iova: MAPPED.iova + 64n * PAGE, length: 64n * PAGE }, into);
          await report(PAGE_SIZE, { iova: MAPPED.iova + 3n * PAGE, length: 5n * PAGE }, into);
          expect(into.get(3)).toBe(true);
          expect(into.get(200)).toBe(true);
        });

        test("stopping what is off does no harm", async () => {
          await device.stopDmaLogging();
          await start();
          await device.stopDmaLogging();
          await device.stopDmaLogging();
        });

        test("a reset ends logging", async () => {
          await start();
          await device.reset();
          await refused(report(), "EINVAL");
          await start();
        });

        test("closed while it logs, it can be opened again and does not log", async () => {
          await start();
          await device[Symbol.asyncDispose]();
          const again = await bench.reopen();
          await again.bind(iommufd);
          await again.attach(bench.ioases[0]);
          await again.startDmaLogging({ pageSize: PAGE_SIZE, ranges: [MAPPED] });
        });
      });
    }
  });
}
