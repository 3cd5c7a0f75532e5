import { describe, expect, it } from "vitest";
import { bitmapOf } from "../../../test/support/iommu.js";
import type { InFlight } from "../../memory/in-flight.js";
import { PhysicalMemory } from "../physical-memory.js";
import { EmulatedDomain } from "./domain.js";
import { LAST_PAGE } from "./format.js";
import { FORMATS } from "./formats.js";
import type { PageTable } from "./page-table.js";
import type { DirtyReader } from "./reader.js";
import type { ScanRequest } from "./scan.js";

/** A domain whose page table and hardware write down what is done, in order; what takes time takes a turn of the event loop. */
function domain() {
  const done: string[] = [];
  const scans: ScanRequest[] = [];
  const slowly = async (name: string) => {
    done.push(`${name} begins`);
    await new Promise((resolve) => setImmediate(resolve));
    done.push(`${name} ends`);
  };
  const note = (name: string) => () => void done.push(name);
  const table = { format: FORMATS["vtd-ss"], leafShifts: [12], root: 0, tables: 1 };
  const made = new EmulatedDomain(
    { ...table, map: note("map"), remove: note("remove"), release: note("release") } as unknown as PageTable,
    true,
    {
      physical: new PhysicalMemory(),
      inFlight: { invalidate: () => slowly("flush") } as unknown as InFlight,
      reader: {
        scan: async (_format: unknown, request: ScanRequest) => {
          scans.push(request);
          await slowly("scan");
          return 1;
        },
      } as unknown as DirtyReader,
      setUpdates: (port, on) => void done.push(`port ${port} records: ${on}`),
    },
  );
  made.ports.add(3).add(5);
  return { made, done, scans };
}

const FLUSH = ["flush begins", "flush ends"];
const SCAN = ["scan begins", "scan ends"];

describe("the order in which a domain works", () => {
  it("starts tracking by recording, then clears all bits there are, then drains", async () => {
    const { made, done, scans } = domain();
    await made.setDirtyTracking(true);
    expect(done).toEqual(["port 3 records: true", "port 5 records: true", ...SCAN, ...FLUSH]);
    expect(scans).toMatchObject([{ page: 0, pages: LAST_PAGE + 1, into: null, clear: true, stopAtHole: false }]);
  });

  it("stops tracking without clearing anything, and drains", async () => {
    const { made, done } = domain();
    await made.setDirtyTracking(true);
    done.length = 0;
    await made.setDirtyTracking(false);
    expect(done).toEqual(["port 3 records: false", "port 5 records: false", ...FLUSH]);
  });

  it("answers a read that clears once what it has cleared has drained", async () => {
    const { made, done, scans } = domain();
    const into = bitmapOf(7, 4);
    expect(await made.readDirty({ page: 7, pages: 4, into, clear: true })).toEqual({ leafSizes: [4096] });
    expect(done).toEqual([...SCAN, ...FLUSH]);
    expect(scans).toMatchObject([{ page: 7, pages: 4, clear: true, stopAtHole: true }]);
    done.length = 0;
    await made.readDirty({ page: 7, pages: 4, into, clear: false });
    expect(done).toEqual(SCAN);
  });

  it("frees what it has unmapped once no DMA can go by it", async () => {
    const { made, done } = domain();
    await made.unmap({ page: 7, pages: 4 });
    expect(done).toEqual(["remove", ...FLUSH, "release"]);
  });

  it("does one thing after the other", async () => {
    const { made, done } = domain();
    await Promise.all([
      made.readDirty({ page: 7, pages: 4, into: bitmapOf(7, 4), clear: true }),
      made.unmap({ page: 7, pages: 4 }),
    ]);
    expect(done).toEqual([...SCAN, ...FLUSH, "remove", ...FLUSH, "release"]);
  });
});
