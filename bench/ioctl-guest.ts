import { writeFileSync } from "node:fs";
import { DirtyBitmap } from "../src/bitmap/dirty-bitmap.js";
import { summarize } from "../src/evidence/statistics.js";
import { LinuxIommufd } from "../src/linux/linux-iommufd.js";
import { GiB, KiB, MiB, PAGE_SIZE } from "../src/memory/address.js";
import { DmaMemory } from "../src/memory/dma-memory.js";
import { holdsOf } from "../src/memory/holds.js";
import { addressOf } from "../src/sys/address.js";
import { libc } from "../src/sys/libc.js";
import type { IoctlRequest } from "../src/uapi/ioctl.js";
import {
  IOMMU_HWPT_GET_DIRTY_BITMAP,
  IOMMU_IOAS_MAP,
  IOMMU_IOAS_MAP_FIXED_IOVA,
  IOMMU_IOAS_MAP_READABLE,
  IOMMU_IOAS_MAP_WRITEABLE,
  IOMMU_IOAS_UNMAP,
  iommu_hwpt_get_dirty_bitmap,
  iommu_ioas_map,
  iommu_ioas_unmap,
} from "../src/uapi/iommufd.js";
import { addMockDevice, replaceMockDomain } from "../test/kernel/mock-iommu.js";
import type { IoctlRow } from "./ioctl.js";

/*
 * What the library adds to an ioctl of /dev/iommu, measured on the mock IOMMU: run by bench/ioctl.ts in a guest, as
 * `node --expose-gc --max-semi-space-size=64 ioctl-guest.js RESULTS REPETITIONS`.
 *
 * The bare call is the cheapest that can be made from JavaScript: koffi, with the address of a structure that was
 * prepared before. Library and bare call take turns, a batch each, and what is compared is the two batches of a turn.
 */

/** Calls in a batch: less than a millisecond of them, so that many batches are left alone by whatever else runs. */
const BATCH = 25;
const WARM_UP_TURNS = 100;
/** Batches over which allocation is counted: what the compiler allocates now and then must not matter. */
const HEAP_BATCHES = 20;
const BASE = 1n << 24n;
const MAPPED = 64 * KiB;

const rawIoctl = libc.func("ioctl", "int", ["int", "unsigned long", "uintptr_t"]);

/** A call without the library: its structure is prepared, only `set` changes it. */
function bare(fd: number, request: IoctlRequest, structure: Uint8Array, set: (call: number) => void = () => {}) {
  const address = Number(addressOf(structure));
  return () => {
    for (let call = 0; call < BATCH; call++) {
      set(call);
      if (rawIoctl(fd, request.number, address) !== 0) throw new Error(`${request.name} failed`);
    }
  };
}

interface Contest {
  readonly call: IoctlRow["call"];
  readonly rangeBytes: number;
  readonly thread: boolean;
  readonly library: () => Promise<void>;
  readonly bare: () => void;
}

/** Microseconds that something takes. */
async function time(work: () => Promise<void> | void): Promise<number> {
  const start = performance.now();
  await work();
  return (performance.now() - start) * 1000;
}

/** Bytes that are in use on JavaScript's heap and in array buffers; the young generation is large enough not to be collected. */
function allocated(): number {
  const { heapUsed, arrayBuffers } = process.memoryUsage();
  return heapUsed + arrayBuffers;
}

/** Contests that follow each other in each turn, so that what one maps the next can unmap. */
async function measure(contests: readonly Contest[], repetitions: number): Promise<IoctlRow[]> {
  const bareUs: number[][] = contests.map(() => []);
  const libraryUs: number[][] = contests.map(() => []);
  for (let turn = -WARM_UP_TURNS; turn < repetitions; turn++) {
    const bareTimes: number[] = [];
    const libraryTimes: number[] = [];
    for (const contest of contests) bareTimes.push((await time(contest.bare)) / BATCH);
    for (const contest of contests) libraryTimes.push((await time(contest.library)) / BATCH);
    if (turn < 0) continue;
    contests.forEach((_, index) => {
      bareUs[index].push(bareTimes[index]);
      libraryUs[index].push(libraryTimes[index]);
    });
  }
  const bytes = contests.map(() => 0);
  globalThis.gc?.();
  for (let batch = 0; batch < HEAP_BATCHES; batch++) {
    for (const [index, { library }] of contests.entries()) {
      const before = allocated();
      await library();
      bytes[index] += allocated() - before;
    }
  }
  return contests.map(({ call, rangeBytes, thread }, index) => ({
    bench: "ioctl",
    call,
    rangeBytes,
    thread,
    bareUs: summarize(bareUs[index]),
    libraryUs: summarize(libraryUs[index]),
    addedUs: summarize(libraryUs[index].map((us, turn) => us - bareUs[index][turn])),
    heapBytes: bytes[index] / (HEAP_BATCHES * BATCH),
  }));
}

/** IOMMU_IOAS_MAP and UNMAP, where no device is attached: the kernel does least, and the difference shows best. */
async function mapping(iommufd: LinuxIommufd, repetitions: number): Promise<IoctlRow[]> {
  const ioas = await iommufd.allocIoas();
  const memory = DmaMemory.allocate(MAPPED);
  const length = BigInt(MAPPED);
  const iovas = Array.from({ length: BATCH }, (_, call) => BASE + BigInt(call) * length);
  const map = iommu_ioas_map.encode({
    size: iommu_ioas_map.size,
    flags: IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE,
    ioas_id: ioas,
    user_va: BigInt(holdsOf(memory.arena).address + memory.offset),
    length,
  });
  const unmap = iommu_ioas_unmap.encode({ size: iommu_ioas_unmap.size, ioas_id: ioas, length });
  const mapIova = new BigUint64Array(map.buffer, iommu_ioas_map.offsetOf("iova"), 1);
  const unmapWords = new BigUint64Array(unmap.buffer, iommu_ioas_unmap.offsetOf("iova"), 2);
  const contests: Contest[] = [
    {
      call: "MAP",
      rangeBytes: MAPPED,
      thread: false,
      library: async () => {
        for (const iova of iovas) await iommufd.map(ioas, memory, { iova, readable: true, writeable: true });
      },
      bare: bare(iommufd.fd, IOMMU_IOAS_MAP, map, (call) => {
        mapIova[0] = iovas[call];
      }),
    },
    {
      call: "UNMAP",
      rangeBytes: MAPPED,
      thread: false,
      library: async () => {
        for (const iova of iovas) await iommufd.unmap(ioas, iova, length);
      },
      bare: bare(iommufd.fd, IOMMU_IOAS_UNMAP, unmap, (call) => {
        unmapWords[0] = iovas[call];
        unmapWords[1] = length;
      }),
    },
  ];
  return measure(contests, repetitions);
}

/**
 * IOMMU_HWPT_GET_DIRTY_BITMAP of ranges of all sizes, of which the same 16 pages are mapped, so that the kernel's work is
 * the same, and small.
 */
async function reading(iommufd: LinuxIommufd, repetitions: number): Promise<IoctlRow[]> {
  const ioas = await iommufd.allocIoas();
  const mock = addMockDevice(iommufd.fd, ioas);
  const hwpt = await iommufd.allocHwpt({ device: mock.device, ioas, dirtyTracking: true });
  replaceMockDomain(iommufd.fd, mock, hwpt);
  const memory = DmaMemory.allocate(MAPPED);
  await iommufd.map(ioas, memory, { iova: BASE, readable: true, writeable: true });
  await iommufd.setDirtyTracking(hwpt, true);
  const rows: IoctlRow[] = [];
  for (const rangeBytes of [MAPPED, 1 * MiB, 64 * MiB, 1 * GiB, 64 * GiB]) {
    const length = BigInt(rangeBytes);
    const into = new DirtyBitmap({ iova: BASE, length, granule: PAGE_SIZE });
    const structure = iommu_hwpt_get_dirty_bitmap.encode({
      size: iommu_hwpt_get_dirty_bitmap.size,
      hwpt_id: hwpt,
      iova: BASE,
      length,
      page_size: BigInt(PAGE_SIZE),
      data: BigInt(into.address),
    });
    const contest: Contest = {
      call: "GET_DIRTY_BITMAP",
      rangeBytes,
      thread: rangeBytes > 64 * MiB,
      library: async () => {
        for (let call = 0; call < BATCH; call++) {
          await iommufd.getDirtyBitmap(hwpt, { iova: BASE, length, pageSize: PAGE_SIZE, into, clear: true });
        }
      },
      bare: bare(iommufd.fd, IOMMU_HWPT_GET_DIRTY_BITMAP, structure),
    };
    rows.push(...(await measure([contest], repetitions)));
  }
  return rows;
}

const [results, repetitions] = process.argv.slice(2);
await using iommufd = LinuxIommufd.open();
const rows = [...(await mapping(iommufd, Number(repetitions))), ...(await reading(iommufd, Number(repetitions)))];
writeFileSync(results, JSON.stringify(rows));
